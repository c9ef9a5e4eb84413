"""Ranking of the K answers by their likelihood under all hypotheses."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from mcl_jax import token_ids
from mcl_jax.generation.inputs import Inputs, check_room, prompts_of
from mcl_jax.generation.limits import Generation
from mcl_jax.hypotheses import AdaptedModule, count, select
from mcl_jax.language_model import check_language_model
from mcl_jax.likelihood import sequence_log_likelihood
from mcl_jax.mesh import laid_out, over_data
from mcl_jax.models.decoder import positions_of


def log_likelihoods(
    model: AdaptedModule,
    params: Any,
    adapters: Any,
    inputs: Inputs,
    answers: Generation,
    *,
    mesh: Mesh | None = None,
) -> Float[Array, "H K B n"]:
    """Computes log p_h(answer | prompt) of every answer under every hypothesis h. The end token counts.

    Args:
      model: hypotheses of a language model.
      params: parameters of the base.
      adapters: adapters of H hypotheses, which need not be those that gave the answers.
      inputs: the prompts, as passed to `decode`.
      answers: the result of `decode` for these prompts.
      mesh: devices to run on, as in `decode`; None means one device.
    Returns:
      Log-likelihoods in nats; NaN where hypothesis h gives NaN.
    Raises:
      ValueError: if the inputs are wrong (see `decode`), or the answers have another number of prompts, no or too many
        tokens, or tokens outside the vocabulary.
    """
    check_language_model(model.module)
    prompts = prompts_of(inputs, model.module)
    longest = _check_answers(answers, len(prompts.tokens), getattr(model.module, "vocab_size", None))
    check_room(model.module, model.added_positions + prompts.longest, longest)
    by_example = (jnp.asarray(leaf).swapaxes(0, 1) for leaf in (answers.tokens, answers.lengths))
    shared, batch = (params, adapters), (prompts.tokens, prompts.mask, *by_example, prompts.features)
    return _log_likelihoods(model, *laid_out(mesh, shared, batch))[:, :, : len(prompts.tokens)]


def _check_answers(answers: Generation, num_prompts: int, vocab_size: int | None) -> int:
    """Returns the number of tokens of the longest answer."""
    shape = jnp.shape(answers.tokens)
    if len(shape) != 4 or shape[1] != num_prompts or not all(shape):
        raise ValueError(f"answers must be [K, B, n, T] with B = {num_prompts} prompts, got {shape}")
    if jnp.shape(answers.lengths) != shape[:3]:
        raise ValueError(f"lengths of the answers must be [K, B, n] = {shape[:3]}, got {jnp.shape(answers.lengths)}")
    if (lengths := token_ids.known(answers.lengths)) is None:
        return shape[-1]
    if lengths.min() < 1 or lengths.max() > shape[-1]:
        raise ValueError(f"lengths must be in [1, T = {shape[-1]}], got {lengths.min()} to {lengths.max()}")
    real = np.arange(shape[-1]) < lengths[..., None]
    token_ids.check_vocabulary("tokens of the answers", answers.tokens, real, vocab_size)
    return int(lengths.max())


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_likelihoods(model, layout, shared, batch):
    return over_data(functools.partial(_part, model), layout, out_axis=2)(shared, batch)


def _part(model, shared, batch):
    """Scores the answers [B, K, n, T] of one device along the data axis; returns [H, K, B, n]."""
    (params, adapters), (tokens, mask, answers, lengths, features) = shared, batch
    B, K, n, T = answers.shape

    def rows(x):
        return x.reshape(B * K * n, *x.shape[3:])

    def per_answer(x):
        return jnp.repeat(x, K * n, axis=0)  # one row per prompt -> one row per answer

    answers, real = rows(answers), jnp.arange(T)[None] < rows(lengths)[:, None]

    def under(h):
        call = functools.partial(model.apply, params, select(adapters, h))
        prompt_hidden, prompt = call(tokens, mask, positions_of(tokens, mask), (), **features, method="extend")
        here = per_answer(mask.sum(1))[:, None] + jnp.arange(T)[None]
        hidden, _ = call(answers, real, here, (prompt,), method="extend")
        hidden = jnp.concatenate([per_answer(prompt_hidden[:, -1:]), hidden[:, :-1]], axis=1)

        def of_row(row):  # one row at a time, so that only [T, V] logits exist
            h, x, m = (leaf[None] for leaf in row)
            return sequence_log_likelihood(call(h, method="logits"), x, m)[0][0]

        return jax.lax.map(of_row, (hidden, answers, real))

    return jax.lax.map(under, jnp.arange(count(adapters))).reshape(-1, B, K, n).swapaxes(1, 2)


def mixture_scores(
    log_p: Float[Array, "H K B n"], lengths: Int[Array, "K B n"], length_penalty: float | None = 1.0
) -> Float[Array, "K B n"]:
    """Computes log (1/H Σ_h p_h(answer)) / length^α, the likelihood of an answer under all hypotheses together.

    An answer that is probable under one hypothesis scores well even if it is not under the others, at a cost of at most
    log H nats, so answers of different modes can be compared. The argsort of −scores ranks the K answers.

    Args:
      log_p: log-likelihoods in nats, from `log_likelihoods`.
      lengths: lengths of the answers in tokens.
      length_penalty: α; 1 (or None) gives nats per token, 0 the plain log-likelihood.
    Returns:
      A score per answer; higher is more probable.
    Raises:
      ValueError: if a value is NaN (names the hypotheses), the shapes do not fit, or a length is below 1. Traced values
        are not checked.
    """
    if jnp.ndim(log_p) != 4 or jnp.shape(log_p)[1:] != jnp.shape(lengths):
        raise ValueError(
            f"log_p must be [H, K, B, n] and lengths [K, B, n], got {jnp.shape(log_p)} and {jnp.shape(lengths)}"
        )
    if (values := token_ids.known(log_p)) is not None and np.isnan(values).any():
        hypotheses = np.flatnonzero(np.isnan(values).any((1, 2, 3))).tolist()
        raise ValueError(f"log_p must not be NaN to rank answers, got NaN under hypotheses {hypotheses}")
    if (counts := token_ids.known(lengths)) is not None and (counts < 1).any():
        raise ValueError(f"lengths must be at least 1 token, got {counts.min()}")
    length_penalty = 1.0 if length_penalty is None else length_penalty
    mixture = jax.nn.logsumexp(log_p, axis=0) - jnp.log(log_p.shape[0])
    return mixture / lengths.astype(jnp.float32) ** length_penalty
