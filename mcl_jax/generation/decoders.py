"""Decoders choose the next token of each row and decide when an item is finished. They are frozen dataclasses.

An item is one prompt under one hypothesis; it has `width` rows (beams or samples) that are continued together. A
decoder never sees the model: `generate` gives it next-token scores [N, W, V] for N = K·B items. It returns the tokens
[N, W] and either the row that each of them continues, or None if rows keep their places.
"""

import dataclasses
import math
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mcl_jax import options
from mcl_jax.generation import filters

FAR = -1e9  # score of beams that do not exist yet


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


@flax.struct.dataclass
class Beams:
    """Running beams and best finished beams of each item.

    Attributes:
      tokens: tokens of the running beams.
      scores: Σ log p of the running beams, in nats.
      finished: the best finished beams, best first.
      finished_scores: their scores, Σ log p / length^α.
      complete: which entries of `finished` exist.
      open: whether a running beam of the item could still become one of the best.
    """

    tokens: Int[Array, "N W T"]
    scores: Float[Array, "N W"]
    finished: Int[Array, "N W T"]
    finished_scores: Float[Array, "N W"]
    complete: Bool[Array, "N W"]
    open: Bool[Array, " N"]


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
        rows = Rows(
            rows.tokens.at[:, :, step.t].set(tokens),
            rows.ended | step.ends(tokens),
            rows.log_likelihood + jnp.where(rows.ended, 0.0, gain),
        )
        return tokens, None, rows

    def done(self, rows: Rows) -> Bool[Array, ""]:
        """Whether all rows have ended."""
        return rows.ended.all()

    def result(self, rows: Rows) -> tuple[Int[Array, "N n T"], Float[Array, "N n"]]:
        """Returns the tokens of the rows and their scores, Σ log p in nats."""
        return rows.tokens, rows.log_likelihood


@dataclasses.dataclass(frozen=True)
class Greedy(Independent):
    """Takes the most probable token at each step; n = 1."""

    width = 1

    def choose(self, scores: Float[Array, "N W V"], rng: Key[Array, "N W"]) -> Int[Array, "N W"]:
        """Returns the token with the highest score in each row."""
        return jnp.argmax(scores, axis=-1)


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


class Search:
    """Common parts of beam search and diverse beam search."""

    on_log_probabilities = True  # as in transformers, penalties act on log p here, and on logits elsewhere
    counts_ended = False  # whether a beam that has just ended counts when deciding whether to continue

    def _start(self, num_items: int, width: int, limit: int, pad: int) -> Beams:
        tokens = jnp.full((num_items, width, limit), pad, jnp.int32)
        only_first = jnp.zeros((num_items, width)).at[:, 1:].set(FAR)  # else all beams would take the same first token
        return Beams(
            tokens,
            only_first,
            tokens,
            jnp.full((num_items, width), FAR),
            jnp.zeros((num_items, width), bool),
            jnp.ones(num_items, bool),
        )

    def _advance(
        self, scores: Float[Array, "N W V"], beams: Beams, step: Step
    ) -> tuple[Int[Array, "N W"], Int[Array, "N W"], Beams]:
        """Chooses one more token and returns (tokens, parents, beams): of the 2W best continuations, W keep running."""
        num_items, width, vocab = scores.shape
        total = (beams.scores[..., None] + scores).reshape(num_items, -1)
        keep = max(2, 1 + len(step.eos)) * width
        total, index = jax.lax.top_k(total, keep)
        parents, tokens = index // vocab, (index % vocab).astype(jnp.int32)
        candidates = _rows(beams.tokens, parents).at[:, :, step.t].set(tokens)
        ends = step.ends(tokens)

        running, best = jax.lax.top_k(jnp.where(ends, total + FAR, total), width)
        finished = self._finish(beams, candidates, total, ends, step, width)
        tokens, parents = (jnp.take_along_axis(x, best, axis=1) for x in (tokens, parents))
        beams = finished.replace(tokens=_rows(candidates, best), scores=running)
        hope = total[:, :1] if self.counts_ended else running[:, :1]
        return tokens, parents, beams.replace(open=beams.open & self._can_improve(beams, hope, step))

    def _finish(self, beams, candidates, total, ends, step, width):
        """Adds the candidates that ended now to the finished beams; only the `width` best candidates count."""
        new = ends & (jnp.arange(total.shape[1]) < width)[None]
        closed = ~beams.open | (beams.complete.all(1) if self.early_stopping is True else False)
        new_scores = total / (step.t + 1).astype(jnp.float32) ** self.length_penalty
        new_scores = new_scores + FAR * (closed[:, None].astype(jnp.float32) + (~new).astype(jnp.float32))
        scores, best = jax.lax.top_k(jnp.concatenate([beams.finished_scores, new_scores], axis=1), width)
        return beams.replace(
            finished=_rows(jnp.concatenate([beams.finished, candidates], axis=1), best),
            finished_scores=scores,
            complete=jnp.take_along_axis(jnp.concatenate([beams.complete, new], axis=1), best, axis=1),
        )

    def _can_improve(self, beams: Beams, hope: Float[Array, "N 1"], step: Step) -> Bool[Array, " N"]:
        """Whether a beam with score `hope` could beat the worst finished one (transformers' heuristic)."""
        at_most = self.early_stopping == "never" and self.length_penalty > 0
        length = jnp.float32(step.limit) if at_most else (step.t + 1).astype(jnp.float32)
        worst = jnp.where(beams.complete, beams.finished_scores.min(1, keepdims=True), FAR)
        return (hope / length**self.length_penalty > worst).any(1)

    def _closed(self, beams: Beams) -> Bool[Array, " N"]:
        full = beams.complete.all(-1)
        return ~beams.open | full if self.early_stopping is True else ~beams.open


@dataclasses.dataclass(frozen=True)
class BeamSearch(Search):
    """Returns the `num_return` best of `num_beams` beams, ranked by Σ log p / length^length_penalty.

    Args:
      num_beams: W.
      length_penalty: α; a value above 0 favours long answers.
      early_stopping: when to end an item: True at its W-th finished beam; False when an improvement is unlikely;
        "never" when an improvement is impossible.
      num_return: n, answers per item, best first.
    Raises:
      ValueError: if a value is outside its range.

    Source: Hugging Face transformers 5.23; the tokens are identical.
    """

    num_beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return: int = 1

    def __post_init__(self):
        options.settle(self)
        options.check_integers(1, num_beams=self.num_beams, num_return=self.num_return)
        _check_search(self)

    @property
    def width(self) -> int:
        """Rows per item."""
        return self.num_beams

    def init(self, num_items: int, limit: int, pad: int) -> Beams:
        """Returns one empty beam per item."""
        return self._start(num_items, self.num_beams, limit, pad)

    def advance(self, scores: Float[Array, "N W V"], log_p: Float[Array, "N W V"], beams: Beams, step: Step) -> Any:
        """Chooses one more token; returns the tokens, the parent rows and the beams."""
        return self._advance(scores, beams, step)

    def done(self, beams: Beams) -> Bool[Array, ""]:
        """Whether no item can improve."""
        return self._closed(beams).all()

    def result(self, beams: Beams) -> tuple[Int[Array, "N n T"], Float[Array, "N n"]]:
        """Returns the best finished beams and their scores."""
        return beams.finished[:, : self.num_return], beams.finished_scores[:, : self.num_return]


@dataclasses.dataclass(frozen=True)
class DiverseBeamSearch(Search):
    """Beam search in groups. A group pays `diversity_penalty` for each beam of earlier groups with the same token.

    Args:
      num_beams: W, over all groups.
      num_groups: G; must divide W.
      diversity_penalty: λ.
      length_penalty, early_stopping, num_return: as in `BeamSearch`; the best answers of all groups are returned.
    Raises:
      ValueError: if a value is outside its range.

    Source: Vijayakumar et al., arXiv 1610.02424; the tokens are those of Hugging Face transformers 4.56.2.
    """

    counts_ended = True  # as in that version

    num_beams: int = 4
    num_groups: int = 2
    diversity_penalty: float = 0.5
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return: int = 1

    def __post_init__(self):
        options.settle(self)
        options.check_integers(1, num_beams=self.num_beams, num_groups=self.num_groups, num_return=self.num_return)
        options.check_numbers(diversity_penalty=self.diversity_penalty)
        if not math.isfinite(self.diversity_penalty):
            raise ValueError(f"diversity_penalty must be finite, got {self.diversity_penalty}")
        _check_search(self)
        if self.num_beams % self.num_groups:
            raise ValueError(f"num_groups={self.num_groups} must divide num_beams={self.num_beams}")

    @property
    def width(self) -> int:
        """Rows per item."""
        return self.num_beams

    def init(self, num_items: int, limit: int, pad: int) -> tuple[Beams, ...]:
        """Returns one empty beam per item in each group."""
        size = self.num_beams // self.num_groups
        return tuple(self._start(num_items, size, limit, pad) for _ in range(self.num_groups))

    def advance(
        self, scores: Float[Array, "N W V"], log_p: Float[Array, "N W V"], groups: tuple[Beams, ...], step: Step
    ) -> Any:
        """Chooses one more token; returns the tokens, the parent rows and the groups."""
        size = self.num_beams // self.num_groups
        tokens, parents, after, used = [], [], [], jnp.zeros((scores.shape[0], 1, scores.shape[-1]))
        for g, beams in enumerate(groups):
            penalised = scores[:, g * size : (g + 1) * size] - self.diversity_penalty * used
            token, parent, advanced = self._advance(penalised, beams, step)
            token = jnp.where(self._closed(beams)[:, None], step.pad, token)
            used = used + jax.nn.one_hot(token, scores.shape[-1]).sum(1, keepdims=True)
            tokens, parents, after = [*tokens, token], [*parents, parent + g * size], [*after, advanced]
        return jnp.concatenate(tokens, 1), jnp.concatenate(parents, 1), tuple(after)

    def done(self, groups: tuple[Beams, ...]) -> Bool[Array, ""]:
        """Whether no group of any item can improve."""
        return jnp.stack([self._closed(beams) for beams in groups]).all()

    def result(self, groups: tuple[Beams, ...]) -> tuple[Int[Array, "N n T"], Float[Array, "N n"]]:
        """Returns the best finished beams of all groups, and their scores."""
        scores, best = jax.lax.top_k(jnp.concatenate([g.finished_scores for g in groups], 1), self.num_return)
        return _rows(jnp.concatenate([g.finished for g in groups], 1), best), scores


Decoder = Greedy | Sampling | BeamSearch | DiverseBeamSearch


def _rows(x: Int[Array, "N W T"], index: Int[Array, "N w"]) -> Int[Array, "N w T"]:
    return jnp.take_along_axis(x, index[..., None], axis=1)


def _check_search(decoder: BeamSearch | DiverseBeamSearch) -> None:
    if decoder.num_return > decoder.num_beams:
        raise ValueError(f"num_return must be at most num_beams={decoder.num_beams}, got {decoder.num_return}")
    options.check_numbers(length_penalty=decoder.length_penalty)
    if not math.isfinite(decoder.length_penalty):
        raise ValueError(f"length_penalty must be finite, got {decoder.length_penalty}")
    if not isinstance(decoder.early_stopping, bool) and decoder.early_stopping != "never":
        raise ValueError(f'early_stopping must be True, False or "never", got {decoder.early_stopping!r}')
