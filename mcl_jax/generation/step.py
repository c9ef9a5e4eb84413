"""One step of a search: what a decoder is told besides the scores."""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key


@flax.struct.dataclass
class Step:
    """One step of a search.

    Attributes:
      t: number of tokens chosen before this step.
      rng: random key of each row for this step.
      eos: tokens that end a row.
      pad: token after the end.
      limit: T, the largest number of tokens of a row.
      stops: sequences of tokens that end a row, too.
    """

    t: Int[Array, ""]
    rng: Key[Array, "N W"]
    eos: tuple[int, ...] = flax.struct.field(pytree_node=False)
    pad: int = flax.struct.field(pytree_node=False)
    limit: int = flax.struct.field(pytree_node=False)
    stops: tuple[tuple[int, ...], ...] = flax.struct.field(pytree_node=False, default=())

    def ends(self, tokens: Int[Array, "*N"], rows: Int[Array, "*N T"] | None = None) -> Bool[Array, "*N"]:
        """Whether a row ends with this token: at an end token, with a stop sequence, or since it reached the limit.

        Args:
          tokens: the tokens of this step.
          rows: all tokens of the rows, with those of this step at t. Stop sequences need them.
        Raises:
          ValueError: if there are stop sequences, but no rows.
        """
        at_eos = jnp.isin(tokens, jnp.array(self.eos, tokens.dtype)) if self.eos else jnp.zeros(tokens.shape, bool)
        if self.stops:
            if rows is None:
                raise ValueError("stop strings need a decoder that passes its rows to Step.ends, got one without")
            at_eos |= jax.lax.dynamic_index_in_dim(completed(rows, self.stops), self.t, axis=-1, keepdims=False)
        return at_eos | (self.t + 1 >= self.limit)


def completed(tokens: Int[Array, "*N T"], sequences: Sequence[Sequence[int]]) -> Bool[Array, "*N T"]:
    """Whether one of the sequences ends at each position."""
    found = jnp.zeros(tokens.shape, bool)
    for sequence in sequences:
        match = jnp.ones(tokens.shape, bool)
        for back, token in enumerate(reversed(sequence)):
            before = [(0, 0)] * (tokens.ndim - 1) + [(back, 0)]
            match &= jnp.pad(tokens == token, before)[..., : tokens.shape[-1]]
        found |= match
    return found
