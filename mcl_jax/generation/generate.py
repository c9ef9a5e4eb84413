"""K continuations: every hypothesis decodes every prompt, in one compiled program.

Each prompt is run once under each hypothesis. Its keys and values are kept in one copy, whatever the number of beams or
samples; only those of the continuations are kept per row, and reordered with the beams.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from mcl_jax import hypotheses
from mcl_jax.generation import filters
from mcl_jax.generation.decoders import Decoder, Greedy, Step
from mcl_jax.models.decoder import Segment, check_placeholders, positions_of

Inputs = Int[Array, "B P"] | Mapping[str, Array]
GREEDY = Greedy()


@flax.struct.dataclass
class Generation:
    """What `decode` returns.

    Attributes:
      tokens: continuations, the padding token behind the end token (which is kept).
      scores: of each: Σ log p in nats for greedy and sampling, Σ log p / length^α for beams; best first there.
      lengths: in tokens, the end token included.
    """

    tokens: Int[Array, "K B n T"]
    scores: Float[Array, "K B n"]
    lengths: Int[Array, "K B n"]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What ends and constrains every continuation, whatever the decoder.

    Args:
      max_new_tokens: T.
      min_new_tokens: no end token before this many.
      eos_token_id: one or several tokens that end a continuation; none if ().
      pad_token_id: put behind the end.
      repetition_penalty: above 1, makes tokens of the prompt and of the continuation less likely.

    Raises:
      ValueError: for a value outside its range.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int = 0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(f"min_new_tokens must be in [0, {self.max_new_tokens}], got {self.min_new_tokens}")
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty must be positive, got {self.repetition_penalty}")


def generate(
    model: hypotheses.AdaptedModule,
    params: Any,
    adapters: Any,
    inputs: Inputs,
    decoder: Decoder = GREEDY,
    max_new_tokens: int = 64,
    **options: Any,
) -> Int[Array, "K B n T"]:
    """The tokens of `decode`, which also returns scores and lengths; same arguments."""
    return decode(model, params, adapters, inputs, decoder, max_new_tokens, **options).tokens


def decode(
    model: hypotheses.AdaptedModule,
    params: Any,
    adapters: Any,
    inputs: Inputs,
    decoder: Decoder = GREEDY,
    max_new_tokens: int = 64,
    *,
    eos_token_id: int | tuple[int, ...] = (),
    pad_token_id: int = 0,
    min_new_tokens: int = 0,
    repetition_penalty: float = 1.0,
    rng: Key[Array, ""] | None = None,
) -> Generation:
    """Continuations of B prompts under each of K hypotheses.

    Args:
      model: `Hypotheses` or a `MixtureOfExperts` of a language model of `mcl_jax.models`.
      params, adapters: of the base, and of the K hypotheses.
      inputs: prompts, tokens [B, P]; or {"tokens", "mask"} with mask False on padding, which must be on the left; also
        "features" [B, N, D] of a picture or clip, as the model's `encode` gave them.
      decoder: `Greedy()`, `Sampling(...)`, `BeamSearch(...)` or `DiverseBeamSearch(...)`.
      max_new_tokens, min_new_tokens, eos_token_id, pad_token_id, repetition_penalty: see `Limits`.
      rng: for sampling.
    Raises:
      ValueError: a prompt is empty or padded on the right, has more placeholder tokens than there are features, or is
        too long for a model with position embeddings; or an option is outside its range.
    """
    tokens, mask = prompt_of(inputs)
    most, longest = getattr(model.module, "max_positions", None), int(mask.sum(1).max())
    if most is not None and longest + max_new_tokens > most:
        raise ValueError(
            f"the model has {most} positions, too few for a prompt of {longest} tokens and {max_new_tokens} new ones"
        )
    features = features_of(inputs, model.module)
    eos = (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id)
    limits = Limits(max_new_tokens, min_new_tokens, eos, pad_token_id, repetition_penalty)
    rng = jax.random.key(0) if rng is None else rng
    return _decode(model, decoder, limits, params, adapters, tokens, mask, features, rng)


def prompt_of(inputs: Inputs) -> tuple[Int[Array, "B P"], Bool[Array, "B P"]]:
    """(tokens, mask) of prompts.

    Raises:
      ValueError: for another shape, an empty prompt, or padding on the right; names the rows.
    """
    tokens, mask = (inputs["tokens"], inputs.get("mask")) if isinstance(inputs, Mapping) else (inputs, None)
    tokens = jnp.asarray(tokens, jnp.int32)
    mask = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask, bool)
    if tokens.ndim != 2 or mask.shape != tokens.shape:
        raise ValueError(f"prompts must be tokens [B, P] with a mask alike, got {tokens.shape} and {mask.shape}")
    bad = np.flatnonzero(~mask[:, -1]) if tokens.shape[1] else np.arange(tokens.shape[0])
    if bad.size or (np.diff(mask.astype(np.int8), axis=1) < 0).any():
        bad = bad if bad.size else np.flatnonzero((np.diff(mask.astype(np.int8), axis=1) < 0).any(1))
        raise ValueError(f"prompts must be padded on the left and not be empty; rows {bad.tolist()} are not so")
    return tokens, jnp.asarray(mask)


def features_of(inputs: Inputs, module: Any) -> dict[str, Float[Array, "B N D"]]:
    """{"features"} of inputs that have them, for the module's methods; else {}.

    Raises:
      ValueError: if a prompt has more placeholder tokens than there are features; names the rows.
    """
    tokens, features = (inputs["tokens"], inputs.get("features")) if isinstance(inputs, Mapping) else (inputs, None)
    if (placeholder := getattr(module, "placeholder", None)) is not None:
        check_placeholders(tokens, placeholder, 0 if features is None else features.shape[1])
    return {} if features is None else {"features": jnp.asarray(features)}


@flax.struct.dataclass
class _Carry:
    t: Int[Array, ""]
    scores: Float[Array, "N W V"]  # logits of the next token
    seen: Bool[Array, "N W V"] | None
    search: Any
    kept: Segment  # of the continuations, with a leading axis K


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _decode(model, decoder, limits, params, adapters, tokens, mask, features, rng):
    K, (B, P), W, T = hypotheses.count(adapters), tokens.shape, decoder.width, limits.max_new_tokens
    extend = functools.partial(_extend, model, params, adapters)
    prompts = jnp.broadcast_to(tokens[None], (K, B, P))
    logits, prompt = extend(prompts, mask, positions_of(tokens, mask), (), **features)
    lengths = jnp.repeat(mask.sum(1), W)  # [R], R = B·W rows in the order (B, W)

    def body(carry):
        step = Step(carry.t, jax.random.fold_in(rng, carry.t), limits.eos_token_id, limits.pad_token_id, T)
        scores, log_p = _constrained(carry, decoder, limits)
        chosen, parents, search = decoder.advance(scores, log_p, carry.search, step)
        seen, kept = carry.seen, carry.kept
        if parents is not None:
            seen = None if seen is None else jnp.take_along_axis(seen, parents[..., None], axis=1)
            kept = _reorder(kept, parents.reshape(K, B, W))
        if seen is not None:
            seen = seen | jax.nn.one_hot(chosen, seen.shape[-1], dtype=bool)
        here = (lengths + carry.t)[:, None]
        past = (prompt, kept.replace(mask=kept.mask & (jnp.arange(T) < carry.t)[None, None]))
        logits, new = extend(chosen.reshape(K, B * W, 1), jnp.ones((B * W, 1), bool), here, past)
        kept = jax.tree.map(lambda all_, one, axis: _write(all_, one, carry.t, axis), kept, new, SLOT_AXES)
        return _Carry(carry.t + 1, logits[:, :, 0].reshape(K * B, W, -1), seen, search, kept)

    going_on = lambda carry: (carry.t < T) & ~decoder.done(carry.search)
    last = logits[:, :, -1].reshape(K * B, 1, -1)
    seen = _seen(tokens, mask, last.shape[-1], K, W) if limits.repetition_penalty != 1.0 else None
    first = jnp.broadcast_to(last, (K * B, W, last.shape[-1]))
    search = decoder.init(K * B, T, limits.pad_token_id)
    final = jax.lax.while_loop(going_on, body, _Carry(jnp.int32(0), first, seen, search, _empty(prompt, B * W, T)))
    found, scores = decoder.result(final.search)
    return Generation(found.reshape(K, B, -1, T), scores.reshape(K, B, -1), _lengths(found, limits).reshape(K, B, -1))


def _extend(model, params, adapters, tokens, mask, positions, past, **features):
    """(logits [K, R, t, V] of the last position (prompt) or of all (t = 1), segment with a leading axis K)."""

    def one(adapters_k, tokens_k, past_k):
        call = functools.partial(model.apply, params, adapters_k)
        hidden, segment = call(tokens_k, mask, positions, past_k, **features, method="extend")
        return call(hidden[:, -1:], method="logits"), segment

    return jax.vmap(one)(adapters, tokens, past)


SLOT_AXES = Segment(keys=3, values=3, positions=2, mask=2)  # of the time slots, behind K (and L, for keys and values)


def _empty(prompt: Segment, rows: int, slots: int) -> Segment:
    """Room for `slots` tokens of `rows` continuations."""
    K, L, _, _, *heads = prompt.keys.shape
    zeros = jnp.zeros((K, L, rows, slots, *heads), prompt.keys.dtype)
    return Segment(zeros, zeros, jnp.zeros((K, rows, slots), jnp.int32), jnp.ones((K, rows, slots), bool))


def _write(all_, one, slot, axis):
    return jax.lax.dynamic_update_slice_in_dim(all_, one.astype(all_.dtype), slot, axis)


def _reorder(kept: Segment, parents: Int[Array, "K B W"]) -> Segment:
    """Rows in the order of the beams that go on; positions and masks are those of all beams of an item alike."""
    K, B, W = parents.shape
    rows = (jnp.arange(B)[None, :, None] * W + parents).reshape(K, 1, B * W, 1, 1, 1)
    take = lambda x: jnp.take_along_axis(x, rows, axis=2)
    return kept.replace(keys=take(kept.keys), values=take(kept.values))


def _constrained(carry: _Carry, decoder: Decoder, limits: Limits):
    """(scores for the decoder, log p of the model), both [N, W, V]."""
    log_p = jax.nn.log_softmax(carry.scores, axis=-1)
    scores = log_p if decoder.on_log_probabilities else carry.scores
    if carry.seen is not None:
        scores = filters.repetition_penalty(scores, carry.seen, limits.repetition_penalty)
    if limits.min_new_tokens and limits.eos_token_id:
        scores = filters.forbid(scores, limits.eos_token_id, carry.t < limits.min_new_tokens)
    return scores, log_p


def _seen(tokens, mask, vocab, K, W) -> Bool[Array, "N W V"]:
    """Tokens of each prompt, padding aside."""
    one = lambda row, real: jnp.zeros(vocab, bool).at[jnp.where(real, row, vocab)].set(True, mode="drop")
    return jnp.tile(jnp.repeat(jax.vmap(one)(tokens, mask)[:, None], W, axis=1), (K, 1, 1))


def _lengths(tokens: Int[Array, "N n T"], limits: Limits) -> Int[Array, "N n"]:
    if not limits.eos_token_id:
        return jnp.full(tokens.shape[:2], tokens.shape[-1])
    ends = jnp.isin(tokens, jnp.array(limits.eos_token_id))
    return jnp.where(ends.any(-1), jnp.argmax(ends, axis=-1) + 1, tokens.shape[-1])
