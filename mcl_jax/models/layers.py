"""Layers that several families share: embeddings, linear layers and layer norms with the dtypes of a config."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class LayerNorm(nn.Module):
    """Computes (x − E[x]) / √(Var[x] + ε) · scale + bias, in float32.

    `nn.LayerNorm` promotes smaller dtypes implicitly, which strict dtype promotion does not allow.

    Args:
      epsilon: ε.
      dtype: dtype of the output.
      param_dtype: dtype of scale and bias.
    """

    epsilon: float
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], self.param_dtype)
        x, scale, bias = (a.astype(jnp.float32) for a in (x, scale[None, None], bias[None, None]))
        mean, variance = jnp.mean(x, axis=-1, keepdims=True), jnp.var(x, axis=-1, keepdims=True)
        return ((x - mean) * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(self.dtype)


def dense(config: Any, features: int, name: str | None = None, *, use_bias: bool = True) -> nn.Dense:
    """Makes a linear layer with `dtype`, `param_dtype` and `initializer_range` of a config."""
    kernel_init = nn.initializers.normal(config.initializer_range)
    dtypes = dict(dtype=config.dtype, param_dtype=config.param_dtype)
    return nn.Dense(features, use_bias=use_bias, kernel_init=kernel_init, name=name, **dtypes)


def embedding(config: Any, rows: int, features: int, std: float | None = None) -> nn.Embed:
    """Makes a table of embeddings with `dtype` and `param_dtype` of a config.

    Args:
      config: the config.
      rows: number of tokens or positions.
      features: D.
      std: standard deviation of random embeddings; None means the `initializer_range` of the config.
    """
    init = nn.initializers.normal(config.initializer_range if std is None else std)
    return nn.Embed(rows, features, embedding_init=init, dtype=config.dtype, param_dtype=config.param_dtype)


def layer_norm(config: Any, name: str | None = None) -> LayerNorm:
    """Makes a layer norm with `dtype`, `param_dtype` and `layer_norm_epsilon` of a config."""
    return LayerNorm(config.layer_norm_epsilon, config.dtype, config.param_dtype, name=name)
