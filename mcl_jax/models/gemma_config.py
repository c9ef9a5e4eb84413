"""Sizes and numerics of Gemma 1, 2 and 3, read from a Hugging Face `config.json` and written as one.

Source: Hugging Face transformers 5.23, `configuration_gemma.py`, `configuration_gemma2.py` and
`configuration_gemma3.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mcl_jax import options
from mcl_jax.models.llama_config import MOST_LAYERS, SIZES, LlamaConfig, windows_of
from mcl_jax.models.rotary import Rope

ARCHITECTURES = {
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
ACTIVATION = "gelu_pytorch_tanh"
# Defaults of Hugging Face's classes, for entries that a config.json leaves out, as those of Gemma 3 do.
SHARED = dict(
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    hidden_activation=ACTIVATION,
    tie_word_embeddings=True,
    query_pre_attn_scalar=256,
    sliding_window=4096,
)
CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
MEANT_NULL = ("sliding_window", *CAPS)  # entries for which null says that there is none
DEFAULTS = {
    "gemma": SHARED
    | dict(
        vocab_size=256000,
        max_position_embeddings=8192,
        hidden_size=3072,
        intermediate_size=24576,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=16,
        hidden_act=ACTIVATION,
    ),
    "gemma2": SHARED
    | dict(vocab_size=256000, max_position_embeddings=8192, attn_logit_softcapping=50.0, final_logit_softcapping=30.0),
    "gemma3_text": SHARED | dict(vocab_size=262208, max_position_embeddings=131072),
}
PERIOD = {"gemma2": 2, "gemma3_text": 6}  # every second or sixth layer is global, where layer_types says nothing
THETAS = {"full_attention": 1e6, "sliding_attention": 1e4}  # of Gemma 3
PLAIN = (*SIZES, "rms_norm_eps", "initializer_range", "tie_word_embeddings", "query_pre_attn_scalar", *CAPS)
NUMERICS = ("dtype", "param_dtype", "scan", "remat")  # not in a config.json


@dataclasses.dataclass(frozen=True)
class GemmaConfig(LlamaConfig):
    """Sizes and numerics, under Hugging Face's names: those of `LlamaConfig`, and what follows.

    Gemma 3 has `qk_norm`, and its `rope_layers` are the global ones. Gemma 1 has neither windows nor caps.

    Args:
      four_norms: whether norms follow attention and MLP, too; only in Gemma 1 they do not.
      local_rope: rotary embeddings of layers that are not in `rope_layers`.
      query_pre_attn_scalar: attention scores are divided by its square root.
      attn_logit_softcapping: soft-cap of attention scores; None leaves them as they are.
      final_logit_softcapping: soft-cap of logits; None leaves them as they are.
    Raises:
      ValueError: as in `LlamaConfig`, or if query_pre_attn_scalar or a cap is not above 0, or only one of rope_layers
        and local_rope is given.
    """

    four_norms: bool = True
    local_rope: Rope | None = None
    query_pre_attn_scalar: int = 256
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None

    def __post_init__(self):
        super().__post_init__()
        options.check_integers(1, query_pre_attn_scalar=self.query_pre_attn_scalar)
        for name in CAPS:
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}.")
        if (self.rope_layers is None) != (self.local_rope is None):
            raise ValueError(
                f"rope_layers and local_rope must be given together, got {self.rope_layers} and {self.local_rope}."
            )
        if self.local_rope is not None:
            self.local_rope.check_head(self.head_dim)

    @property
    def attention_scale(self) -> float:
        """Factor of the attention scores."""
        return self.query_pre_attn_scalar**-0.5

    @property
    def attention_cap(self) -> float | None:
        """Soft-cap of the attention scores; None leaves them as they are."""
        return self.attn_logit_softcapping

    @property
    def family(self) -> str:
        """The `model_type` of a model with these settings."""
        if self.four_norms:
            return "gemma3_text" if self.qk_norm else "gemma2"
        return "gemma"

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any], **overrides: Any) -> "GemmaConfig":
        """Reads the dict of a Hugging Face `config.json`. Dropout rates are ignored, since the base is frozen.

        Args:
          hf_config: the dict; of a model that sees (`gemma3`), its `text_config` is read.
          **overrides: fields of this class that replace those of the dict.
        Raises:
          ValueError: if the model cannot compute what the dict describes.
        """
        if hf_config.get("model_type") == "gemma3":
            hf_config = {"model_type": "gemma3_text"} | dict(hf_config.get("text_config") or {})
        family = hf_config.get("model_type")
        if family not in ARCHITECTURES:
            raise ValueError(f"model_type must be one of {('gemma3', *ARCHITECTURES)}, got {family!r}.")
        hf_config = DEFAULTS[family] | options.given(options.plain(hf_config), meaning=MEANT_NULL)
        _check_supported(hf_config)
        fields = {name: hf_config[name] for name in PLAIN if hf_config.get(name) is not None}
        fields["qkv_bias"] = fields["o_bias"] = bool(hf_config.get("attention_bias"))
        if family == "gemma":
            fields |= {"four_norms": False, "query_pre_attn_scalar": fields["head_dim"]} | dict.fromkeys(CAPS)
            return cls(**fields | {"rope": Rope.from_hf(hf_config)} | overrides)
        kinds = _layer_types(hf_config, fields["num_hidden_layers"])
        if hf_config["sliding_window"] is not None:
            options.check_integers(1, sliding_window=hf_config["sliding_window"])
        fields["sliding_windows"] = windows_of(kinds, hf_config["sliding_window"])
        if family == "gemma2":
            return cls(**fields | {"rope": Rope.from_hf(hf_config)} | overrides)
        rope, local_rope = (_rope(hf_config, kind) for kind in THETAS)
        fields |= dict(rope=rope, local_rope=local_rope, rope_layers=[kind == "full_attention" for kind in kinds])
        return cls(**fields | {"qk_norm": True} | overrides)

    def to_hf(self) -> dict[str, Any]:
        """Returns the dict of a Hugging Face `config.json` of this model.

        Raises:
          ValueError: if no such file can describe these settings; names them.
        """
        family = self.family
        known = {name: getattr(self, name) for name in PLAIN} | {"attention_bias": self.qkv_bias}
        known |= {"model_type": family, "architectures": [ARCHITECTURES[family]], _activation(family)[0]: ACTIVATION}
        known |= {"max_position_embeddings": self.rope.max_positions, "rope_parameters": self.rope.to_hf()}
        is_global = self.rope_layers or [window is None for window in self.windows]
        if family != "gemma":
            known["layer_types"] = ["full_attention" if whole else "sliding_attention" for whole in is_global]
            known["sliding_window"] = next(filter(None, self.windows), None)
        if self.local_rope is not None:
            ropes = zip(THETAS, (self.rope, self.local_rope), strict=True)
            known["rope_parameters"] = {kind: rope.to_hf() for kind, rope in ropes}
        read = type(self).from_hf(known, **{name: getattr(self, name) for name in NUMERICS})
        if lost := [f.name for f in dataclasses.fields(self) if getattr(read, f.name) != getattr(self, f.name)]:
            raise ValueError(f"a {family} config.json cannot describe {', '.join(lost)} of this model.")
        return known


def _activation(family: str) -> tuple[str, tuple[str, ...]]:
    """Returns the entry of the activation and what it may be; "gelu" in early files of Gemma 1 means the tanh form."""
    return ("hidden_act", (ACTIVATION, "gelu")) if family == "gemma" else ("hidden_activation", (ACTIVATION,))


def _check_supported(hf_config: Mapping[str, Any]) -> None:
    """Raises a ValueError if the model cannot compute what a config.json, with defaults, describes."""
    family = hf_config["model_type"]
    name, known = _activation(family)
    if hf_config[name] not in known:
        raise ValueError(f"{name} must be {ACTIVATION!r}, got {hf_config[name]!r}.")
    if hf_config.get("use_bidirectional_attention"):
        raise ValueError("use_bidirectional_attention must be false, since text is read from left to right, got true.")
    if family == "gemma3_text" and hf_config.get("attn_logit_softcapping") is not None:
        cap = hf_config["attn_logit_softcapping"]
        raise ValueError(
            f"attn_logit_softcapping of a gemma3_text must be null, as transformers ignores it, got {cap}."
        )


def _layer_types(hf_config: Mapping[str, Any], num_layers: int) -> list[str]:
    """Returns the kind of each layer: from `layer_types`, or else every second (Gemma 2) or sixth (3) is global."""
    period = PERIOD[hf_config["model_type"]]
    if hf_config["model_type"] == "gemma3_text":
        period = hf_config.get("sliding_window_pattern", period)
    options.check_integers(1, sliding_window_pattern=period, num_hidden_layers=num_layers)
    if kinds := hf_config.get("layer_types"):
        return kinds
    if num_layers > MOST_LAYERS:
        raise ValueError(f"num_hidden_layers must be at most {MOST_LAYERS}, got {num_layers}.")
    return ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(num_layers)]


def _rope(hf_config: Mapping[str, Any], kind: str) -> Rope:
    """Reads the rotary embeddings of one kind of layer: from `rope_parameters`, or the entries of earlier versions.

    Raises:
      ValueError: if `rope_parameters` are not those of kinds of layers, or as `Rope.from_hf` does.
    """
    given = hf_config.get("rope_parameters", {})
    if not isinstance(given, Mapping) or set(given) - set(THETAS):
        raise ValueError(f"rope_parameters of a gemma3_text must have only {list(THETAS)}, got {given!r}.")
    theta, scaling = ("rope_theta", "rope_scaling") if kind == "full_attention" else ("rope_local_base_freq", None)
    entries = options.given(hf_config.get(scaling, {})) | options.given(given.get(kind, {}))
    earlier = {"max_position_embeddings": hf_config["max_position_embeddings"], "rope_theta": hf_config.get(theta)}
    return Rope.from_hf(earlier | {"rope_parameters": entries}, THETAS[kind])
