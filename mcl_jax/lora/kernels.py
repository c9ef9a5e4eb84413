"""Whether target layers use their kernels as the parameters store them, which merging B A into them presumes."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from mcl_jax.lora.layer import variable

SAMPLES = 251  # entries of a kernel that are compared
ROUNDING = 0.02  # relative difference that a cast to bfloat16 may make


def sampled(kernel: Array) -> Float[Array, " 251"]:
    """Returns entries of a kernel at fixed random places."""
    places = np.random.default_rng(0).integers(kernel.size, size=SAMPLES)
    return kernel.reshape(-1)[places].astype(jnp.float32)


def sampling_delta(layer: nn.Module, path: str, spec: Any, x: Array) -> Array:
    """A delta function that adds nothing and declares samples of the kernel as variables, in place of A and B."""
    kernel = nn.meta.unbox(layer.get_variable("params", spec.leaf))
    if isinstance(kernel, jax.Array):  # a quantized one is no array
        variable(layer, path, spec.leaf, lambda: sampled(kernel))
    return jnp.zeros(())


def check_kernels(params: Mapping[str, Any], samples: Mapping[str, Any]) -> None:
    """Checks the samples that `sampling_delta` took in a call of the module.

    Args:
      params: the parameters.
      samples: the variables that it declared; layers which `nn.scan` or `nn.vmap` stacks are stacked here too.
    Raises:
      ValueError: if a layer computed with another kernel than the one in the parameters; names it.
    """
    kernels = flatten_dict(params)
    for path, seen in flatten_dict(samples).items():
        kernel, stacked = nn.meta.unbox(kernels[path]), seen.ndim - 1
        if stacked and kernel.shape[:stacked] != seen.shape[:stacked]:
            continue  # stacked along another axis, which `merge` refuses
        stored = sampled
        for _ in range(stacked):
            stored = jax.vmap(stored)
        if not np.allclose(seen, stored(kernel), rtol=ROUNDING, atol=1e-6, equal_nan=True):
            layer = "/".join(path[:-1])
            raise ValueError(
                f"{layer} does not use its kernel as the parameters store it: a transformation such as "
                f"nn.map_variables changes it, so B A could not be merged into it; leave {layer} out of the targets, "
                "or apply the transformation to the parameters first"
            )
