"""K continuations: every hypothesis decodes every prompt, in one compiled program.

Each prompt runs once under each hypothesis. Its keys and values are stored once, whatever the number of beams or
samples; only those of the continuations are stored per row and reordered with the beams.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from mcl_jax import hypotheses, objectives, options, token_ids
from mcl_jax.generation import choosing, filters
from mcl_jax.generation.decoders import Decoder, Greedy, Step
from mcl_jax.generation.inputs import Inputs, check_room, prompts_of
from mcl_jax.language_model import check_language_model
from mcl_jax.mesh import laid_out, over_data
from mcl_jax.models.decoder import Segment, positions_of
from mcl_jax.selector import Selector

GREEDY = Greedy()
MAX_NEW_TOKENS = 64


@flax.struct.dataclass
class Generation:
    """The continuations that `decode` returns.

    Attributes:
      tokens: the continuations; the end token is kept, and padding tokens follow it.
      scores: Σ log p in nats for greedy decoding and sampling; Σ log p / length^α for beams, best first. NaN where the
        model's log p is NaN, for which `decode` raises an error unless it is traced.
      lengths: lengths in tokens, including the end token.
      hypothesis: if each prompt was decoded under m hypotheses of its own, these; K is m then. None if it was decoded
        under all of them, in their order.
    """

    tokens: Int[Array, "K B n T"]
    scores: Float[Array, "K B n"]
    lengths: Int[Array, "K B n"]
    hypothesis: Int[Array, "K B"] | None = None


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of every continuation, whatever the decoder. None means the default of each field.

    Args:
      max_new_tokens: T.
      min_new_tokens: number of tokens before which no end token is allowed.
      eos_token_id: one or more tokens that end a continuation; () for none.
      pad_token_id: token after the end, inside or outside the vocabulary; if None, the first end token, or 0 if there
        is none.
      repetition_penalty: a value above 1 makes the tokens of the prompt and of the continuation less probable.
    Raises:
      ValueError: if a value is outside its range.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    min_new_tokens: int = 0
    eos_token_id: int | Sequence[int] = ()
    pad_token_id: int | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self):
        options.settle(self)
        options.check_integers(1, max_new_tokens=self.max_new_tokens)
        options.check_numbers(min_new_tokens=self.min_new_tokens, repetition_penalty=self.repetition_penalty)
        if not isinstance(self.min_new_tokens, int) or not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(f"min_new_tokens must be in [0, {self.max_new_tokens}], got {self.min_new_tokens}")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty must be positive and finite, got {self.repetition_penalty}")
        single = isinstance(self.eos_token_id, (int, str)) or not isinstance(self.eos_token_id, Iterable)
        ends = (self.eos_token_id,) if single else tuple(self.eos_token_id)
        for token in ends:
            options.check_integers(0, eos_token_id=token)
        pad = (*ends, 0)[0] if self.pad_token_id is None else self.pad_token_id
        options.check_integers(-(2**31), pad_token_id=pad)
        object.__setattr__(self, "eos_token_id", ends)
        object.__setattr__(self, "pad_token_id", pad)

    def check_vocabulary(self, vocab_size: int | None) -> None:
        """Raises a ValueError if an end token is outside the vocabulary, since no continuation would end with it."""
        if vocab_size is not None and (outside := [token for token in self.eos_token_id if token >= vocab_size]):
            raise ValueError(f"eos_token_id must be in the vocabulary [0, {vocab_size}), got {outside}")


def generate(
    model: hypotheses.AdaptedModule,
    params: Any,
    adapters: Any,
    inputs: Inputs,
    decoder: Decoder = GREEDY,
    max_new_tokens: int = MAX_NEW_TOKENS,
    **options: Any,
) -> Int[Array, "K B n T"]:
    """Returns the tokens of `decode`, which has the same arguments and also returns scores and lengths."""
    return decode(model, params, adapters, inputs, decoder, max_new_tokens, **options).tokens


def decode(
    model: hypotheses.AdaptedModule,
    params: Any,
    adapters: Any,
    inputs: Inputs,
    decoder: Decoder = GREEDY,
    max_new_tokens: int = MAX_NEW_TOKENS,
    *,
    eos_token_id: int | Sequence[int] | None = (),
    pad_token_id: int | None = None,
    min_new_tokens: int = 0,
    repetition_penalty: float = 1.0,
    rng: Key[Array, ""] | Key[Array, " B"] | None = None,
    selector: Selector | None = None,
    top_hypotheses: int | None = None,
    chosen: Int[Array, "m B"] | None = None,
    mesh: Mesh | None = None,
) -> Generation:
    """Continues B prompts under each of K hypotheses, or under m of them.

    Decoding m hypotheses costs m / K of decoding all, and memory for the adapters of each prompt.

    Args:
      model: `Hypotheses`, `SoftPrompts` or `MixtureOfExperts` of a language model.
      params: parameters of the base.
      adapters: adapters of the K hypotheses.
      inputs: prompts: tokens [B, P]; or {"tokens", "mask"} with mask False on padding, which must be on the left; or
        the {"input_ids", "attention_mask"} of a tokenizer. For images or audio clips also "features" [B, N, D], from
        the model's `encode`. Traced values are not checked.
      decoder: `Greedy()`, `Sampling(...)`, `BeamSearch(...)` or `DiverseBeamSearch(...)`.
      max_new_tokens, min_new_tokens, eos_token_id, pad_token_id, repetition_penalty: see `Limits`.
      rng: random key for sampling: one typed key, of which example b takes `fold_in(rng, b)`, or one key per example. A
        sample depends only on the key of its example and the numbers of its hypothesis and of the sample, not on the
        rest of the batch. None means `jax.random.key(0)`: the same samples in every call.
      selector: chooses the hypotheses of each prompt; needs `top_hypotheses`.
      top_hypotheses: m, the number of hypotheses that answer each prompt: the likeliest under the selector, first the
        likeliest of all. They give what they give when all are decoded.
      chosen: the hypotheses that answer each prompt instead, such as those that `mcl_jax.selector.choose` draws.
      mesh: devices to run on, as in `make_train_step`; its data axis divides the prompts. None means one device.
    Returns:
      The continuations, with scores, lengths and the hypotheses chosen.
    Raises:
      ValueError: if the inputs are wrong (see `prompts_of`), a prompt is too long for a model with position embeddings,
        an option is outside its range, an end token is outside the vocabulary, or the selector does not fit.
      FloatingPointError: if the scores of the model are NaN; names the hypotheses and the prompts.
    """
    limits = Limits(max_new_tokens, min_new_tokens, eos_token_id, pad_token_id, repetition_penalty)
    decoder = _checked(GREEDY if decoder is None else decoder)
    check_language_model(model.module)
    prompts = prompts_of(inputs, model.module)
    check_room(model.module, model.added_positions + prompts.longest, limits.max_new_tokens)
    limits.check_vocabulary(getattr(model.module, "vocab_size", None))
    B, K = len(prompts.tokens), hypotheses.count(adapters)
    chosen = choosing.chosen_of(model, params, inputs, K, selector, top_hypotheses, chosen, mesh)
    keys = _example_keys(rng, B)
    shared, batch = (params, adapters), (prompts.tokens, prompts.mask, prompts.features, keys, chosen)
    generation, broken = _decode(model, decoder, limits, *laid_out(mesh, shared, batch))
    generation, broken = jax.tree.map(lambda x: x[:, :B], (generation, broken))
    _check_scores(broken, generation.hypothesis)
    return generation


def lower_decode(
    model: hypotheses.AdaptedModule,
    params: Any,
    adapters: Any,
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    decoder: Decoder = GREEDY,
    max_new_tokens: int = MAX_NEW_TOKENS,
    *,
    mesh: Mesh | None = None,
    **limits: Any,
) -> jax.stages.Lowered:
    """Lowers the program that `decode` would run, without arrays: `.compile().memory_analysis()` and the like.

    Args:
      model, decoder, max_new_tokens, mesh: as in `decode`.
      params, adapters: arrays or `jax.ShapeDtypeStruct`s; those with a sharding keep it.
      inputs: shapes of "tokens" [B, P], and of "features" [B, N, D] if there are any.
      **limits: further fields of `Limits`.
    """
    tokens = jax.ShapeDtypeStruct(inputs["tokens"].shape, jnp.int32)
    mask = jax.ShapeDtypeStruct(tokens.shape, bool)
    features = {name: inputs[name] for name in ("features",) if name in inputs}
    keys = jax.eval_shape(lambda: _example_keys(None, tokens.shape[0]))
    shared, batch = (params, adapters), (tokens, mask, features, keys, None)
    limits = Limits(max_new_tokens, **limits)
    return _decode.lower(model, _checked(decoder), limits, *laid_out(mesh, shared, batch))


def _example_keys(rng: Any, batch: int) -> Key[Array, " B"]:
    rng = jax.random.key(0) if rng is None else jnp.asarray(rng)
    objectives.check_key(rng)
    if rng.shape not in ((), (batch,)):
        raise ValueError(f"rng must be one key, or one key for each of {batch} prompts, got shape {rng.shape}")
    return objectives.example_keys(rng, batch)


def _checked(decoder: Any) -> Decoder:
    if isinstance(decoder, type) or not hasattr(decoder, "advance"):
        raise ValueError(f"decoder must be an instance such as Greedy() or BeamSearch(num_beams=4), got {decoder!r}")
    return decoder


def _check_scores(broken: Bool[Array, "K B"], chosen: Int[Array, "K B"] | None) -> None:
    values = token_ids.known(broken)
    if values is not None and values.any():
        numbers = np.asarray(_every(*values.shape) if chosen is None else chosen)
        of_hypotheses, of_prompts = (np.unique(x[values]).tolist() for x in (numbers, np.indices(values.shape)[1]))
        raise FloatingPointError(
            f"the scores of hypotheses {of_hypotheses} are NaN for prompts {of_prompts}; look for NaN or infinity in "
            "their adapters, the parameters and the features, or compute in a wider dtype"
        )


@flax.struct.dataclass
class _Carry:
    t: Int[Array, ""]
    scores: Float[Array, "N W V"]  # logits of the next token
    seen: Bool[Array, "N W V"] | None
    search: Any
    kept: Segment  # keys and values of the continuations, with a leading axis K
    broken: Bool[Array, " N"]  # whether log p of the item was NaN at some step


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _decode(model, decoder, limits, layout, shared, batch):
    return over_data(functools.partial(_decode_part, model, decoder, limits), layout, out_axis=1)(shared, batch)


def _decode_part(model, decoder, limits, shared, batch):
    """Decodes the prompts of one device along the data axis."""
    (params, adapters), (tokens, mask, features, keys, chosen) = shared, batch
    (B, P), W, T = tokens.shape, decoder.width, limits.max_new_tokens
    if chosen is None:
        numbers = _every(hypotheses.count(adapters), B)
        extend = functools.partial(_extend, model, params, adapters)
    else:
        numbers = chosen.T
        extend = functools.partial(choosing.extend_chosen, model, params, hypotheses.select(adapters, numbers), B)
    K = len(numbers)
    prompts = jnp.broadcast_to(tokens[None], (K, B, P))
    logits, prompt = extend(prompts, mask, positions_of(tokens, mask), (), **features)
    lengths = jnp.repeat(mask.sum(1), W)  # [R], R = B·W rows in the order (B, W)
    vocab, keys = logits.shape[-1], _row_keys(keys, numbers, W)

    def body(carry):
        step = Step(carry.t, _folded(keys, carry.t), limits.eos_token_id, limits.pad_token_id, T)
        scores, log_p = _constrained(carry, decoder, limits)
        broken = carry.broken | jnp.isnan(log_p[..., 0]).any(-1)  # one NaN score makes all of log p NaN
        chosen, parents, search = decoder.advance(scores, log_p, carry.search, step)
        seen, kept = carry.seen, carry.kept
        if parents is not None:
            seen = None if seen is None else jnp.take_along_axis(seen, parents[..., None], axis=1)
            kept = _reorder(kept, parents.reshape(K, B, W))
        if seen is not None:
            seen = seen | jax.nn.one_hot(chosen, seen.shape[-1], dtype=bool)
        here = (lengths + carry.t)[:, None]
        past = (prompt, kept.replace(mask=kept.mask & (jnp.arange(T) < carry.t)[None, None]))
        fed = jnp.clip(chosen, 0, vocab - 1).reshape(K, B * W, 1)  # the padding token may be outside the vocabulary
        logits, new = extend(fed, jnp.ones((B * W, 1), bool), here, past)
        kept = jax.tree.map(lambda all_, one, axis: _write(all_, one, carry.t, axis), kept, new, SLOT_AXES)
        return _Carry(carry.t + 1, logits[:, :, 0].reshape(K * B, W, -1), seen, search, kept, broken)

    def unfinished(carry):
        return (carry.t < T) & ~decoder.done(carry.search)

    last = logits[:, :, -1].reshape(K * B, 1, -1)
    seen = _seen(tokens, mask, vocab, K, W) if limits.repetition_penalty != 1.0 else None
    first = jnp.broadcast_to(last, (K * B, W, vocab))
    search, kept = decoder.init(K * B, T, limits.pad_token_id), _empty(prompt, B * W, T)
    start = _Carry(jnp.int32(0), first, seen, search, kept, jnp.zeros(K * B, bool))
    final = jax.lax.while_loop(unfinished, body, start)
    continuations, scores = decoder.result(final.search)
    scores = jnp.where(final.broken[:, None], jnp.nan, scores)
    of_items = Generation(continuations, scores, _lengths(continuations, limits))
    of_items = jax.tree.map(lambda x: x.reshape(K, B, *x.shape[1:]), of_items)
    return of_items.replace(hypothesis=None if chosen is None else numbers), final.broken.reshape(K, B)


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
    """Runs tokens after `past`; returns logits [K, R, 1, V] of the last position, and the segment [K, ...]."""

    def one(adapters_k, tokens_k, past_k):
        call = functools.partial(model.apply, params, adapters_k)
        hidden, segment = call(tokens_k, mask, positions, past_k, **features, method="extend")
        return call(hidden[:, -1:], method="logits"), segment

    return jax.vmap(one, (hypotheses.axes(adapters), 0, 0))(adapters, tokens, past)


SLOT_AXES = Segment(keys=3, values=3, positions=2, mask=2)  # axis of the time slots, after K (and L) and the rows


def _empty(prompt: Segment, rows: int, slots: int) -> Segment:
    """Allocates a segment for `slots` tokens of `rows` continuations."""
    K, L, _, _, *heads = prompt.keys.shape
    zeros = jnp.zeros((K, L, rows, slots, *heads), prompt.keys.dtype)
    return Segment(zeros, zeros, jnp.zeros((K, rows, slots), jnp.int32), jnp.ones((K, rows, slots), bool))


def _write(all_, one, slot, axis):
    return jax.lax.dynamic_update_slice_in_dim(all_, one.astype(all_.dtype), slot, axis)


def _reorder(kept: Segment, parents: Int[Array, "K B W"]) -> Segment:
    """Reorders the rows like the surviving beams. All beams of an item share their positions and masks."""
    K, B, W = parents.shape
    rows = (jnp.arange(B)[None, :, None] * W + parents).reshape(K, 1, B * W, 1, 1, 1)
    keys, values = (jnp.take_along_axis(x, rows, axis=2) for x in (kept.keys, kept.values))
    return kept.replace(keys=keys, values=values)


def _constrained(carry: _Carry, decoder: Decoder, limits: Limits):
    """Returns the scores for the decoder and log p of the model, both [N, W, V]."""
    log_p = jax.nn.log_softmax(carry.scores, axis=-1)
    scores = log_p if decoder.on_log_probabilities else carry.scores
    if carry.seen is not None:
        scores = filters.repetition_penalty(scores, carry.seen, limits.repetition_penalty)
    if limits.min_new_tokens and limits.eos_token_id:
        scores = filters.forbid(scores, limits.eos_token_id, carry.t < limits.min_new_tokens)
    return scores, log_p


def _seen(tokens, mask, vocab, K, W) -> Bool[Array, "N W V"]:
    """Marks the tokens that occur in each prompt, without padding."""

    def one(row, real):
        return jnp.zeros(vocab, bool).at[jnp.where(real, row, vocab)].set(True, mode="drop")

    return jnp.tile(jnp.repeat(jax.vmap(one)(tokens, mask)[:, None], W, axis=1), (K, 1, 1))


def _lengths(tokens: Int[Array, "N n T"], limits: Limits) -> Int[Array, "N n"]:
    if not limits.eos_token_id:
        return jnp.full(tokens.shape[:2], tokens.shape[-1])
    ends = jnp.isin(tokens, jnp.array(limits.eos_token_id))
    return jnp.where(ends.any(-1), jnp.argmax(ends, axis=-1) + 1, tokens.shape[-1])
