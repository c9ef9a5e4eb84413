"""Dtypes for sums and of states, and names of dtypes."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    """Returns float64 for float64, else float32, since sums of many small numbers lose precision in smaller dtypes."""
    return jnp.dtype(jnp.float64) if dtype == jnp.float64 else jnp.dtype(jnp.float32)


def name_of(dtype: Any) -> str:
    """Returns the name of a dtype.

    Raises:
      ValueError: if it is none.
    """
    try:
        return jnp.dtype(dtype).name
    except TypeError:
        raise ValueError(f"a dtype must be one such as float32 or bfloat16, got {dtype!r}") from None


def widened(x: Array) -> Array:
    """Returns x in float32, or unchanged if it is float64."""
    return x.astype(at_least_float32(x.dtype))


def cast(leaf: Array, like: Array) -> Array:
    """Casts the leaf to the dtype of another, so that a state keeps its dtypes between steps; keys stay unchanged."""
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jax.lax.convert_element_type(leaf, like.dtype)
