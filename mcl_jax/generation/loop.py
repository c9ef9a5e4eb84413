"""The compiled loop: prompts once, and then a token for every row at each step."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mcl_jax import hypotheses
from mcl_jax.generation import choosing, filters
from mcl_jax.generation.decoders import Decoder
from mcl_jax.generation.limits import Generation, Limits
from mcl_jax.generation.step import Step, completed
from mcl_jax.models.decoder import Segment, positions_of

FIRST_ROOM, GROWTH = 64, 4  # slots


def rooms(new_tokens: int) -> list[int]:
    """Returns how many slots the loop has for keys and values of T new tokens, at first and each time that it grows.

    Every step reads all slots, also empty ones. With one room for all tokens, the first would cost what the last do.
    Each room takes as long to compile as the first, and is left out if it holds more than half of the tokens, but not
    all.
    """
    slots = [FIRST_ROOM]
    while slots[-1] < new_tokens:
        slots.append(GROWTH * slots[-1])
    return [room for room in slots if 2 * room <= new_tokens] + [new_tokens]


@flax.struct.dataclass
class Carry:
    """The state of the loop.

    Attributes:
      t: number of tokens chosen.
      last: the tokens chosen last.
      seen: whether each token of the vocabulary occurred, for `repetition_penalty`; else None.
      history: the tokens of prompt and continuation, for `no_repeat_ngram_size` n: n − 1 times `filters.NONE`, then
        P + T places, which hold `filters.NONE` for padding and for tokens to come; else None.
      search: the state of the decoder.
      kept: keys and values of the continuations without their last two tokens, as `_squeezed` makes them; None at the
        end of `whole`.
      latest: keys and values of the token before the last, likewise. The next step writes them into `kept` before it
        reads that: if they were written after it was read, XLA on a CPU would copy all of it.
      broken: whether log p of the item was NaN at some step.
    """

    t: Int[Array, ""]
    last: Int[Array, "N W"]
    seen: Bool[Array, "N W V"] | None
    history: Int[Array, "N W H"] | None
    search: Any
    kept: Segment | None
    latest: Segment | None
    broken: Bool[Array, " N"]


class Loop:
    """Decoding of the prompts of one device along the data axis, for use under `jax.jit`.

    Args:
      model, decoder, limits: as in `decode`.
      shared: params and adapters.
      batch: tokens [B, P], mask [B, P], features, keys [B], and the chosen hypotheses [B, m] or None.
    """

    def __init__(self, model: hypotheses.AdaptedModule, decoder: Decoder, limits: Limits, shared: Any, batch: Any):
        (params, adapters), (self.tokens, self.mask, self.features, keys, self.chosen) = shared, batch
        self.decoder, self.limits, (B, self.P) = decoder, limits, self.tokens.shape
        if self.chosen is None:
            self.numbers = _every(hypotheses.count(adapters), B)
            self.extend = functools.partial(_extend, model, params, adapters)
        else:
            self.numbers = self.chosen.T
            chosen = hypotheses.select(adapters, self.numbers)
            self.extend = functools.partial(choosing.extend_chosen, model, params, chosen, B)
        self.sizes = len(self.numbers), B, decoder.width
        self.keys = _row_keys(keys, self.numbers, decoder.width)
        self.lengths = jnp.repeat(self.mask.sum(1), decoder.width)  # [R], R = B·W rows in the order (B, W)

    def whole(self) -> tuple[Generation, Bool[Array, "K B"]]:
        """Decodes to the end; returns what `finish` does."""
        prompt, carry = self.start()
        return self.finish(self._rest(prompt, carry, rooms(self.limits.max_new_tokens)))

    def start(self) -> tuple[Segment, Carry]:
        """Runs the prompts and chooses the first token; returns the prompts' keys and values, and the state."""
        (K, B, W), T = self.sizes, self.limits.max_new_tokens
        prompts = jnp.broadcast_to(self.tokens[None], (K, B, self.P))
        positions = positions_of(self.tokens, self.mask)
        logits, prompt = self.extend(prompts, self.mask, positions, (), **self.features)
        vocab = logits.shape[-1]
        scores = jnp.broadcast_to(logits[:, :, -1].reshape(K * B, 1, vocab), (K * B, W, vocab))
        seen = _seen(self.tokens, self.mask, vocab, K, W) if self.limits.repetition_penalty != 1.0 else None
        history = self._history() if self.limits.no_repeat_ngram_size else None
        search, none = self.decoder.init(K * B, T, self.limits.pad_token_id), jnp.zeros((K * B, W), jnp.int32)
        kept, latest = (_squeezed(_empty(prompt, B * W, slots)) for slots in (rooms(T)[0], 1))
        before = Carry(jnp.int32(0), none, seen, history, search, kept, latest, jnp.zeros(K * B, bool))
        return prompt, self._choose(scores, prompt, before)

    def _rest(self, prompt: Segment, carry: Carry, slots: Sequence[int]) -> Carry:
        """Decodes to the end, in rooms of so many slots, and makes none that is not needed.

        Returns:
          The state without keys and values.
        """
        carry = self.advance(prompt, grown(carry, slots[0]), self.limits.max_new_tokens)
        result = lambda carry: carry.replace(kept=None, latest=None)
        if len(slots) == 1:
            return result(carry)
        return jax.lax.cond(self.done(carry), result, lambda carry: self._rest(prompt, carry, slots[1:]), carry)

    def advance(self, prompt: Segment, carry: Carry, until: Int[Array, ""] | int) -> Carry:
        """Chooses tokens until there are `until`, at most T, or no room for more, or the decoder is done."""
        until = jnp.minimum(until, carry.kept.mask.shape[-1] + 2)  # the last two tokens are not in the slots

        def unfinished(carry):
            return (carry.t < until) & ~self.done(carry)

        return jax.lax.while_loop(unfinished, functools.partial(self._step, prompt), carry)

    def done(self, carry: Carry) -> Bool[Array, ""]:
        """Whether there is nothing left to choose."""
        return (carry.t >= self.limits.max_new_tokens) | self.decoder.done(carry.search)

    def finish(self, carry: Carry) -> tuple[Generation, Bool[Array, "K B"]]:
        """Returns the continuations, and whether the model's log p was NaN."""
        K, B, _ = self.sizes
        continuations, scores = self.decoder.result(carry.search)
        scores = jnp.where(carry.broken[:, None], jnp.nan, scores)
        of_items = Generation(continuations, scores, _lengths(continuations, self.limits))
        of_items = jax.tree.map(lambda x: x.reshape(K, B, *x.shape[1:]), of_items)
        numbers = None if self.chosen is None else self.numbers
        return of_items.replace(hypothesis=numbers), carry.broken.reshape(K, B)

    def _step(self, prompt: Segment, carry: Carry) -> Carry:
        """Runs the last token of each row, and chooses the next."""
        K, B, W = self.sizes
        kept = _write(carry.kept, carry.latest, carry.t - 2)
        past = (prompt, _unsqueezed(kept, prompt, B * W))
        here = (self.lengths + carry.t - 1)[:, None]
        logits, latest = self.extend(carry.last.reshape(K, B * W, 1), jnp.ones((B * W, 1), bool), here, past)
        carry = carry.replace(kept=kept, latest=_squeezed(latest.replace(memory=None)))
        return self._choose(logits[:, :, 0].reshape(K * B, W, -1), prompt, carry)

    def _choose(self, scores: Float[Array, "N W V"], prompt: Segment, carry: Carry) -> Carry:
        """Chooses the next token of each row by its scores."""
        (K, B, W), T, limits = self.sizes, self.limits.max_new_tokens, self.limits
        step = Step(
            carry.t, _folded(self.keys, carry.t), limits.eos_token_id, limits.pad_token_id, T, limits.stop_sequences
        )
        scores, log_p = self._constrained(scores, carry)
        broken = carry.broken | jnp.isnan(log_p[..., 0]).any(-1)  # one NaN score makes all of log p NaN
        chosen, parents, search = self.decoder.advance(scores, log_p, carry.search, step)
        (seen, history), kept, latest = (carry.seen, carry.history), carry.kept, carry.latest
        if parents is not None:
            of_parents = lambda x: jnp.take_along_axis(x, parents[..., None], axis=1)
            seen, history = jax.tree.map(of_parents, (seen, history))
            whole = (_unsqueezed(segment, prompt, B * W) for segment in (kept, latest))
            kept, latest = (_squeezed(_reorder(segment, parents.reshape(K, B, W))) for segment in whole)
        if seen is not None:
            seen = seen | jax.nn.one_hot(chosen, seen.shape[-1], dtype=bool)
        if history is not None:
            history = history.at[:, :, self._place(carry.t)].set(chosen)
        last = jnp.clip(chosen, 0, scores.shape[-1] - 1)  # the padding token may be outside the vocabulary
        return Carry(carry.t + 1, last, seen, history, search, kept, latest, broken)

    def _constrained(
        self, logits: Float[Array, "N W V"], carry: Carry
    ) -> tuple[Float[Array, "N W V"], Float[Array, "N W V"]]:
        """Returns the scores for the decoder and log p of the model."""
        limits = self.limits
        log_p = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        scores = log_p if self.decoder.on_log_probabilities else logits
        if carry.seen is not None:
            scores = filters.repetition_penalty(scores, carry.seen, limits.repetition_penalty)
        if carry.history is not None:
            place, size = self._place(carry.t), limits.no_repeat_ngram_size
            scores = filters.no_repeat_ngrams(scores, carry.history, place, size)
        if limits.min_new_tokens and limits.eos_token_id:
            scores = filters.forbid(scores, limits.eos_token_id, carry.t < limits.min_new_tokens)
        return scores, log_p

    def _history(self) -> Int[Array, "N W H"]:
        K, _, W = self.sizes
        real = jnp.where(self.mask, self.tokens, filters.NONE)
        before, after = self.limits.no_repeat_ngram_size - 1, self.limits.max_new_tokens
        placed = jnp.pad(real, ((0, 0), (before, after)), constant_values=filters.NONE)
        return jnp.tile(jnp.repeat(placed[:, None], W, axis=1), (K, 1, 1))

    def _place(self, t: Int[Array, ""]) -> Int[Array, ""]:
        """Returns the place of token t in the history."""
        return self.limits.no_repeat_ngram_size - 1 + self.P + t


def _every(K: int, B: int) -> Int[Array, "K B"]:
    return jnp.broadcast_to(jnp.arange(K, dtype=jnp.int32)[:, None], (K, B))


def _row_keys(keys: Key[Array, " B"], numbers: Int[Array, "K B"], W: int) -> Key[Array, "N W"]:
    """Derives a key for each row from the key of its example and the numbers of its hypothesis and its sample."""
    of_hypothesis = jax.vmap(jax.vmap(jax.random.fold_in), (None, 0))(keys, numbers)
    of_sample = jax.vmap(lambda w: _folded(of_hypothesis, w), out_axes=-1)(jnp.arange(W))
    return of_sample.reshape(-1, W)


def _folded(keys: Key[Array, "*N"], number: Int[Array, ""]) -> Key[Array, "*N"]:
    flat = jax.vmap(jax.random.fold_in, (0, None))(keys.reshape(-1), number)
    return flat.reshape(keys.shape)


def _extend(model, params, adapters, tokens, mask, positions, past, **features):
    """Runs tokens after `past`; returns logits [K, R, 1, V] of the last position, and the segment with an axis K."""

    def one(adapters_k, tokens_k, past_k):
        call = functools.partial(model.apply, params, adapters_k)
        hidden, segment = call(tokens_k, mask, positions, past_k, **features, method="extend")
        return call(hidden[:, -1:], method="logits"), segment

    axes = hypotheses.axes(adapters), 0, (choosing.BATCH_AXES,) * len(past)
    return jax.vmap(one, axes, (0, choosing.BATCH_AXES))(adapters, tokens, past)


SLOT_AXES = Segment(keys=-1, values=-2, positions=-1, mask=-1)  # axis of the time slots


def _empty(prompt: Segment, rows: int, slots: int) -> Segment:
    """Allocates a segment for `slots` tokens of `rows` continuations."""

    def empty(x: Array, row_axis: int, slot_axis: int) -> Array:
        shape = list(x.shape)
        shape[row_axis], shape[slot_axis] = rows, slots
        return jnp.zeros(shape, x.dtype)

    K = len(prompt.mask)
    keys, values = (
        jax.tree.map(functools.partial(empty, row_axis=choosing.ROW_AXES.keys, slot_axis=axis), part)
        for part, axis in ((prompt.keys, SLOT_AXES.keys), (prompt.values, SLOT_AXES.values))
    )
    return Segment(keys, values, jnp.zeros((K, rows, slots), jnp.int32), jnp.zeros((K, rows, slots), bool))


def grown(carry: Carry, slots: int) -> Carry:
    """Adds empty slots for keys and values until there are `slots`."""

    def grow(axis: int, x: Array) -> Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, slots - x.shape[axis])
        return jnp.pad(x, widths)

    parts = lambda axis, part: jax.tree.map(functools.partial(grow, axis), part)
    return carry.replace(kept=jax.tree.map(parts, SLOT_AXES, carry.kept))


def _squeezed(segment: Segment) -> Segment:
    """Drops axes of size 1 from keys [K, R, Hkv, d, S] and values [K, R, Hkv, S, d], except the last two.

    XLA drops them where attention multiplies. If the loop kept them, XLA on a CPU would hold each array in both shapes,
    and copy one into the other at every step. Scanned layers keep all of [L, K, ...].
    """
    return _reshaped(segment, lambda x: [n for n in x.shape[:-2] if n > 1 or x.ndim > 5])


def _unsqueezed(segment: Segment, prompt: Segment, rows: int) -> Segment:
    """Gives keys and values all axes again, as those of the prompt have them, with so many rows."""

    def leading(_: Array, like: Array) -> list[int]:
        shape = list(like.shape)
        shape[choosing.ROW_AXES.keys] = rows
        return shape[:-2]

    return _reshaped(segment, leading, prompt)


def _reshaped(segment: Segment, leading: Callable[..., list[int]], *others: Segment) -> Segment:
    """Reshapes the axes before the last two of keys and values to `leading` of them and of those of other segments."""
    reshape = lambda x, *of: x.reshape(*leading(x, *of), *x.shape[-2:])
    keys, values = (
        jax.tree.map(reshape, *(getattr(one, name) for one in (segment, *others))) for name in ("keys", "values")
    )
    return segment.replace(keys=keys, values=values)


def _write(kept: Segment, new: Segment, slot: Int[Array, ""]) -> Segment:
    """Puts a segment of one token into a slot, or into the first one if there is no such slot yet."""

    def part(axis, all_, one):
        write = lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y.astype(x.dtype), jnp.maximum(slot, 0), axis)
        return jax.tree.map(write, all_, one)

    return jax.tree.map(part, SLOT_AXES, kept, new)


def _reorder(kept: Segment, parents: Int[Array, "K B W"]) -> Segment:
    """Reorders the rows like the surviving beams. All beams of an item share their positions and masks."""
    K, B, W = parents.shape
    rows, axis = (jnp.arange(B)[None, :, None] * W + parents).reshape(K, -1), choosing.ROW_AXES.keys

    def reorder(x: Array) -> Array:
        index = rows.reshape(*[1] * (x.ndim - 5), K, B * W, 1, 1, 1)
        return jnp.take_along_axis(x, index, axis=axis)

    return kept.replace(keys=jax.tree.map(reorder, kept.keys), values=jax.tree.map(reorder, kept.values))


def _seen(tokens, mask, vocab, K, W) -> Bool[Array, "N W V"]:
    """Marks the tokens that occur in each prompt, without padding."""

    def one(row, real):
        return jnp.zeros(vocab, bool).at[jnp.where(real, row, vocab)].set(True, mode="drop")

    return jnp.tile(jnp.repeat(jax.vmap(one)(tokens, mask)[:, None], W, axis=1), (K, 1, 1))


def _lengths(tokens: Int[Array, "N n T"], limits: Limits) -> Int[Array, "N n"]:
    if not limits.eos_token_id and not limits.stop_sequences:
        return jnp.full(tokens.shape[:2], tokens.shape[-1])
    ends = jnp.isin(tokens, jnp.array(limits.eos_token_id, tokens.dtype)) | completed(tokens, limits.stop_sequences)
    return jnp.where(ends.any(-1), jnp.argmax(ends, axis=-1) + 1, tokens.shape[-1])
