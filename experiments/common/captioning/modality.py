"""What pictures and clips have in common for these experiments: how records come to a tower, and a small base."""

from collections.abc import Sequence
from typing import Any, Protocol

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Key
from transformers import PreTrainedTokenizerFast

from experiments.common.perception import Inputs
from mcl_jax import data


class Modality(Protocol):
    """Pictures or clips; its repr says all that a small base depends on."""

    media: str
    """What it takes, "pictures" or "clips"."""
    placeholder: str
    """Of the small base, a token."""

    def read(self, record: data.Record) -> np.ndarray:
        """The picture or clip of a record, cut as the recipe wants it."""

    def inputs(self, processor: Any, media: Sequence[np.ndarray | None]) -> Inputs:
        """Arguments of the tower [B, ...]."""

    def augment(self, processor: Any, key: Key[Array, ""], media: np.ndarray) -> Inputs:
        """Arguments of the tower [1, ...] of a changed picture or clip."""

    def vary(self, key: Key[Array, ""], inputs: dict[str, Array]) -> dict[str, Array]:
        """Arguments of the tower, changed while the small base is trained, so that it learns less by heart."""

    def small(self, tokenizer: PreTrainedTokenizerFast) -> tuple[nn.Module, Any]:
        """A small model of the family, and its processor."""
