"""Sizes and numerics of Llama-like models, read from a Hugging Face `config.json` and written as one.

Source: Hugging Face transformers 5.23, `configuration_*.py` of `models/llama`, `models/mistral`, `models/qwen2`,
`models/qwen3` and `models/smollm3`. `phi` and `gemma_config` extend it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from jax.typing import DTypeLike

from mcl_jax import options
from mcl_jax.models import decoder
from mcl_jax.models.hf_config import check_divides, check_sizes
from mcl_jax.models.rotary import Rope

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
QWEN = dict(num_key_value_heads=32, max_position_embeddings=32768, sliding_window=4096, max_window_layers=28)
# Defaults of Hugging Face's classes, for entries that a config.json leaves out.
DEFAULTS = {
    "llama": dict(),
    "mistral": dict(num_key_value_heads=8, max_position_embeddings=131072, sliding_window=4096),
    "qwen2": QWEN,
    "qwen3": QWEN | dict(head_dim=128),
    "smollm3": dict(
        num_key_value_heads=4,
        max_position_embeddings=32768,
        rope_theta=2e6,
        tie_word_embeddings=True,
        no_rope_layer_interval=4,
    ),
    "phi3": dict(
        vocab_size=32064,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
        rms_norm_eps=1e-5,
    ),
}
# Defaults for entries that only a text_config inside another config.json may leave out.
TEXT_DEFAULTS = {
    "llama": dict(vocab_size=32000, intermediate_size=11008),
    "mistral": dict(vocab_size=32000, intermediate_size=14336),
    "qwen2": dict(vocab_size=151936, intermediate_size=22016),
    "qwen3": dict(vocab_size=151936, intermediate_size=22016),
    "smollm3": dict(
        vocab_size=128256, hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16
    ),
}
# Entries for which null has a meaning of its own in Hugging Face: as many as there are heads, and no window.
MEANT_NULL = ("num_key_value_heads", "sliding_window")
ALL_SLIDE = ("mistral", "phi3")  # a window is that of all layers
MOST_LAYERS = 10_000  # a damaged file may claim any number


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes and numerics, under Hugging Face's names.

    Args:
      vocab_size: V, number of tokens.
      hidden_size: D, width of the residual stream.
      intermediate_size: F, width of the feed-forward layers.
      num_hidden_layers: L.
      num_attention_heads: H.
      num_key_value_heads: Hkv, heads of keys and values; must divide H. None means H.
      head_dim: d, width of a head; None means D / H.
      rms_norm_eps: added to the mean square in every norm.
      rope: rotary embeddings.
      tie_word_embeddings: whether the output layer is the transposed token embedding.
      qkv_bias, o_bias, mlp_bias: whether those projections have biases.
      qk_norm: whether each head of the queries and keys is normalised before it is rotated.
      rope_layers: whether each layer rotates queries and keys; None means that all do.
      sliding_windows: number of tokens that a query sees in each layer, including itself; None sees everything.
      initializer_range: standard deviation of randomly initialised weights.
      dtype: dtype of the computation; attention scores and logits are always float32.
      param_dtype: dtype of the parameters.
      scan: use one scanned layer instead of L layers.
      remat: what the backward pass computes again instead of storing it: "none", "full" or "dots", see
        `decoder.check_remat`; True is "full".
    Raises:
      ValueError: if a size is not positive, or two sizes do not fit together.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    rope: Rope = dataclasses.field(default_factory=Rope)
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    rope_layers: tuple[bool, ...] | None = None
    sliding_windows: tuple[int | None, ...] | None = None
    initializer_range: float = 0.02
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: bool | decoder.Remat = False
    model_types: ClassVar[tuple[str, ...]] = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
    rotates_partly: ClassVar[bool] = False

    def __post_init__(self):
        check_sizes(self, SIZES)
        decoder.check_remat(self.remat)
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if self.head_dim is None:
            check_divides(self, "num_attention_heads", "hidden_size")
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        check_divides(self, "num_key_value_heads", "num_attention_heads")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embeddings, got {self.head_dim}.")
        self.rope.check_head(self.head_dim, partly=self.rotates_partly)
        for name in ("sliding_windows", "rope_layers"):
            if (of_layers := getattr(self, name)) is None:
                continue
            object.__setattr__(self, name, tuple(of_layers))  # a list would not be hashable
            if len(of_layers) != self.num_hidden_layers:
                raise ValueError(
                    f"{name} must have one entry for each of {self.num_hidden_layers} layers, got {len(of_layers)}."
                )

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Number of tokens that a query sees in each layer; None sees everything."""
        return self.sliding_windows or (None,) * self.num_hidden_layers

    @property
    def attention_scale(self) -> float:
        """Factor of the attention scores."""
        return self.head_dim**-0.5

    @property
    def attention_cap(self) -> float | None:
        """Soft-cap of the attention scores; None leaves them as they are."""
        return None

    @property
    def family(self) -> str:
        """The `model_type` of a model with these settings.

        Raises:
          ValueError: if Hugging Face has none.
        """
        if self.qk_norm and self.rope_layers is not None:
            raise ValueError("no model_type of Hugging Face has both qk_norm and rope_layers; choose one of them.")
        if self.qk_norm:
            return "qwen3"
        if self.rope_layers is not None:
            return "smollm3"
        if self.qkv_bias and not self.o_bias:
            return "qwen2"
        return "mistral" if any(self.windows) else "llama"

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any], **overrides: Any) -> "LlamaConfig":
        """Reads the dict of a Hugging Face `config.json`. Dropout rates are ignored, since the base is frozen.

        Args:
          hf_config: the dict.
          **overrides: fields of this class that replace those of the dict.
        Raises:
          ValueError: if a required entry is missing, or the model cannot compute what the dict describes.
        """
        family = hf_config.get("model_type")
        if family not in cls.model_types:
            raise ValueError(f"model_type must be one of {cls.model_types}, got {family!r}.")
        hf_config = DEFAULTS[family] | options.given(hf_config, meaning=MEANT_NULL)
        if hf_config.get("hidden_act", "silu") != "silu":
            raise ValueError(f"hidden_act must be 'silu', got {hf_config['hidden_act']!r}.")
        plain = (*SIZES, "rms_norm_eps", "initializer_range", "tie_word_embeddings", "mlp_bias")
        fields = {name: hf_config[name] for name in plain if hf_config.get(name) is not None}
        missing = [name for name in SIZES[:5] if name not in fields]
        if missing:
            raise ValueError(f"a {family} config.json must have {missing}, got only {sorted(hf_config)}.")
        fields["rope"] = Rope.from_hf(hf_config)
        fields["qk_norm"] = family == "qwen3"
        fields["rope_layers"] = _rope_layers(hf_config, fields["num_hidden_layers"])
        fields["sliding_windows"] = _sliding_windows(hf_config, fields["num_hidden_layers"], fields["rope_layers"])
        fields["qkv_bias"] = family == "qwen2" or bool(hf_config.get("attention_bias"))
        fields["o_bias"] = family != "qwen2" and bool(hf_config.get("attention_bias"))
        return cls(**fields | overrides)

    @classmethod
    def from_text_config(cls, hf_config: Mapping[str, Any], **overrides: Any) -> "LlamaConfig":
        """Reads the `text_config` of an image or audio model, as `from_hf` does, with Hugging Face's defaults."""
        hf_config = options.given(hf_config, meaning=MEANT_NULL)
        family = hf_config.get("model_type", "llama")
        sizes = dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32)
        return cls.from_hf({"model_type": family} | sizes | TEXT_DEFAULTS.get(family, {}) | hf_config, **overrides)

    def to_hf(self) -> dict[str, Any]:
        """Returns the dict of a Hugging Face `config.json` of this model."""
        family = self.family
        plain = (*SIZES, "rms_norm_eps", "initializer_range", "tie_word_embeddings")
        known = {name: getattr(self, name) for name in plain}
        known |= {"model_type": family, "architectures": [ARCHITECTURES[family]], "hidden_act": "silu"}
        known |= {"max_position_embeddings": self.rope.max_positions, "rope_parameters": self.rope.to_hf()}
        if family in ("llama", "qwen3", "smollm3"):
            known["attention_bias"] = self.qkv_bias
        if family in ("llama", "smollm3"):
            known["mlp_bias"] = self.mlp_bias
        if self.rope_layers is not None:
            known["no_rope_layers"] = list(map(int, self.rope_layers))
        if any(self.windows):
            kinds = ["full_attention" if w is None else "sliding_attention" for w in self.windows]
            known |= {"sliding_window": next(filter(None, self.windows)), "use_sliding_window": True}
            known |= {} if family in ALL_SLIDE else {"layer_types": kinds}
        return known


def _rope_layers(hf_config: Mapping[str, Any], num_layers: int) -> tuple[bool, ...] | None:
    """Returns which layers rotate: in SmolLM3 those with a 1 in `no_rope_layers`, or else all but every fourth."""
    if hf_config["model_type"] != "smollm3":
        return None
    interval = hf_config["no_rope_layer_interval"]
    flags = hf_config.get("no_rope_layers", [(i + 1) % interval for i in range(num_layers)])
    return tuple(map(bool, flags[:num_layers]))


def _sliding_windows(
    hf_config: Mapping[str, Any], num_layers: int, rope_layers: tuple[bool, ...] | None
) -> tuple[int | None, ...] | None:
    """Returns the windows: in Mistral and Phi of all layers, elsewhere by `layer_types` if `use_sliding_window` is on.

    Without `layer_types`, Qwen's layers have a window from `max_window_layers` on, and SmolLM3's where nothing rotates.
    """
    window = hf_config.get("sliding_window")
    if window is None or hf_config["model_type"] == "llama":
        return None
    if (family := hf_config["model_type"]) in ALL_SLIDE:
        options.check_integers(1, sliding_window=window, num_hidden_layers=num_layers)
        if num_layers > MOST_LAYERS:
            raise ValueError(f"num_hidden_layers must be at most {MOST_LAYERS}, got {num_layers}.")
        if hf_config.get("layer_types"):
            raise ValueError(f"a {family} config.json must not have layer_types, since all layers share one window.")
        return (window,) * num_layers
    if not hf_config.get("use_sliding_window", False):
        return None
    full = rope_layers or [i < hf_config["max_window_layers"] for i in range(num_layers)]
    kinds = hf_config.get("layer_types") or ["full_attention" if whole else "sliding_attention" for whole in full]
    return windows_of(kinds, window)


def windows_of(layer_types: Sequence[str], window: int | None) -> tuple[int | None, ...]:
    """Returns the window of each layer: `window` tokens for "sliding_attention", None for "full_attention".

    Raises:
      ValueError: if a layer has another type; names it.
    """
    if unknown := sorted(set(layer_types) - {"full_attention", "sliding_attention"}):
        raise ValueError(f"layer_types must be 'full_attention' or 'sliding_attention', got {unknown}.")
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)
