"""Common parts of models that take images or audio: features of a frozen tower replace placeholder tokens."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Bool, Float, Int

from mcl_jax.models import decoder
from mcl_jax.models.llama import Llama


class Multimodal(nn.Module):
    """A tower and a `Llama` named language_model; see `mcl_jax.models.decoder` for its methods.

    A subclass defines `encode`; `encode_empty`, which calls it on an empty input to create the tower's parameters; and
    `placeholder`, the token that features replace.
    """

    @property
    def vocab_size(self) -> int:
        """V, number of tokens."""
        return self.config.text_config.vocab_size

    @property
    def feature_size(self) -> int:
        """D, width of the features."""
        return self.config.text_config.hidden_size

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"] | None = None,
        features: Float[Array, "B N D"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Returns next-token logits in float32; `features` come from `encode`, None if no row has any."""
        return self.logits(self.hidden(tokens, mask, features))

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"] | None = None,
        features: Float[Array, "B N D"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Returns the hidden states after the last norm; feature i of a row replaces its i-th placeholder token.

        Raises:
          ValueError: if `mask` is not boolean or not [B, T].
        """
        return self.language_model.hidden_embedded(*self.embedded(tokens, mask, features), mask)

    def embedded(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"] | None,
        features: Float[Array, "B N D"] | None,
    ) -> tuple[Float[Array, "B T D"], Int[Array, "B T"]]:
        """Returns the embeddings of `embed`, and positions, after checks; raises as `hidden` does."""
        decoder.check_inputs(tokens, mask, self.vocab_size)
        if self.is_initializing():  # tokens alone never reach the tower
            self.encode_empty()
        return self.embed(tokens, features), decoder.positions_of(tokens, mask)

    def extend(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        positions: Int[Array, "B T"],
        past: tuple[decoder.Segment, ...] = (),
        features: Float[Array, "B N D"] | None = None,
    ) -> tuple[Float[Array, "B T D"], decoder.Segment]:
        """Returns the hidden states of tokens at `positions` that follow the segments `past`, and their own segment."""
        return self.language_model.extend_embedded(self.embed(tokens, features), mask, positions, past)

    def embed(self, tokens: Int[Array, "B T"], features: Float[Array, "B N D"] | None = None) -> Float[Array, "B T D"]:
        """Returns token embeddings, with features in place of placeholder tokens."""
        x = self.language_model.embed(tokens)
        return x if features is None else decoder.merge_features(x, tokens, self.placeholder, features)

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Applies the output layer, in float32."""
        return self.language_model.logits(hidden)

    @staticmethod
    def unembedding(params: Mapping[str, Any]) -> Float[Array, "D V"]:
        """Returns the output matrix from the `params` collection."""
        return Llama.unembedding(params["language_model"])
