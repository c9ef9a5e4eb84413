"""Which of the K answers is likeliest: every hypothesis reads every answer."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mcl_jax.generation.generate import Generation, Inputs, features_of, prompt_of
from mcl_jax.hypotheses import AdaptedModule
from mcl_jax.likelihood import sequence_log_likelihood
from mcl_jax.models.decoder import positions_of


def log_likelihoods(
    model: AdaptedModule, params: Any, adapters: Any, inputs: Inputs, answers: Generation
) -> Float[Array, "H K B n"]:
    """log p_h(answer | prompt) in nats, of every answer under every hypothesis h; the end token counts.

    Args:
      model, params, adapters, inputs: as given to `decode`; the H hypotheses need not be those that answered.
      answers: what `decode` returned for these prompts.
    Raises:
      ValueError: if the answers are not those of as many prompts.
    """
    tokens, mask = prompt_of(inputs)
    if answers.tokens.shape[1] != len(tokens):
        raise ValueError(f"answers must be [K, B, n, T] of B = {len(tokens)} prompts, got {answers.tokens.shape}")
    arrays = tokens, mask, answers.tokens, answers.lengths, features_of(inputs, model.module)
    return _log_likelihoods(model, params, adapters, *arrays)


@functools.partial(jax.jit, static_argnums=0)
def _log_likelihoods(model, params, adapters, tokens, mask, answers, lengths, features):
    (K, B, n, T), rows = answers.shape, lambda x: x.swapaxes(0, 1).reshape(B * K * n, *x.shape[3:])
    answers, real = rows(answers), jnp.arange(T)[None] < rows(lengths)[:, None]
    each = lambda x: jnp.repeat(x, K * n, axis=0)  # of a prompt, for each of its answers

    def under(adapters_h):
        call = functools.partial(model.apply, params, adapters_h)
        prompt_hidden, prompt = call(tokens, mask, positions_of(tokens, mask), (), **features, method="extend")
        here = each(mask.sum(1))[:, None] + jnp.arange(T)[None]
        hidden, _ = call(answers, real, here, (prompt,), method="extend")
        hidden = jnp.concatenate([each(prompt_hidden[:, -1:]), hidden[:, :-1]], axis=1)

        def of_row(row):  # one at a time, so that [T, V] logits is all there ever is
            h, x, m = (leaf[None] for leaf in row)
            return sequence_log_likelihood(call(h, method="logits"), x, m)[0][0]

        return jax.lax.map(of_row, (hidden, answers, real))

    return jax.lax.map(under, adapters).reshape(-1, B, K, n).swapaxes(1, 2)


def mixture_scores(
    log_p: Float[Array, "H K B n"], lengths: Int[Array, "K B n"], length_penalty: float = 1.0
) -> Float[Array, "K B n"]:
    """log (1/H Σ_h p_h(answer)) / length^α: the likelihood of an answer under all hypotheses together.

    An answer that one hypothesis finds likely scores well even if the others do not, at a cost of at most log H nats;
    so answers of different modes can be compared. argsort of −scores ranks the K answers.

    Args:
      log_p: of `log_likelihoods`, nats.
      lengths: in tokens.
      length_penalty: α; 1 for nats a token, 0 for the plain log-likelihood.
    """
    mixture = jax.nn.logsumexp(log_p, axis=0) - jnp.log(log_p.shape[0])
    return mixture / lengths.astype(jnp.float32) ** length_penalty
