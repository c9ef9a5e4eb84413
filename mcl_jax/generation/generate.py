"""K continuations: every hypothesis decodes every prompt, in one compiled program.

Each prompt runs once under each hypothesis. Its keys and values are stored once, whatever the number of beams or
samples; only those of the continuations are stored per row and reordered with the beams.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Key

from mcl_jax import hypotheses, objectives, options, token_ids
from mcl_jax.generation import choosing, stopping
from mcl_jax.generation.decoders import Decoder, Greedy, Independent
from mcl_jax.generation.inputs import Inputs, check_room, prompts_of
from mcl_jax.generation.limits import Generation, Limits, new_tokens
from mcl_jax.generation.loop import Loop, grown, rooms
from mcl_jax.language_model import check_language_model
from mcl_jax.mesh import laid_out, over_data
from mcl_jax.selector import Selector

GREEDY = Greedy()


def generate(
    model: hypotheses.AdaptedModule,
    params: Any,
    adapters: Any,
    inputs: Inputs,
    decoder: Decoder = GREEDY,
    max_new_tokens: int | None = None,
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
    max_new_tokens: int | None = None,
    *,
    max_length: int | None = None,
    eos_token_id: int | Sequence[int] | None = (),
    pad_token_id: int | None = None,
    min_new_tokens: int = 0,
    repetition_penalty: float = 1.0,
    no_repeat_ngram_size: int = 0,
    stop_strings: str | Sequence[str] = (),
    tokenizer: Any = None,
    rng: Key[Array, ""] | Key[Array, " B"] | None = None,
    selector: Selector | None = None,
    top_hypotheses: int | None = None,
    chosen: Int[Array, "m B"] | None = None,
    mesh: Mesh | None = None,
    stream: Callable[[Generation], None] | None = None,
    stream_every: int = 8,
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
      max_new_tokens, min_new_tokens, eos_token_id, pad_token_id, repetition_penalty, no_repeat_ngram_size: see
        `mcl_jax.generation.limits.Limits`.
      max_length: in place of `max_new_tokens`: length P + T of prompts (with padding) and continuations together.
      stop_strings: texts that end a continuation; needs `tokenizer`. The tokens end with the one that completes such a
        text, see `mcl_jax.generation.stopping.cut`. Decoding stops early where the tokens are those of
        `stopping.sequences_of`. Where a text is made of other tokens, decoding goes on, and the tokens after it are
        removed; then beams compete with them, and their scores count them.
      tokenizer: the tokenizer that reads the tokens for `stop_strings`.
      rng: random key for sampling: one typed key, of which example b takes `fold_in(rng, b)`, or one key per example. A
        sample depends only on the key of its example and the numbers of its hypothesis and of the sample, not on the
        rest of the batch. None means `jax.random.key(0)`: the same samples in every call.
      selector: chooses the hypotheses of each prompt; needs `top_hypotheses`.
      top_hypotheses: m, the number of hypotheses that answer each prompt: the likeliest under the selector, first the
        likeliest of all. They give what they give when all are decoded.
      chosen: the hypotheses that answer each prompt instead, such as those that `mcl_jax.selector.choose` draws.
      mesh: devices to run on, as in `make_train_step`; its data axis divides the prompts. None means one device.
      stream: called with the continuations so far each time that every row has `stream_every` more tokens, and at the
        end; padding stands for the tokens to come. The result is the same as without. For `Greedy` and `Sampling` on
        one device.
      stream_every: number of tokens.
    Returns:
      The continuations, with scores, lengths and the hypotheses chosen.
    Raises:
      ValueError: if the inputs are wrong (see `prompts_of`), a prompt is too long for a model with position embeddings,
        an option is outside its range, options contradict each other, an end token is outside the vocabulary, or the
        selector does not fit.
      FloatingPointError: if the scores of the model are NaN; names the hypotheses and the prompts.
    """
    decoder, strings = _checked(GREEDY if decoder is None else decoder), stopping.checked(stop_strings)
    _check_together(decoder, strings, tokenizer, stream, stream_every, mesh)
    check_language_model(model.module)
    prompts = prompts_of(inputs, model.module)
    limits = Limits(
        new_tokens(max_new_tokens, max_length, prompts.tokens.shape[1]),
        min_new_tokens,
        eos_token_id,
        pad_token_id,
        repetition_penalty,
        no_repeat_ngram_size,
        stopping.sequences_of(tokenizer, strings),
    )
    check_room(model.module, model.added_positions + prompts.longest, limits.max_new_tokens)
    limits.check_vocabulary(getattr(model.module, "vocab_size", None))
    B, K = len(prompts.tokens), hypotheses.count(adapters)
    chosen = choosing.chosen_of(model, params, inputs, K, selector, top_hypotheses, chosen, mesh)
    keys = _example_keys(rng, B)
    shared, batch = (params, adapters), (prompts.tokens, prompts.mask, prompts.features, keys, chosen)

    def checked(generation: Generation, broken: Bool[Array, "K B"]) -> Generation:
        _check_scores(broken, generation.hypothesis)
        return stopping.cut(generation, tokenizer, strings, limits.pad_token_id) if strings else generation

    if stream is not None:
        each = lambda *now: stream(checked(*now))
        return checked(*_streamed(model, decoder, limits, shared, batch, stream_every, each))
    found = _decode(model, decoder, limits, *laid_out(mesh, shared, batch))
    return checked(*jax.tree.map(lambda x: x[:, :B], found))


def lower_decode(
    model: hypotheses.AdaptedModule,
    params: Any,
    adapters: Any,
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    decoder: Decoder = GREEDY,
    max_new_tokens: int | None = None,
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
        numbers = np.indices(values.shape)[0] if chosen is None else np.asarray(chosen)
        of_hypotheses, of_prompts = (np.unique(x[values]).tolist() for x in (numbers, np.indices(values.shape)[1]))
        raise FloatingPointError(
            f"the scores of hypotheses {of_hypotheses} are NaN for prompts {of_prompts}; look for NaN or infinity in "
            "their adapters, the parameters and the features, or compute in a wider dtype"
        )


def _check_together(
    decoder: Decoder, strings: Sequence[str], tokenizer: Any, stream: Any, stream_every: int, mesh: Mesh | None
) -> None:
    """Raises a ValueError for stop strings or streaming with options that they do not go with."""
    if strings and not hasattr(tokenizer, "decode"):
        raise ValueError(f"stop_strings need the tokenizer that reads the tokens, got tokenizer={tokenizer!r}")
    options.check_integers(1, stream_every=stream_every)
    if stream is None:
        return
    if not isinstance(decoder, Independent):
        raise ValueError(f"stream needs tokens that stay, as those of Greedy() and Sampling() do, got {decoder!r}")
    if mesh is not None:
        raise ValueError("stream needs one device, so mesh must be None")


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _decode(model, decoder, limits, layout, shared, batch):
    part = lambda shared, batch: Loop(model, decoder, limits, shared, batch).whole()
    return over_data(part, layout, out_axis=1)(shared, batch)


def _streamed(model, decoder, limits, shared, batch, every, stream):
    """Decodes `every` tokens at a time, and calls `stream` with what `Loop.finish` returns after each of these."""
    program = model, decoder, limits
    prompt, carry = _start(*program, shared, batch)
    done, until = False, 0
    while not done:
        until += every
        carry, done, now = _advance(*program, shared, batch, prompt, carry, jnp.int32(until))
        while not done and carry.t < until:
            slots = next(n for n in rooms(limits.max_new_tokens) if n > carry.kept.mask.shape[-1])
            carry, done, now = _advance(*program, shared, batch, prompt, _grown(carry, slots), jnp.int32(until))
        stream(*now)
    return now


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _start(model, decoder, limits, shared, batch):
    return Loop(model, decoder, limits, shared, batch).start()


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(6,))
def _advance(model, decoder, limits, shared, batch, prompt, carry, until):
    loop = Loop(model, decoder, limits, shared, batch)
    carry = loop.advance(prompt, carry, jnp.minimum(until, limits.max_new_tokens))
    generation, broken = loop.finish(carry)
    so_far = generation.replace(lengths=jnp.minimum(generation.lengths, carry.t))
    return carry, loop.done(carry), (so_far, broken)


_grown = jax.jit(grown, static_argnums=1)
