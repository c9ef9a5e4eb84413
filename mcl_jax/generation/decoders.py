"""Decoders: which token each row takes next, and when an item is finished. Frozen dataclasses of pure functions.

An item is one prompt under one hypothesis; it has `width` rows (beams or samples) that are continued together. A
decoder never sees the model: `generate` gives it next-token scores [N, W, V] for N = K·B items, and it answers with the
tokens [N, W] and, where rows are reordered, with the row that each continues.
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

FAR = -1e9  # the score of what does not exist yet


@flax.struct.dataclass
class Rows:
    """Rows that are continued on their own until they end.

    Attributes:
      tokens: chosen so far; the padding token behind the end.
      ended: whether the row has ended.
      log_likelihood: Σ log p of the tokens under the model, in nats (the end token included).
    """

    tokens: Int[Array, "N W T"]
    ended: Bool[Array, "N W"]
    log_likelihood: Float[Array, "N W"]


@flax.struct.dataclass
class Beams:
    """Running beams of each item, and the best finished ones.

    Attributes:
      tokens, scores: of the running beams; scores are Σ log p in nats.
      finished, finished_scores: the best finished beams, best first, and their scores Σ log p / length^α.
      complete: which of those are there.
      open: whether a running beam of the item could still enter.
    """

    tokens: Int[Array, "N W T"]
    scores: Float[Array, "N W"]
    finished: Int[Array, "N W T"]
    finished_scores: Float[Array, "N W"]
    complete: Bool[Array, "N W"]
    open: Bool[Array, " N"]


@flax.struct.dataclass
class Step:
    """Where a search stands.

    Attributes:
      t: number of tokens chosen before this one.
      rng: a key for each row at this step.
      eos: tokens that end a row. pad: the token behind the end. limit: T, most tokens of a row.
    """

    t: Int[Array, ""]
    rng: Key[Array, "N W"]
    eos: tuple[int, ...] = flax.struct.field(pytree_node=False)
    pad: int = flax.struct.field(pytree_node=False)
    limit: int = flax.struct.field(pytree_node=False)

    def ends(self, tokens: Int[Array, "*N"]) -> Bool[Array, "*N"]:
        """Whether a row ends with this token: at an end token, or for want of room."""
        at_eos = jnp.isin(tokens, jnp.array(self.eos, tokens.dtype)) if self.eos else jnp.zeros(tokens.shape, bool)
        return at_eos | (self.t + 1 >= self.limit)


class Independent:
    """Rows that know nothing of each other."""

    reorders = False
    on_log_probabilities = False

    def init(self, num_items: int, limit: int, pad: int) -> Rows:
        """Nothing chosen yet."""
        shape = (num_items, self.width)
        return Rows(jnp.full((*shape, limit), pad, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape))

    def advance(
        self, scores: Float[Array, "N W V"], log_p: Float[Array, "N W V"], rows: Rows, step: Step
    ) -> tuple[Int[Array, "N W"], None, Rows]:
        """(tokens, None, rows) after one more token."""
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
        """Tokens of the rows and their scores, Σ log p in nats."""
        return rows.tokens, rows.log_likelihood


@dataclasses.dataclass(frozen=True)
class Greedy(Independent):
    """The likeliest token at each step; n = 1."""

    width = 1

    def choose(self, scores: Float[Array, "N W V"], rng: Key[Array, "N W"]) -> Int[Array, "N W"]:
        return jnp.argmax(scores, axis=-1)


@dataclasses.dataclass(frozen=True)
class Sampling(Independent):
    """Tokens drawn from the filtered distribution; `num_samples` rows an item.

    Args:
      num_samples: n.
      temperature: scores are divided by it.
      top_k: keep the k likeliest; 0 keeps all.
      top_p: keep the nucleus of this mass; 1 keeps all.
      typical_p: keep the typical set of this mass; 1 keeps all.

    Raises:
      ValueError: for a value outside its range.
    """

    num_samples: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0

    def __post_init__(self):
        options.settle(self)
        options.check_integers(1, num_samples=self.num_samples)
        options.check_integers(0, top_k=self.top_k)
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}; for 0 use Greedy()")
        for name in ("top_p", "typical_p"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}")

    @property
    def width(self) -> int:
        return self.num_samples

    def filtered(self, scores: Float[Array, "*N V"]) -> Float[Array, "*N V"]:
        """Temperature, top-k, top-p and typical filtering, in this order."""
        scores = scores / self.temperature
        if self.top_k:
            scores = filters.top_k(scores, self.top_k)
        if self.top_p < 1:
            scores = filters.top_p(scores, self.top_p)
        return filters.typical(scores, self.typical_p) if self.typical_p < 1 else scores

    def choose(self, scores: Float[Array, "N W V"], rng: Key[Array, "N W"]) -> Int[Array, "N W"]:
        draw = jax.vmap(jax.vmap(jax.random.categorical))  # each row by its own key, whatever stands around it
        return draw(rng, self.filtered(scores))


class Search:
    """What beam search and diverse beam search share."""

    reorders = True
    on_log_probabilities = True  # as in transformers, penalties act on log p here, on logits elsewhere
    counts_ended = False  # whether a beam that just ended speaks for going on

    def _start(self, num_items: int, width: int, limit: int, pad: int) -> Beams:
        tokens = jnp.full((num_items, width, limit), pad, jnp.int32)
        only_first = jnp.zeros((num_items, width)).at[:, 1:].set(FAR)  # or all beams would take the same first token
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
        """(tokens, parents, beams) after one more token: of the 2W best continuations the W best running ones go on."""
        num_items, width, vocab = scores.shape
        total = (beams.scores[..., None] + scores).reshape(num_items, -1)
        keep = max(2, 1 + len(step.eos)) * width
        total, index = jax.lax.top_k(total, keep)
        parents, tokens = index // vocab, (index % vocab).astype(jnp.int32)
        candidates = _rows(beams.tokens, parents).at[:, :, step.t].set(tokens)
        ends = step.ends(tokens)

        running, best = jax.lax.top_k(jnp.where(ends, total + FAR, total), width)
        finished = self._finish(beams, candidates, total, ends, step, width)
        at = lambda x: jnp.take_along_axis(x, best, axis=1)
        beams = finished.replace(tokens=_rows(candidates, best), scores=running)
        hope = total[:, :1] if self.counts_ended else running[:, :1]
        return at(tokens), at(parents), beams.replace(open=beams.open & self._can_improve(beams, hope, step))

    def _finish(self, beams, candidates, total, ends, step, width):
        """Beams with the candidates that ended now, of which only the `width` best count, among the finished ones."""
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
        """Whether a beam of score `hope` could beat the worst finished one (transformers' heuristic)."""
        at_most = self.early_stopping == "never" and self.length_penalty > 0
        length = jnp.float32(step.limit) if at_most else (step.t + 1).astype(jnp.float32)
        worst = jnp.where(beams.complete, beams.finished_scores.min(1, keepdims=True), FAR)
        return (hope / length**self.length_penalty > worst).any(1)

    def _closed(self, beams: Beams) -> Bool[Array, " N"]:
        full = beams.complete.all(-1)
        return ~beams.open | full if self.early_stopping is True else ~beams.open


@dataclasses.dataclass(frozen=True)
class BeamSearch(Search):
    """The `num_return` best of `num_beams` beams, by Σ log p / length^length_penalty.

    Args:
      num_beams: W.
      length_penalty: α; above 0 it favours long answers.
      early_stopping: True ends an item with its W-th finished beam; False when that is unlikely to get better; "never"
        when it cannot.
      num_return: n answers an item, best first.

    Raises:
      ValueError: for a value outside its range.

    Source: Hugging Face transformers 5.23, to which it is equal token for token.
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
        return self.num_beams

    def init(self, num_items: int, limit: int, pad: int) -> Beams:
        """One empty beam."""
        return self._start(num_items, self.num_beams, limit, pad)

    def advance(self, scores: Float[Array, "N W V"], log_p: Float[Array, "N W V"], beams: Beams, step: Step) -> Any:
        """(tokens, parents, beams) after one more token."""
        return self._advance(scores, beams, step)

    def done(self, beams: Beams) -> Bool[Array, ""]:
        """Whether no item can get better."""
        return self._closed(beams).all()

    def result(self, beams: Beams) -> tuple[Int[Array, "N n T"], Float[Array, "N n"]]:
        """The best finished beams and their scores."""
        return beams.finished[:, : self.num_return], beams.finished_scores[:, : self.num_return]


@dataclasses.dataclass(frozen=True)
class DiverseBeamSearch(Search):
    """Beam search in groups, each paying `diversity_penalty` for every earlier group's beam with the same token.

    Args:
      num_beams: W, over all groups.
      num_groups: G; divides W.
      diversity_penalty: λ.
      length_penalty, early_stopping, num_return: as in `BeamSearch`; the best of all groups are returned.

    Raises:
      ValueError: for a value outside its range.

    Source: Vijayakumar et al., arXiv 1610.02424; equal token for token to Hugging Face transformers 4.56.2.
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
        if not math.isfinite(self.diversity_penalty):
            raise ValueError(f"diversity_penalty must be finite, got {self.diversity_penalty}")
        _check_search(self)
        if self.num_beams % self.num_groups:
            raise ValueError(f"num_groups={self.num_groups} must divide num_beams={self.num_beams}")

    @property
    def width(self) -> int:
        return self.num_beams

    def init(self, num_items: int, limit: int, pad: int) -> tuple[Beams, ...]:
        """One empty beam in each group."""
        one = lambda: self._start(num_items, self.num_beams // self.num_groups, limit, pad)
        return tuple(one() for _ in range(self.num_groups))

    def advance(
        self, scores: Float[Array, "N W V"], log_p: Float[Array, "N W V"], groups: tuple[Beams, ...], step: Step
    ) -> Any:
        """(tokens, parents, groups) after one more token."""
        size = self.num_beams // self.num_groups
        tokens, parents, after, used = [], [], [], jnp.zeros((scores.shape[0], 1, scores.shape[-1]))
        for g, beams in enumerate(groups):
            of_group = scores[:, g * size : (g + 1) * size] - self.diversity_penalty * used
            token, parent, advanced = self._advance(of_group, beams, step)
            token = jnp.where(self._closed(beams)[:, None], step.pad, token)
            used = used + jax.nn.one_hot(token, scores.shape[-1]).sum(1, keepdims=True)
            tokens, parents, after = [*tokens, token], [*parents, parent + g * size], [*after, advanced]
        return jnp.concatenate(tokens, 1), jnp.concatenate(parents, 1), tuple(after)

    def done(self, groups: tuple[Beams, ...]) -> Bool[Array, ""]:
        """Whether no group of any item can get better."""
        return jnp.stack([self._closed(beams) for beams in groups]).all()

    def result(self, groups: tuple[Beams, ...]) -> tuple[Int[Array, "N n T"], Float[Array, "N n"]]:
        """The best finished beams of all groups, and their scores."""
        scores, best = jax.lax.top_k(jnp.concatenate([g.finished_scores for g in groups], 1), self.num_return)
        return _rows(jnp.concatenate([g.finished for g in groups], 1), best), scores


Decoder = Greedy | Sampling | BeamSearch | DiverseBeamSearch


def _rows(x: Int[Array, "N W T"], index: Int[Array, "N w"]) -> Int[Array, "N w T"]:
    return jnp.take_along_axis(x, index[..., None], axis=1)


def _check_search(decoder: BeamSearch | DiverseBeamSearch) -> None:
    if decoder.num_return > decoder.num_beams:
        raise ValueError(f"num_return={decoder.num_return} is more than num_beams={decoder.num_beams}")
    if not math.isfinite(decoder.length_penalty):
        raise ValueError(f"length_penalty must be finite, got {decoder.length_penalty}")
    if not isinstance(decoder.early_stopping, bool) and decoder.early_stopping != "never":
        raise ValueError(f'early_stopping must be True, False or "never", got {decoder.early_stopping!r}')
