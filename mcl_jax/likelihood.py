"""Log-likelihoods of sequences, in nats and in float32 whatever dtype the model computes in.

    log p(x|c) = Σ_t m_t log p(x_t | x_<t, c)

The mask m selects the target positions: prompts, images, sounds and padding do not count (paper, section 2). Position t
of `logits` or `hidden` predicts `targets[t]`; the caller shifts the tokens by one.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mcl_jax import token_ids


def sequence_log_likelihood(
    logits: Float[Array, "*K B T V"], targets: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> tuple[Float[Array, "*K B"], Int[Array, " B"]]:
    """Computes Σ_t m_t (z_{t, x_t} − log Σ_v exp z_{t, v}) and the number of target tokens.

    Args:
      logits: z, of any float dtype, with any axes before B (hypotheses).
      targets: token ids. Ids under a false mask may have any value.
      mask: True where a token is a target. A sequence without targets has log-likelihood 0. Logits under a false mask
        may have any value, even NaN: neither the result nor the gradient depends on them.
    Returns:
      (sum of log p in nats, number of target tokens).
    Raises:
      ValueError: if the shapes do not fit, or a target is outside [0, V). A traced target outside [0, V) cannot be
        checked; its log p is NaN.
    """
    _check_shapes("logits", logits.shape[-3:-1], targets, mask)
    targets = _checked_targets(targets, mask, logits.shape[-1])
    mask = mask.astype(bool)
    logits = jnp.where(jnp.broadcast_to(mask[..., None], logits.shape), logits, 0.0).astype(jnp.float32)
    index = jnp.broadcast_to(targets[..., None], (*logits.shape[:-1], 1))
    token = jnp.take_along_axis(logits, index, -1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)
    masked = jnp.where(jnp.broadcast_to(mask, token.shape), token, 0.0)
    return masked.sum(-1), mask.sum(-1, dtype=jnp.int32)


class _Head(NamedTuple):
    """How the output layer is applied.

    Attributes:
      axis: axis of D in the output matrix.
      cap: soft-cap of the logits, if any.
    """

    axis: int
    cap: float | None


def chunked_sequence_log_likelihood(
    hidden: Float[Array, "B T D"],
    unembedding: Float[Array, "D V"] | Float[Array, "V D"],
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    bias: Float[Array, " V"] | None = None,
    cap: float | None = None,
    chunk_size: int = 256,
    transposed: bool = False,
    texts: Int[Array, "B T"] | None = None,
    num_texts: int = 1,
) -> tuple[Float[Array, "B *S"], Int[Array, "B *S"]]:
    """Computes `sequence_log_likelihood(hidden @ unembedding + bias, targets, mask)` without [B, T, V] logits.

    With a cap c, the logits are c · tanh(z / c), as in Gemma 2, which keeps them between −c and c.

    Logits exist for `chunk_size` of the B·T tokens at a time, forward and backward, and only for target tokens (rounded
    up to a chunk). The forward pass also computes the gradient with respect to `hidden`, chunk by chunk, since it is
    linear in the cotangent g of each sequence:

        d log p / d h_t = g · m_t (W[:, x_t] − W softmax(z_t))      (times 1 − tanh²(z / c) per logit with a cap)

    A training step therefore multiplies by the unembedding twice instead of three times. The function is differentiable
    in `hidden`, and in `unembedding` and `bias` (by recomputation, chunk by chunk): reverse mode, first order.

    Args:
      hidden: final hidden states, of any float dtype; the product is accumulated in float32.
      unembedding: W, the output matrix (often the transposed embedding).
      targets: token ids, as in `sequence_log_likelihood`.
      mask: True where a token is a target.
      bias: bias of the output layer, if it has one.
      cap: soft-cap c of the logits, above 0; None leaves them as they are.
      chunk_size: tokens per chunk; the memory needed is chunk_size · V floats.
      transposed: whether `unembedding` is given as [V, D]. For a table of embeddings this spares a copy of it, which
        XLA otherwise makes in every call.
      texts: number of the text of each position, from 1 to S, in rows of several texts (`mcl_jax.packing`).
      num_texts: S, with `texts`.
    Returns:
      (sum of log p in nats, number of target tokens), for each row, or with `texts` for each text of each row.
    Raises:
      ValueError: if the shapes do not fit, chunk_size < 1, cap ≤ 0, or a target is outside [0, V).
    """
    _check_shapes("hidden", hidden.shape[:-1], targets, mask)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 token, got {chunk_size}")
    if cap is not None and not 0 < cap < math.inf:
        raise ValueError(f"cap must be a finite number above 0, or None, got {cap}")
    head = _Head(int(transposed), cap)
    if hidden.shape[-1] != unembedding.shape[head.axis]:
        raise ValueError(
            f"unembedding must have shape {'[V, D]' if transposed else '[D, V]'} with D = {hidden.shape[-1]} as in "
            f"hidden, got {unembedding.shape}"
        )
    V = unembedding.shape[1 - head.axis]
    if bias is not None and bias.shape != (V,):
        raise ValueError(f"bias must have shape [V] = ({V},), got {bias.shape}")
    targets, mask = _checked_targets(targets, mask, V), mask.astype(bool)
    hidden = jnp.where(mask[..., None], hidden, 0.0)  # keeps masked values, even NaN, out of the products
    token = _token_log_likelihood(
        chunk_size,
        head,
        hidden.reshape(-1, hidden.shape[-1]),
        unembedding,
        bias,
        targets.reshape(-1),
        mask.reshape(-1).astype(jnp.float32),
    )
    token = token.reshape(mask.shape)
    if texts is None:
        return token.sum(-1), mask.sum(-1, dtype=jnp.int32)
    of_text = texts[..., None] == jnp.arange(1, num_texts + 1)[None, None]  # [B, T, S]
    counts = (of_text & mask[..., None]).sum(-2, dtype=jnp.int32)
    return jnp.where(of_text, token[..., None], 0.0).sum(-2), counts


def _check_shapes(name: str, shape: tuple[int, ...], targets: Array, mask: Array) -> None:
    if not shape == targets.shape == mask.shape:
        raise ValueError(
            f"{name}, targets and mask must have the same [B, T], got {tuple(shape)}, {targets.shape} and {mask.shape}"
        )


def _checked_targets(targets: Array, mask: Array, vocab_size: int) -> Array:
    """Returns the targets, 0 where the mask is false. A negative one, which would index from the end, becomes V."""
    token_ids.check_mask("mask", mask)
    token_ids.check_vocabulary("targets", targets, mask, vocab_size)
    return jnp.where(mask, jnp.where(targets < 0, vocab_size, targets), 0)


def _times(x, unembedding, axis, dtype=None):
    """Multiplies rows x [N, ...] by the output matrix, contracting this axis of it."""
    contracted = (((1,), (axis,)), ((), ()))
    return jax.lax.dot_general(x, unembedding.astype(x.dtype), contracted, preferred_element_type=dtype)


def soft_cap(x: Float[Array, "*N"], cap: float | None) -> Float[Array, "*N"]:
    """Returns c · tanh(x / c), which is close to x where |x| is far below the cap c; x itself if the cap is None."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def _logits(head, hidden, unembedding, bias):
    product = _times(hidden, unembedding, head.axis, jnp.float32)
    return soft_cap(product if bias is None else product + bias.astype(jnp.float32)[None], head.cap)


def _chunks(size, *arrays):
    """Splits arrays of N rows into [chunks, at most size, ...]; zeros (masked) fill the last chunk."""
    size = max(1, min(size, arrays[0].shape[0]))
    short = -arrays[0].shape[0] % size

    def chunked(x):
        padded = jnp.pad(x, [(0, short)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(-1, size, *x.shape[1:])

    return tuple(chunked(x) for x in arrays)


@functools.cache
def _by_rows(row_fn, size, head):
    """Returns `f(unembedding, bias, *rows)`, which runs row_fn on `size` rows at a time; the last array is the mask.

    `head` is the first argument of row_fn. The bias may be None.

    A plain vmap over K and B would make each chunk K·B times as large; here, batched rows become more rows. Target
    tokens are sorted to the front, and chunks without targets are skipped, so prompts, images and padding are never
    multiplied by the unembedding.
    """

    @jax.custom_batching.custom_vmap
    def chunked(unembedding, bias, *rows):
        run = functools.partial(row_fn, head, unembedding, bias)

        def zeros(*chunk):
            return jax.tree.map(lambda out: jnp.zeros(out.shape, out.dtype), jax.eval_shape(run, *chunk))

        def one(chunk):
            return jax.lax.cond(chunk[-1].any(), run, zeros, *chunk)

        order = jnp.argsort(rows[-1] == 0)  # stable

        def in_input_order(out):
            flat = out.reshape(-1, *out.shape[2:])[: order.size]
            return jnp.zeros_like(flat).at[order].set(flat)

        return jax.tree.map(in_input_order, jax.lax.map(one, _chunks(size, *(x[order] for x in rows))))

    @chunked.def_vmap
    def more_rows(axis_size, in_batched, unembedding, bias, *rows):
        if in_batched[0] or in_batched[1]:  # each has its own output layer, so there is nothing to share

            def one(i):
                arrays = zip((unembedding, bias, *rows), in_batched, strict=True)
                return chunked(*(x[i] if batched else x for x, batched in arrays))

            outs = jax.lax.map(one, jnp.arange(axis_size))
        else:
            full = [x if b else jnp.broadcast_to(x, (axis_size, *x.shape)) for x, b in zip(rows, in_batched[2:])]  # noqa: B905
            outs = chunked(unembedding, bias, *(x.reshape(-1, *x.shape[2:]) for x in full))
            outs = jax.tree.map(lambda out: out.reshape(axis_size, -1, *out.shape[1:]), outs)
        return outs, jax.tree.map(lambda _: True, outs)

    return chunked


def _token(head, unembedding, bias, h, x, m):
    """Computes m_t log p(x_t) for rows h [N, D], targets x [N] and mask m [N] -> [N]."""
    z = _logits(head, h, unembedding, bias)
    return jnp.where(m > 0.0, jnp.take_along_axis(z, x[:, None], 1)[:, 0] - jax.nn.logsumexp(z, axis=-1), 0.0)


def _token_and_dz(head, unembedding, bias, h, x, m):
    """Computes `_token` and its gradient with respect to the logits before the cap [N, V].

    It is m_t (onehot(x_t) − softmax(z_t)), times the slope of the cap, 1 − (z / c)² at a capped z.
    """
    z = _logits(head, h, unembedding, bias)
    log_normaliser = jax.nn.logsumexp(z, axis=-1, keepdims=True)
    rows = jnp.arange(x.size)
    dz = (-m[:, None] * jnp.exp(z - log_normaliser)).at[rows, x].add(m)
    if head.cap is not None:
        dz = dz * (1.0 - jnp.square(z / head.cap))
    token = (jnp.take_along_axis(z, x[:, None], 1) - log_normaliser)[:, 0]
    return jnp.where(m > 0.0, token, 0.0), dz


def _token_and_dh(head, unembedding, bias, h, x, m):
    """Computes `_token` and its gradient with respect to the hidden states [N, D]."""
    token, dz = _token_and_dz(head, unembedding, bias, h, x, m)
    return token, _times(dz.astype(h.dtype), unembedding, 1 - head.axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _token_log_likelihood(size, head, hidden, unembedding, bias, targets, mask):
    """Computes m_t log p(x_t) for N tokens: hidden [N, D], targets and mask [N] -> [N]."""
    return _by_rows(_token, size, head)(unembedding, bias, hidden, targets, mask)


def _forward(size, head, hidden, unembedding, bias, targets, mask):
    token, dh = _by_rows(_token_and_dh, size, head)(unembedding, bias, hidden, targets, mask)
    return token, (dh, hidden, unembedding, bias, targets, mask)


def _backward(size, head, saved, g):
    dh, hidden, unembedding, bias, targets, mask = saved

    def chunk(totals, rows):
        h, x, m, g = rows
        dz = _token_and_dz(head, unembedding, bias, h, x, m)[1] * g[:, None]
        left, right = (h, dz.astype(h.dtype)) if head.axis == 0 else (dz.astype(h.dtype), h)
        d_unembedding = jnp.matmul(left.T, right, preferred_element_type=jnp.float32)
        return jax.tree.map(jnp.add, totals, (d_unembedding, None if bias is None else dz.sum(0))), None

    # The compiler drops these where the output layer is frozen, as it is when adapters are trained.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (unembedding, bias))
    totals, _ = jax.lax.scan(chunk, zeros, _chunks(size, hidden, targets, mask, g))
    of_layer = jax.tree.map(lambda d, x: d.astype(x.dtype), totals, (unembedding, bias))
    return g.astype(dh.dtype)[:, None] * dh, *of_layer, None, None


_token_log_likelihood.defvjp(_forward, _backward)
