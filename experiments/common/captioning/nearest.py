"""A baseline without a language model: captions of the training pictures or clips that are nearest to a new one."""

import time

from experiments.common.decoding import Answers
from experiments.common.task import Task
from mcl_jax import data, metrics

NEAREST = "nearest"  # its name among the methods


def nearest(task: Task, asked: tuple[data.Record, ...], most: int) -> Answers:
    """Copies K different training captions for each record, those of the nearest pictures or clips first.

    They are compared by the cosine of the frozen tower's pooled features, see `perception.tower`.

    Args:
      task: the task; K is its number of hypotheses.
      asked: records to answer.
      most: number of training records to copy from, evenly spread.
    Returns:
      The answers. They have no likelihoods.
    """
    started, train = time.monotonic(), task.records("train", most)
    features, known = task.perception.pooled(asked), task.perception.pooled(train)
    captions = [[target.text for target in record.targets] for record in train]
    texts = metrics.nearest_captions(features, known, captions, task.config.num_hypotheses)
    return Answers(texts, [[None] * len(given) for given in texts], time.monotonic() - started)
