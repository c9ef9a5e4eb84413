"""Attention as the models compute it, beside jax.nn.dot_product_attention with and without cuDNN."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.gpu_check.timing import seconds_of
from mcl_jax.models import decoder


def steps(quick: bool) -> Iterator[dict[str, Any]]:
    """Yields seconds and temporary bytes of forward and backward passes, causal, with padding on the left."""
    result = {}
    shapes = [(2, 16, 2, 16)] if quick else [(16, 512, 9, 64), (8, 512, 32, 128), (4, 2048, 32, 128)]
    result["difference of the fused kernel"] = difference(*((2, 16, 4, 2, 16) if quick else (2, 129, 6, 3, 64)))
    yield result
    assert result["difference of the fused kernel"] < 0.02, result
    for B, T, H, d in shapes:
        q, k, v = (jax.random.normal(jax.random.key(i), (B, T, H, d), jnp.bfloat16) for i in range(3))
        mask = jnp.arange(T)[None] >= jnp.arange(B)[:, None]
        row = result[f"B={B} T={T} H={H} d={d}"] = {}
        for name, function in ways(mask).items():
            row[name] = measured(function, q, k, v, mask)
            yield result


def difference(B: int, T: int, H: int, groups: int, d: int) -> float:
    """Returns how far causal attention and its gradients in bfloat16 are from float32, under vmap over 3."""
    shapes = [(3, B, T, H, d), (3, B, T, groups, d), (3, B, T, groups, d), (3, B, T, H, d)]
    q, k, v, g = (jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i, shape in enumerate(shapes))

    def run(dtype):
        def one(q, k, v, g):
            far = jnp.broadcast_to(jnp.arange(T)[:, None] - jnp.arange(T)[None], (B, T, T))
            y = decoder.attend(q, (k, v, far), scale=d**-0.5, order="causal")
            return y, (y * g).astype(jnp.float32).sum()

        inputs = [x.astype(dtype) for x in (q, k, v, g)]
        y, _ = jax.jit(jax.vmap(one))(*inputs)
        return y, *jax.jit(jax.grad(lambda *x: jax.vmap(one)(*x)[1].sum(), (0, 1, 2)))(*inputs)

    pairs = zip(run(jnp.bfloat16), run(jnp.float32), strict=True)
    return float(np.max([jnp.abs(a - b).max() / jnp.abs(b).max() for a, b in pairs]))  # NaN if one has a NaN


def ways(mask: jax.Array) -> dict[str, Callable[..., jax.Array]]:
    """Returns functions of q, k, v and mask."""

    def attend(q, k, v, mask):
        positions = decoder.positions_of(mask, mask)
        distances = decoder.distances(positions, positions, mask)
        return decoder.attend(q, (k, v, distances), scale=q.shape[-1] ** -0.5)

    def library(q, k, v, mask, implementation):
        visible = jnp.tril(jnp.ones((q.shape[1], q.shape[1]), bool))[None] & mask[:, None]
        return jax.nn.dot_product_attention(q, k, v, mask=visible[:, None], implementation=implementation)

    def causal(q, k, v, mask):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")

    def as_trained(q, k, v, mask):
        positions = jnp.broadcast_to(jnp.arange(q.shape[1])[None], q.shape[:2])
        distances = decoder.distances(positions, positions, jnp.ones_like(mask))
        return decoder.attend(q, (k, v, distances), scale=q.shape[-1] ** -0.5, order="causal")

    return {
        "attend, causal": as_trained,
        "attend": attend,
        "xla": partial(library, implementation="xla"),
        "cudnn, mask": partial(library, implementation="cudnn"),
        "cudnn, causal without mask": causal,
    }


def measured(function: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> Any:
    """Times the forward pass, and the gradient; returns the error if it cannot run here."""
    loss = lambda q, k, v: jnp.where(mask[..., None, None], function(q, k, v, mask), 0).astype(jnp.float32).sum()
    try:
        forward, gradient = jax.jit(lambda q, k, v: function(q, k, v, mask)), jax.jit(jax.grad(loss, (0, 1, 2)))
        temp = gradient.lower(q, k, v).compile().memory_analysis().temp_size_in_bytes
        times = (seconds_of(run, q, k, v).median for run in (forward, gradient))
        return [round(1000 * seconds, 3) for seconds in times] + [round(temp / 2**20, 1)]
    except (ValueError, RuntimeError, NotImplementedError) as error:
        return str(error)[:200]
