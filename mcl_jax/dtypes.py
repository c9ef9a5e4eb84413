"""Which dtype sums are taken in."""

import jax.numpy as jnp
from jaxtyping import Array


def at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    """float64 for float64 and float32 for every other dtype, in which sums of many small numbers would lose them."""
    return jnp.dtype(jnp.float64) if dtype == jnp.float64 else jnp.dtype(jnp.float32)


def widened(x: Array) -> Array:
    """x in float32, or in float64 if it is that already."""
    return x.astype(at_least_float32(x.dtype))
