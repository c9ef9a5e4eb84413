"""What is done to next-token scores before a token is chosen: pure functions of [..., V], in the order of their use.

Each equals the processor of the same name in Hugging Face transformers 5.23, `generation/logits_process.py`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

NEVER = -jnp.inf


def repetition_penalty(scores: Float[Array, "*B V"], seen: Bool[Array, "*B V"], penalty: float) -> Float[Array, "*B V"]:
    """Scores of tokens seen before divided by `penalty` where positive, multiplied where negative (1909.05858)."""
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def forbid(scores: Float[Array, "*B V"], tokens: tuple[int, ...], when: Bool[Array, ""]) -> Float[Array, "*B V"]:
    """−∞ for `tokens` while `when` holds."""
    forbidden = jnp.zeros(scores.shape[-1], bool).at[jnp.array(tokens, jnp.int32)].set(True)
    return jnp.where(when & forbidden.reshape((1,) * (scores.ndim - 1) + (-1,)), NEVER, scores)


def top_k(scores: Float[Array, "*B V"], k: int) -> Float[Array, "*B V"]:
    """−∞ for all but the k highest (and those tied with the k-th)."""
    k = min(k, scores.shape[-1])
    return jnp.where(scores < jax.lax.top_k(scores, k)[0][..., -1:], NEVER, scores)


def top_p(scores: Float[Array, "*B V"], p: float) -> Float[Array, "*B V"]:
    """−∞ for all but the smallest set of likeliest tokens whose probabilities reach p (Holtzman et al., 1904.09751)."""
    order = jnp.argsort(scores, axis=-1)  # ascending
    cumulative = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(scores, order, -1), axis=-1), axis=-1)
    drop = (cumulative <= 1.0 - p).at[..., -1].set(False)
    return jnp.where(_unsort(drop, order), NEVER, scores)


def typical(scores: Float[Array, "*B V"], mass: float) -> Float[Array, "*B V"]:
    """−∞ for all but the smallest set of tokens, by |−log p − H|, whose mass reaches `mass` (Meister, 2202.00666)."""
    log_p = jax.nn.log_softmax(scores, axis=-1)
    p = jnp.exp(log_p)
    entropy = -jnp.where(p > 0, p * log_p, 0.0).sum(-1, keepdims=True)
    order = jnp.argsort(jnp.abs(-log_p - entropy), axis=-1, stable=True)
    cumulative = jnp.cumsum(jnp.take_along_axis(p, order, -1), axis=-1)
    # Kept are the tokens up to and with the one at which the mass is reached.
    before = jnp.concatenate([jnp.zeros_like(cumulative[..., :1]), cumulative[..., :-1]], axis=-1)
    drop = (before >= mass).at[..., 0].set(False)
    return jnp.where(_unsort(drop, order), NEVER, scores)


def _unsort(values: Bool[Array, "*B V"], order: Int[Array, "*B V"]) -> Bool[Array, "*B V"]:
    return jnp.take_along_axis(values, jnp.argsort(order, axis=-1), -1)
