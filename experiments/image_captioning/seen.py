"""What a projector is trained on: features of pictures, or of classes, with captions; features are kept in files."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from experiments.image_captioning.classes import class_captions
from mcl_jax import data
from mcl_jax.console import Progress
from mcl_jax.models import efficientnet_lite_weights as weights
from mcl_jax.models.efficient_llava import EfficientLlava, averaged
from mcl_jax.models.efficient_llava_processor import EfficientLlavaProcessor

BATCH = 32
# Spread of prototypes in standard deviations of real features: this puts them as far from the mean as real ones are.
SPREAD = 1.5


class Seen(NamedTuple):
    """Features of N pictures and their captions.

    Attributes:
      features: the tower's grid, averaged over the projector's cells.
      captions: one caption for each.
    """

    features: Float[np.ndarray, "N g g F"]
    captions: tuple[str, ...]


def of_records(
    file: Path, module: EfficientLlava, params: Any, processor: EfficientLlavaProcessor, records: Sequence[data.Record]
) -> Seen:
    """Returns the features of records, from a file if an earlier call wrote it, with their first English captions.

    Args:
      file: the .npz file; it holds the ids of the records, too, and is written again if they differ.
      module, params, processor: the model.
      records: records with pictures.
    """
    ids = [record.id for record in records]
    captions = tuple(next(t.text for t in record.targets if t.mode == "en") for record in records)
    if file.is_file():
        with np.load(file) as known:
            if known["ids"].tolist() == ids:
                return Seen(known["features"], captions)
    features = _features(module, params, processor, records, file.stem)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial.npz")
    np.savez(partial, ids=np.array(ids), features=features)
    os.replace(partial, file)
    return Seen(features, captions)


def _features(module, params, processor, records, name: str) -> Float[np.ndarray, "N g g F"]:
    """Runs the tower on the pictures of records, with progress."""
    cells, rows = module.config.cells, []

    @jax.jit
    def run(tower, pixels):
        grid = module.apply({"params": {"vision_tower": tower}}, pixels, method="see")
        return averaged(grid, cells).reshape(len(pixels), cells, cells, -1)

    with Progress(len(records), description=f"features of {name}") as progress:
        for start in range(0, len(records), BATCH):
            pictures = [record.media.read() for record in records[start : start + BATCH]]
            padded = [*pictures, *[None] * (BATCH - len(pictures))]
            rows.append(run(params["vision_tower"], processor.inputs(padded)["pixel_values"])[: len(pictures)])
            progress.update(start + len(pictures))
    return np.concatenate([np.asarray(row) for row in rows])


def prototypes(variant: str, like: Float[np.ndarray, "N g g F"]) -> Seen:
    """Returns one feature for each class of ImageNet, from its row of the classifier.

    The row of a class says which features speak for it, so the mean feature and that row, scaled to the spread of real
    features and cut at 0 as they are, stand for a picture of it.

    Args:
      variant: the variant of the tower.
      like: features of real pictures.
    Raises:
      ValueError: if the names of the classes are not installed; says how to install them.
    """
    rows = weights.classifier(variant)[0].T
    rows = (rows - rows.mean(0)) / rows.std()
    flat = like.reshape(-1, like.shape[-1])
    made = np.maximum(flat.mean(0) + SPREAD * flat.std(0).mean() * rows, 0.0)
    made = np.broadcast_to(made[:, None, None], (len(rows), *like.shape[1:]))
    return Seen(made.astype(like.dtype), class_captions())


def joined(parts: Iterable[Seen]) -> Seen:
    """Returns all pairs of several sources."""
    parts = list(parts)
    return Seen(
        np.concatenate([part.features for part in parts]), tuple(text for part in parts for text in part.captions)
    )


def drawn(sizes: Sequence[int], batch_size: int, seed: int) -> Callable[[int], np.ndarray]:
    """Returns a function from a step to the rows of its batch: each source, of these sizes, gives an equal share."""
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])

    def rows(step: int) -> np.ndarray:
        rng = np.random.default_rng([seed, step])
        source = rng.permutation(np.arange(batch_size) % len(sizes))
        return starts[source] + rng.integers(0, np.asarray(sizes)[source])

    return rows
