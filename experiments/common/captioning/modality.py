"""The interface of pictures and clips: the inputs of a tower from records, and a small base."""

from collections.abc import Sequence
from typing import Any, Protocol

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Key
from transformers import PreTrainedTokenizerFast

from experiments.common.perception import Inputs
from mcl_jax import data


class Modality(Protocol):
    """Pictures or clips. Its repr names everything that a small base depends on.

    Attributes:
      media: "pictures" or "clips".
      placeholder: the token of the small base that stands for a picture or clip.
      question: the message of a user in a chat, if --prompt gives none.
    """

    media: str
    placeholder: str
    question: str

    def read(self, record: data.Record) -> np.ndarray:
        """Reads the picture or clip of a record; crops it if the recipe says so."""

    def prepared(self, processor: Any) -> Any:
        """Returns the processor of a base with the settings of the recipe."""

    def inputs(self, processor: Any, media: Sequence[np.ndarray | None]) -> Inputs:
        """Makes the arguments of the tower, [B, ...] each."""

    def limits(self, processor: Any) -> dict[str, float]:
        """Returns how media are limited, as in `mcl_jax.answer.Recipe`: `seconds` and `window`, or `padded`."""

    def augment(self, processor: Any, key: Key[Array, ""], media: np.ndarray) -> Inputs:
        """Makes the arguments of the tower, [1, ...] each, for an augmented picture or clip."""

    def vary(self, key: Key[Array, ""], inputs: dict[str, Array]) -> dict[str, Array]:
        """Augments the arguments of the tower while the small base is trained, so that it overfits less."""

    def small(self, tokenizer: PreTrainedTokenizerFast) -> tuple[nn.Module, Any]:
        """Makes a small model of the family and its processor."""
