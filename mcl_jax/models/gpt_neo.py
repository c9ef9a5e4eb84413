"""GPT-Neo: causal attention without the usual 1/√d; each layer is global or has a local window.

The rest is in `gpt`; attention has q_proj, k_proj, v_proj and out_proj under `attn/attention`, as in Hugging Face.
Source: Hugging Face transformers 5.23, `models/gpt_neo/modeling_gpt_neo.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from mcl_jax import options
from mcl_jax.models import decoder
from mcl_jax.models.gpt import GPT, OWN_FIELDS, GPTConfig
from mcl_jax.models.layers import dense

ATTENTION_KINDS = ("global", "local")


class SelfAttention(nn.Module):
    """Computes softmax(Q Kᵀ) V, unscaled, as GPT-Neo was trained."""

    config: "GPTNeoConfig"

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], context: decoder.Context, window: Any, past: Any):
        """Returns the output [B, T, D], and its keys and values as `decoder.stored` if the context keeps them."""
        D, H = self.config.hidden_size, self.config.num_heads
        q, k, v = (dense(self.config, D, name, use_bias=False)(x) for name in ("q_proj", "k_proj", "v_proj"))
        q, k, v = (y.reshape(*x.shape[:2], H, D // H) for y in (q, k, v))
        own = k, v, context.own
        y = decoder.attend(q, own, context.seen(past), window=window, scale=1.0, order=context.order)
        return dense(self.config, D, "out_proj")(y.reshape(x.shape)), context.kept(k, v)


class Attention(nn.Module):
    """Wraps `attention` to get Hugging Face's name, `attn.attention`."""

    config: "GPTNeoConfig"

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], context: decoder.Context, window: Any, past: Any):
        return SelfAttention(self.config, name="attention")(x, context, window, past)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTNeoConfig(GPTConfig):
    """Sizes and numerics of a GPT-Neo: those of `GPTConfig`, and the windows of its layers.

    Args:
      window_size: number of tokens that a query of a local layer sees, including itself.
      attention_layers: "global" or "local" for each of the L layers.
    Raises:
      ValueError: as `GPTConfig` does, or if a layer has no kind or an unknown one.
    """

    attention = Attention

    window_size: int
    attention_layers: tuple[str, ...]

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "attention_layers", tuple(self.attention_layers))  # a list would not be hashable
        options.check_integers(1, window_size=self.window_size)
        if len(self.attention_layers) != self.num_layers:
            raise ValueError(
                f"attention_layers must name one kind for each of num_layers={self.num_layers} layers, "
                f"got {len(self.attention_layers)}: {self.attention_layers}."
            )
        for layer, kind in enumerate(self.attention_layers):
            if kind not in ATTENTION_KINDS:
                raise ValueError(f"attention_layers[{layer}] must be one of {ATTENTION_KINDS}, got {kind!r}.")

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Number of tokens that a query sees in each layer, including itself; None sees everything."""
        return tuple(self.window_size if kind == "local" else None for kind in self.attention_layers)

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any], **overrides: Any) -> "GPTNeoConfig":
        """Reads the dict of a Hugging Face `config.json`. Dropout rates are ignored, since the base is frozen.

        Args:
          hf_config: the dict, for example `json.loads(path.read_text())`.
          **overrides: fields of this class that replace those of the dict, for example `dtype=jnp.bfloat16`.
        Raises:
          ValueError: if a required entry is missing, or the model cannot compute what the dict describes.
        """
        hf_config = options.given(hf_config)
        if hf_config.get("activation_function", "gelu_new") != "gelu_new":
            raise ValueError(f"activation_function must be 'gelu_new', got {hf_config['activation_function']!r}.")
        return cls._from_entries({**hf_config, "attention_layers": _attention_layers(hf_config)}, overrides)

    def to_hf(self) -> dict[str, Any]:
        """Returns the dict of a Hugging Face `config.json` of this model."""
        names = {f.name for f in dataclasses.fields(self)} - OWN_FIELDS
        types = [[[kind], 1] for kind in self.attention_layers]
        known = {name: getattr(self, name) for name in sorted(names)} | {
            "attention_layers": list(self.attention_layers)
        }
        return known | {"model_type": "gpt_neo", "architectures": ["GPTNeoForCausalLM"], "attention_types": types}


def _attention_layers(hf_config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the kind of each layer, from `attention_types` [[kinds, repeats], ...] or `attention_layers`."""
    if "attention_types" in hf_config:
        return tuple(kind for kinds, repeats in hf_config["attention_types"] for _ in range(repeats) for kind in kinds)
    if "attention_layers" in hf_config:
        return tuple(hf_config["attention_layers"])
    raise ValueError(f"a GPT-Neo config.json must have attention_types, got only {sorted(hf_config)}.")


class GPTNeo(GPT):
    """GPT-Neo with its tied output layer.

        model = GPTNeo(GPTNeoConfig(...))
        params = model.init(key, tokens)["params"]
        logits = model.apply({"params": params}, tokens, mask)                       # [B, T, V]
        hidden = model.apply({"params": params}, tokens, mask, method="hidden")      # [B, T, D]
        logits = hidden @ GPTNeo.unembedding(params)                                 # the same (in float32)

    `mask` is True on tokens and False on padding, which may be on either side and has no effect: no token attends to
    it, and positions count tokens only. Outputs at padding are finite but meaningless.
    """

    config: GPTNeoConfig
