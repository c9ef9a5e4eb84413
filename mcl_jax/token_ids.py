"""Checks of token ids and masks. They run once per call, before it is traced, where the values can still be read."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Int


def known(x: Any) -> np.ndarray | None:
    """Returns the values of an array on the host; None if they are traced, or on devices of other processes."""
    if isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return None
    return np.asarray(x)


def check_vocabulary(
    name: str, ids: Int[Array, "*B T"], mask: Bool[Array, "*B T"] | None, vocab_size: int | None
) -> None:
    """Checks that every id under a true mask is in the vocabulary. Traced values are not checked.

    Args:
      name: name of the ids in the error.
      ids: token ids.
      mask: True on the ids to check; None checks all.
      vocab_size: V; None checks nothing.
    Raises:
      ValueError: if an id is outside [0, V); names the ids and their rows.
    """
    ids, mask = known(ids), np.True_ if mask is None else known(mask)
    if ids is None or mask is None or vocab_size is None:
        return
    outside = ((ids < 0) | (ids >= vocab_size)) & mask.astype(bool)
    if outside.any():
        rows, unknown = np.unique(np.nonzero(outside)[0]), np.unique(ids[outside])
        raise ValueError(
            f"{name} must be in the vocabulary [0, {vocab_size}) where the mask is true (everywhere without a mask), "
            f"got {unknown[:8].tolist()} in rows {rows[:8].tolist()}"
        )


def check_mask(name: str, mask: Any) -> None:
    """Raises a ValueError if a mask holds values other than true and false, or 1 and 0."""
    values = known(mask)
    if values is not None and values.dtype != bool and not np.isin(values, (0, 1)).all():
        odd = np.unique(values[~np.isin(values, (0, 1))])
        raise ValueError(f"{name} must be 1 on tokens and 0 on padding (or true and false), got {odd[:8].tolist()}")
