"""Weight-decomposed adapters (DoRA), in which the length of the weights of each output is a parameter of its own.

    y = (x W + s x A B) · m / ‖W + s A B‖        one m and one norm, over the inputs, for each output

The norm counts as a constant in the gradient. Source: Liu et al., DoRA (arXiv 2402.09353), equations 5 and 11. With
K hypotheses, W + s A B would be K kernels for each layer. The norms need none of them:

    ‖W + s A B‖² = ‖W‖² + 2 s Σ_r (Aᵀ W)_r B_r + s² Σ_rq B_r (Aᵀ A)_rq B_q
"""

import string
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mcl_jax.dtypes import at_least_float32
from mcl_jax.lora.linear import LinearSpec, contract, delta, rank_axes

MAGNITUDE = "magnitude"  # name of the leaf m


def decomposed_delta(spec: LinearSpec, x: Array, kernel: Array, a: Array, b: Array, m: Array, scale: float) -> Array:
    """Computes what DoRA adds to x W: (m / ‖W + s A B‖ − 1) · x W + m / ‖W + s A B‖ · s x A B."""
    norm = jax.lax.stop_gradient(norm_of_sum(spec, kernel, a, b, scale))
    gain = _quotient(m.astype(norm.dtype), norm).astype(x.dtype)
    times = lambda y, gain: jnp.einsum(f"{spec.y},{outputs(spec)}->{spec.y}", y, gain)
    base = contract(f"{spec.x},{spec.kernel}->{spec.y}", x, kernel.astype(x.dtype))
    return times(base, gain - 1) + times(delta(spec, x, a, b, scale), gain)


def outputs(spec: LinearSpec) -> str:
    """Axes of m: those of the kernel, without the contracted ones."""
    return spec.kernel.replace(spec.contracted, "")


def norm_of_sum(spec: LinearSpec, kernel: Array, a: Array, b: Array, scale: float) -> Array:
    """Computes ‖W + s A B‖ for each output, in float32 or wider, without W + s A B."""
    w, a, b = (x.astype(at_least_float32(kernel.dtype)) for x in (kernel, a, b))
    r, q = [c for c in string.ascii_letters if c not in spec.equation][:2]
    of, out = spec.batch, outputs(spec)
    product = jnp.einsum(f"{spec.a},{spec.kernel}->{spec.b}", a, w)  # Aᵀ W
    gram = jnp.einsum(f"{spec.a},{spec.a.replace(r, q)}->{of}{r}{q}", a, a)  # Aᵀ A
    squared = jnp.einsum(f"{spec.kernel},{spec.kernel}->{out}", w, w)
    squared += 2 * scale * jnp.einsum(f"{spec.b},{spec.b}->{out}", product, b)
    squared += scale**2 * jnp.einsum(f"{spec.b},{of}{r}{q},{spec.b.replace(r, q)}->{out}", b, gram, b)
    return jnp.sqrt(jnp.maximum(squared, 0.0))


def start_of_m(spec: LinearSpec, kernel: Array) -> Array:
    """Returns m = ‖W‖ in float32, with which B = 0 is the base; the axes of stacked layers come first.

    Raises:
      ValueError: if the kernel has no values.
    """
    if not isinstance(kernel, jax.Array | np.ndarray):
        raise ValueError(f"LoraConfig: dora=True starts from the norms of kernels, so it needs arrays, got {kernel!r}")
    axes = tuple(spec.kernel.index(c) - len(spec.kernel) for c in spec.contracted)
    return jnp.linalg.vector_norm(jnp.asarray(kernel, jnp.float32), axis=axes)


def with_length(total: Array, a: Any, b: Any, m: Array) -> Array:
    """Computes (W + s A B) · m / ‖W + s A B‖ from the sum; the shapes of A and B tell the axes of its inputs."""
    first = rank_axes(total.shape, a.shape, b.shape)[0]
    axes = tuple(range(first, first + total.ndim - b.ndim + 1))
    norm = jnp.linalg.vector_norm(total, axis=axes, keepdims=True)
    return total * _quotient(jnp.expand_dims(m.astype(total.dtype), axes), norm)


def _quotient(m: Array, norm: Array) -> Array:
    """Returns m / ‖·‖; 0 for an output whose weights are all 0."""
    return jnp.where(norm > 0.0, m / jnp.where(norm > 0.0, norm, 1.0), 0.0)
