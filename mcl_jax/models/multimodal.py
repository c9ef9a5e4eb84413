"""What language models that see or hear share: features of a frozen tower stand in for placeholder tokens."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Bool, Float, Int

from mcl_jax.models import decoder
from mcl_jax.models.llama import Llama


class Multimodal(nn.Module):
    """A `Llama` named language_model behind a tower; see `mcl_jax.models.decoder` for its methods.

    A subclass has `encode`, what to call it with so that the tower's parameters come to exist (`encode_empty`), and
    `placeholder`, the token whose embeddings features stand in for.
    """

    @property
    def vocab_size(self) -> int:
        """V, number of tokens."""
        return self.config.text_config.vocab_size

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"] | None = None,
        features: Float[Array, "B N D"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Next-token logits in float32; `features` of `encode`, None where no row has any."""
        return self.logits(self.hidden(tokens, mask, features))

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"] | None = None,
        features: Float[Array, "B N D"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Hidden states after the last norm, feature i of a row in the place of its i-th placeholder token.

        Raises:
          ValueError: `mask` is not boolean or not [B, T].
        """
        decoder.check_inputs(tokens, mask, self.vocab_size)
        if self.is_initializing():  # tokens alone never reach the tower
            self.encode_empty()
        x, positions = self.embed(tokens, features), decoder.positions_of(tokens, mask)
        return self.language_model.hidden_embedded(x, positions, mask)

    def extend(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        positions: Int[Array, "B T"],
        past: tuple[decoder.Segment, ...] = (),
        features: Float[Array, "B N D"] | None = None,
    ) -> tuple[Float[Array, "B T D"], decoder.Segment]:
        """Hidden states of tokens at `positions` behind the segments `past`, and their own segment."""
        return self.language_model.extend_embedded(self.embed(tokens, features), mask, positions, past)

    def embed(self, tokens: Int[Array, "B T"], features: Float[Array, "B N D"] | None = None) -> Float[Array, "B T D"]:
        """Token embeddings, with features in the place of placeholder tokens."""
        x = self.language_model.embed(tokens)
        return x if features is None else decoder.merge_features(x, tokens, self.placeholder, features)

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """The output layer, in float32."""
        return self.language_model.logits(hidden)

    @staticmethod
    def unembedding(params: Mapping[str, Any]) -> Float[Array, "D V"]:
        """Output matrix from the `params` collection."""
        return Llama.unembedding(params["language_model"])
