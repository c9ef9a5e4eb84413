"""One step of a search: what a decoder is told besides the scores."""

import flax.struct
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
    """

    t: Int[Array, ""]
    rng: Key[Array, "N W"]
    eos: tuple[int, ...] = flax.struct.field(pytree_node=False)
    pad: int = flax.struct.field(pytree_node=False)
    limit: int = flax.struct.field(pytree_node=False)

    def ends(self, tokens: Int[Array, "*N"]) -> Bool[Array, "*N"]:
        """Whether a row ends with this token: at an end token, or because it has reached the limit."""
        at_eos = jnp.isin(tokens, jnp.array(self.eos, tokens.dtype)) if self.eos else jnp.zeros(tokens.shape, bool)
        return at_eos | (self.t + 1 >= self.limit)
