"""Decoders choose the next token of each row and decide when an item is finished. They are frozen dataclasses.

An item is one prompt under one hypothesis; it has `width` rows (beams or samples) that are continued together. A
decoder never sees the model: `generate` gives it next-token scores [N, W, V] for N = K·B items. It returns the tokens
[N, W] and either the row that each of them continues, or None if rows keep their places.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mcl_jax import options
from mcl_jax.generation import filters
from mcl_jax.generation.beams import BeamSearch, DiverseBeamSearch
from mcl_jax.generation.step import Step

BLOCK = 128  # scores whose maximum `likeliest` takes at once


@flax.struct.dataclass
class Rows:
    """Rows that are continued independently until they end.

    Attributes:
      tokens: tokens chosen so far; padding tokens after the end.
      ended: whether the row has ended.
      log_likelihood: Σ log p of the tokens under the model, in nats (including the end token).
    """

    tokens: Int[Array, "N W T"]
    ended: Bool[Array, "N W"]
    log_likelihood: Float[Array, "N W"]


class Independent:
    """Decoding of rows that do not depend on each other."""

    on_log_probabilities = False

    def init(self, num_items: int, limit: int, pad: int) -> Rows:
        """Returns rows without tokens."""
        shape = (num_items, self.width)
        return Rows(jnp.full((*shape, limit), pad, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape))

    def advance(
        self, scores: Float[Array, "N W V"], log_p: Float[Array, "N W V"], rows: Rows, step: Step
    ) -> tuple[Int[Array, "N W"], None, Rows]:
        """Chooses one more token; returns the tokens, None (rows are not reordered) and the rows."""
        tokens = jnp.where(rows.ended, step.pad, self.choose(scores, step.rng)).astype(jnp.int32)
        gain = jnp.take_along_axis(log_p, tokens[..., None], -1)[..., 0]
        so_far = rows.tokens.at[:, :, step.t].set(tokens)
        rows = Rows(
            so_far,
            rows.ended | step.ends(tokens, so_far),
            rows.log_likelihood + jnp.where(rows.ended, 0.0, gain),
        )
        return tokens, None, rows

    def done(self, rows: Rows) -> Bool[Array, ""]:
        """Whether all rows have ended."""
        return rows.ended.all()

    def result(self, rows: Rows) -> tuple[Int[Array, "N n T"], Float[Array, "N n"]]:
        """Returns the tokens of the rows and their scores, Σ log p in nats."""
        return rows.tokens, rows.log_likelihood


def likeliest(scores: Float[Array, "*N V"]) -> Int[Array, "*N"]:
    """Returns the first of the tokens with the highest score, as `jnp.argmax` does.

    XLA on a CPU finds a maximum with vector instructions, but not its place. So the maxima of blocks are found first,
    and then the place of the highest one among them, and in its block.
    """
    size = min(BLOCK, scores.shape[-1])
    num_blocks, rest = divmod(scores.shape[-1], size)
    blocks = scores[..., : num_blocks * size].reshape(*scores.shape[:-1], num_blocks, size).max(-1)
    best = blocks.max(-1, keepdims=True)
    if rest:
        best = jnp.maximum(best, scores[..., -rest:].max(-1, keepdims=True))
    start = jnp.minimum(_first(blocks, best) * size, scores.shape[-1] - size)  # the rest is part of the last block
    index = start[..., None] + _places((*start.shape, size))
    return start + _first(jnp.take_along_axis(scores, index, axis=-1), best)


def _first(x: Float[Array, "*N M"], best: Float[Array, "*N 1"]) -> Int[Array, "*N"]:
    """Returns the first place that is not below `best`, or M if there is none."""
    return jnp.where(x < best, x.shape[-1], _places(x.shape)).min(-1)  # not x == best, which no NaN is


def _places(shape: tuple[int, ...]) -> Int[Array, "*N M"]:
    return jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)


@dataclasses.dataclass(frozen=True)
class Greedy(Independent):
    """Takes the most probable token at each step; n = 1."""

    width = 1

    def choose(self, scores: Float[Array, "N W V"], rng: Key[Array, "N W"]) -> Int[Array, "N W"]:
        """Returns the token with the highest score in each row."""
        return likeliest(scores)


@dataclasses.dataclass(frozen=True)
class Sampling(Independent):
    """Draws tokens from the filtered distribution.

    Args:
      num_samples: n, samples per item.
      temperature: divisor of the scores.
      top_k: keep the k most probable tokens; 0 keeps all.
      top_p: keep the nucleus of this probability mass; 1 keeps all.
      typical_p: keep the typical set of this probability mass; 1 keeps all.
      min_p: keep the tokens with at least this share of the highest probability; 0 keeps all.
    Raises:
      ValueError: if a value is outside its range.
    """

    num_samples: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        options.settle(self)
        options.check_integers(1, num_samples=self.num_samples)
        options.check_integers(0, top_k=self.top_k)
        names = ("temperature", "top_p", "typical_p", "min_p")
        options.check_numbers(**{name: getattr(self, name) for name in names})
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}; use Greedy() in place of 0")
        for name in ("top_p", "typical_p"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1], got {self.min_p}")

    @property
    def width(self) -> int:
        """Rows per item."""
        return self.num_samples

    def filtered(self, scores: Float[Array, "*N V"]) -> Float[Array, "*N V"]:
        """Applies temperature, top-k, top-p, min-p and typical filtering, in this order."""
        scores = scores / self.temperature
        if self.top_k:
            scores = filters.top_k(scores, self.top_k)
        if self.top_p < 1:
            scores = filters.top_p(scores, self.top_p)
        if self.min_p:
            scores = filters.min_p(scores, self.min_p)
        return filters.typical(scores, self.typical_p) if self.typical_p < 1 else scores

    def choose(self, scores: Float[Array, "N W V"], rng: Key[Array, "N W"]) -> Int[Array, "N W"]:
        """Draws a token for each row."""
        draw = jax.vmap(jax.vmap(jax.random.categorical))  # each row uses its own key, so other rows do not matter
        return draw(rng, self.filtered(scores))


Decoder = Greedy | Sampling | BeamSearch | DiverseBeamSearch
