"""GPT-2: one fused projection to queries, keys and values. The rest is in `gpt`.

Hugging Face stores GPT-2's weights as [in, out] (its Conv1D), so loading does not transpose them.
Source: Hugging Face transformers 5.23, `models/gpt2/modeling_gpt2.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mcl_jax import options
from mcl_jax.models import decoder
from mcl_jax.models.gpt import GPT, GPTConfig
from mcl_jax.models.layers import dense

RENAMED = {
    "n_embd": "hidden_size",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
}
UNSUPPORTED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}


class Attention(nn.Module):
    """Computes softmax(Q Kᵀ / √d) V from one projection `c_attn` [D, 3 D]."""

    config: "GPT2Config"

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], context: decoder.Context, window: Any, past: Any):
        """Returns the output [B, T, D], and its keys and values as `decoder.stored` if the context keeps them."""
        D, H = self.config.hidden_size, self.config.num_heads
        q, k, v = jnp.split(dense(self.config, 3 * D, "c_attn")(x), 3, axis=-1)
        q, k, v = (y.reshape(*x.shape[:2], H, D // H) for y in (q, k, v))
        own = k, v, context.own
        y = decoder.attend(q, own, context.seen(past), window=window, scale=(D // H) ** -0.5, order=context.order)
        return dense(self.config, D, "c_proj")(y.reshape(x.shape)), context.kept(k, v)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPT2Config(GPTConfig):
    """Sizes and numerics of a GPT-2."""

    attention = Attention

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any], **overrides: Any) -> "GPT2Config":
        """Reads the dict of a Hugging Face `config.json`, as `GPTNeoConfig.from_hf` does.

        Raises:
          ValueError: if a required entry is missing, or the model cannot compute what the dict describes.
        """
        hf_config = options.given(hf_config)
        if hf_config.get("activation_function", "gelu_new") != "gelu_new":
            raise ValueError(f"activation_function must be 'gelu_new', got {hf_config['activation_function']!r}.")
        for name, needed in UNSUPPORTED.items():
            if hf_config.get(name, needed) != needed:
                raise ValueError(f"{name} must be {needed}, since nothing else is supported, got {hf_config[name]!r}.")
        return cls._from_entries({RENAMED.get(name, name): value for name, value in hf_config.items()}, overrides)

    def to_hf(self) -> dict[str, Any]:
        """Returns the dict of a Hugging Face `config.json` of this model."""
        known = {theirs: getattr(self, ours) for theirs, ours in RENAMED.items()}
        known |= {name: getattr(self, name) for name in ("vocab_size", "layer_norm_epsilon", "initializer_range")}
        return known | {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "tie_word_embeddings": True}


class GPT2(GPT):
    """GPT-2 with its tied output layer."""

    config: GPT2Config
