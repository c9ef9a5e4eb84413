"""Filters of next-token scores: pure functions on [..., V], in the order in which they are applied.

Each equals the processor of the same name in Hugging Face transformers 5.23, `generation/logits_process.py`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

NEVER = -jnp.inf
NONE = -1  # stands for no token


def repetition_penalty(scores: Float[Array, "*B V"], seen: Bool[Array, "*B V"], penalty: float) -> Float[Array, "*B V"]:
    """Divides positive scores of tokens seen before by `penalty` and multiplies negative ones (arXiv 1909.05858)."""
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def no_repeat_ngrams(
    scores: Float[Array, "*B V"], history: Int[Array, "*B H"], length: Int[Array, ""], size: int
) -> Float[Array, "*B V"]:
    """Sets the scores of tokens to −∞ that would complete an n-gram for the second time.

    Args:
      scores: next-token scores.
      history: tokens so far; `NONE` in at least size − 1 places before them, and in all places after them.
      length: number of places of `history` before the next token.
      size: n.
    """
    windows, vocab = history.shape[-1] - size + 1, scores.shape[-1]
    last = history[..., size - 1 :]  # the token with which each window ends
    begun = jax.lax.dynamic_slice_in_dim(history, length - (size - 1), size - 1, axis=-1)
    repeats = (
        last != NONE
    )  # a window that begins before the first token can only end like `begun` where nothing follows
    for i in range(size - 1):
        repeats &= history[..., i : i + windows] == begun[..., i : i + 1]

    def banned(tokens):  # a token outside the vocabulary is dropped
        return jnp.zeros(vocab, bool).at[tokens].set(True, mode="drop")

    ending = jnp.where(repeats, last, vocab).reshape(-1, windows)
    return jnp.where(jax.vmap(banned)(ending).reshape(scores.shape), NEVER, scores)


def forbid(scores: Float[Array, "*B V"], tokens: tuple[int, ...], when: Bool[Array, ""]) -> Float[Array, "*B V"]:
    """Sets the scores of `tokens` to −∞ while `when` is true."""
    forbidden = jnp.zeros(scores.shape[-1], bool).at[jnp.array(tokens, jnp.int32)].set(True)
    return jnp.where(when & forbidden.reshape((1,) * (scores.ndim - 1) + (-1,)), NEVER, scores)


def top_k(scores: Float[Array, "*B V"], k: int) -> Float[Array, "*B V"]:
    """Sets all scores to −∞ except the k highest (and those tied with the k-th)."""
    k = min(k, scores.shape[-1])
    return jnp.where(scores < jax.lax.top_k(scores, k)[0][..., -1:], NEVER, scores)


def top_p(scores: Float[Array, "*B V"], p: float) -> Float[Array, "*B V"]:
    """Keeps the smallest set of most probable tokens whose total reaches p (Holtzman et al., arXiv 1904.09751)."""
    order = jnp.argsort(scores, axis=-1)  # ascending
    cumulative = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(scores, order, -1), axis=-1), axis=-1)
    drop = (cumulative <= 1.0 - p).at[..., -1].set(False)
    return jnp.where(_unsort(drop, order), NEVER, scores)


def min_p(scores: Float[Array, "*B V"], ratio: float) -> Float[Array, "*B V"]:
    """Keeps the tokens with at least `ratio` times the probability of the likeliest one (arXiv 2407.01082)."""
    p = jax.nn.softmax(scores, axis=-1)
    return jnp.where(p < ratio * p.max(-1, keepdims=True), NEVER, scores)


def typical(scores: Float[Array, "*B V"], mass: float) -> Float[Array, "*B V"]:
    """Keeps the smallest set of tokens, in order of |−log p − H|, whose total reaches `mass` (arXiv 2202.00666)."""
    log_p = jax.nn.log_softmax(scores, axis=-1)
    p = jnp.exp(log_p)
    entropy = -jnp.where(p > 0, p * log_p, 0.0).sum(-1, keepdims=True)
    order = jnp.argsort(jnp.abs(-log_p - entropy), axis=-1, stable=True)
    cumulative = jnp.cumsum(jnp.take_along_axis(p, order, -1), axis=-1)
    # Keep the tokens up to and including the one at which the mass is reached.
    before = jnp.concatenate([jnp.zeros_like(cumulative[..., :1]), cumulative[..., :-1]], axis=-1)
    drop = (before >= mass).at[..., 0].set(False)
    return jnp.where(_unsort(drop, order), NEVER, scores)


def _unsort(values: Bool[Array, "*B V"], order: Int[Array, "*B V"]) -> Bool[Array, "*B V"]:
    return jnp.take_along_axis(values, jnp.argsort(order, axis=-1), -1)
