"""A baseline that writes nothing itself: the captions of the training pictures that are most like a new one."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mcl_jax.metrics.text import Texts, check_answers


def nearest_captions(
    features: Float[np.ndarray, "N D"],
    known: Float[np.ndarray, "M D"],
    captions: Texts,
    num: int,
) -> list[list[str]]:
    """Copies captions of the nearest training pictures: the first `num` that differ, those of the nearest first.

    Pictures are compared by the cosine of their features; the first of two equally near ones counts as nearer.

    Args:
      features: one vector for each picture that is asked about, such as the mean over its features of a tower.
      known: one vector for each training picture.
      captions: M items, the captions of each training picture in the order in which they are taken.
      num: K, number of captions to copy for each picture.
    Returns:
      N items of K texts. If the training captions have fewer than K different texts, these are repeated.
    Raises:
      ValueError: if the shapes do not fit together, there are no training pictures, or one has no caption.
    """
    features, known = np.asarray(features, np.float64), np.asarray(known, np.float64)
    check_answers(captions)
    if features.ndim != 2 or known.shape != (len(captions), features.shape[1]):
        raise ValueError(
            f"features [N, D], known [M, D] and captions of M pictures must fit together, got {features.shape}, "
            f"{known.shape} and {len(captions)} captioned pictures"
        )
    nearest = np.argsort(-_unit(features) @ _unit(known).T, axis=1, kind="stable")
    return [_first_different(itertools.chain.from_iterable(captions[m] for m in order), num) for order in nearest]


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Returns v / |v|; a vector of zeros stays one."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1.0)


def _first_different(texts: Sequence[str] | itertools.chain, num: int) -> list[str]:
    seen: dict[str, None] = {}
    for text in texts:
        seen[text] = None
        if len(seen) == num:
            break
    return list(itertools.islice(itertools.cycle(seen), num))
