"""Phi-3, Phi-3.5-mini, Phi-4 and Phi-4-mini: a Llama whose queries, keys and values are one layer, as are gate and up.

    params                                                         Hugging Face
    model/layers/self_attn/qkv_proj/kernel  [L, D, (H + 2 Hkv)·d]  model.layers.{i}.self_attn.qkv_proj.weight
    model/layers/mlp/gate_up_proj/kernel    [L, D, 2 F]            model.layers.{i}.mlp.gate_up_proj.weight

both transposed. An adapter of such a layer has one A for all its parts, as in PEFT. The rest is in `llama`: all layers
share a window, Phi-4-mini rotates a part of each head, and models for 128k tokens scale the rotation (longrope): a
batch whose longest row exceeds `original_max_position_embeddings` takes other frequencies. In a generation that crosses
this length, keys from before it stay as they are, while Hugging Face computes them again.

Source: Hugging Face transformers 5.23, `models/phi3`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from mcl_jax.models import llama
from mcl_jax.models.layers import dense
from mcl_jax.models.llama_config import LlamaConfig

ROPES = ("default", "longrope")
ABSENT = ("qkv_bias", "o_bias", "mlp_bias", "qk_norm", "rope_layers")


@dataclasses.dataclass(frozen=True)
class PhiConfig(LlamaConfig):
    """Sizes and numerics, under Hugging Face's names: those of `LlamaConfig`.

    Raises:
      ValueError: as in `LlamaConfig`, or if there are biases, norms of queries and keys, layers without rotation,
        different windows, or another scaling of the rotation than longrope.
    """

    model_types: ClassVar[tuple[str, ...]] = ("phi3",)
    rotates_partly: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if given := [name for name in ABSENT if getattr(self, name)]:
            raise ValueError(f"a phi3 must have no {', '.join(given)}, got {getattr(self, given[0])} for {given[0]}.")
        if self.rope.rope_type not in ROPES:
            raise ValueError(f"rope_type of a phi3 must be one of {ROPES}, got {self.rope.rope_type!r}.")
        if len(set(self.windows)) > 1:
            raise ValueError(f"all layers of a phi3 must share one window, got {self.windows}.")

    @property
    def family(self) -> str:
        """The `model_type` of a model with these settings."""
        return "phi3"

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any], **overrides: Any) -> "PhiConfig":
        """Reads the dict of a Hugging Face `config.json`, as `LlamaConfig.from_hf` does."""
        scaling = hf_config.get("rope_scaling")
        if isinstance(scaling, Mapping) and scaling.get("type") == "su":  # the first name of longrope
            hf_config = {**hf_config, "rope_scaling": {**scaling, "type": "longrope"}}
        return super().from_hf(hf_config, **overrides)

    def to_hf(self) -> dict[str, Any]:
        """Returns the dict of a Hugging Face `config.json` of this model."""
        original = self.rope.original  # here too, as its default goes before that in rope_parameters
        return super().to_hf() | {"original_max_position_embeddings": original}


class SelfAttention(llama.SelfAttention):
    """Causal attention whose queries, keys and values come from one layer, in this order."""

    config: PhiConfig

    def projected(self, x: Float[Array, "B T D"]) -> Sequence[Float[Array, "B T _ d"]]:
        """Returns the queries of H heads, and the keys and values of Hkv."""
        H, Hkv, d = self.config.num_attention_heads, self.config.num_key_value_heads, self.config.head_dim
        y = dense(self.config, (H + 2 * Hkv) * d, "qkv_proj", use_bias=False)(x)
        return jnp.split(y.reshape(*x.shape[:2], -1, d), [H, H + Hkv], axis=2)


class MLP(llama.MLP):
    """Computes down(silu(gate(x)) · up(x)), where gate and up are one layer."""

    config: PhiConfig

    def gate_and_up(self, x: Float[Array, "B T D"]) -> Sequence[Float[Array, "B T F"]]:
        """Returns the two factors, the first of them before the activation."""
        y = dense(self.config, 2 * self.config.intermediate_size, "gate_up_proj", use_bias=False)(x)
        return jnp.split(y, 2, axis=-1)


class Layer(llama.Layer):
    """x ← x + attention(norm(x)), then x ← x + mlp(norm(x))."""

    attention, mlp = SelfAttention, MLP


class Decoder(llama.Decoder):
    """Token embeddings, L layers and a last norm."""

    layer = Layer


class Phi(llama.Llama):
    """A causal language model Phi-3 or Phi-4; see `mcl_jax.models.decoder` for its methods.

    module = Phi(PhiConfig(...))
    params = module.init(key, tokens)["params"]
    logits = module.apply({"params": params}, tokens, mask)
    """

    config: PhiConfig
    stack = Decoder
