"""Beam search and diverse beam search: decoders that compare the rows of an item; see `decoders`."""

import dataclasses
import math
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mcl_jax import options
from mcl_jax.generation.step import Step

FAR = -1e9  # score of beams that do not exist yet


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
        keep = max(2, 1 + len(step.eos) + len(step.stops)) * width  # so that W of them run on
        total, index = jax.lax.top_k(total, keep)
        parents, tokens = index // vocab, (index % vocab).astype(jnp.int32)
        candidates = _rows(beams.tokens, parents).at[:, :, step.t].set(tokens)
        ends = step.ends(tokens, candidates)

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
