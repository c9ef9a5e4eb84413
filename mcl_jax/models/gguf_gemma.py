"""What GGUF files of Gemma 2 and 3 say otherwise than those of Llama: names of norms, windows, caps and rotations.

Their norms are stored as 1 + w. What llama.cpp derives from the size of a model is derived here too: which layers are
global, and the factor of the attention scores. Source: llama.cpp, `llama-model.cpp` and `convert_hf_to_gguf.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mcl_jax.models.gemma_config import CAPS, PERIOD

MODEL_TYPES = {"gemma2": "gemma2", "gemma3": "gemma3_text"}  # by general.architecture
NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
SHARED = {"attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"}
READ = {  # metadata, beside those of all models
    "gemma2": SHARED,
    "gemma3": SHARED | {"attention.sliding_window_pattern", "rope.freq_base_swa", "rope.scaling.factor"},
}
WIDE_HEADS = {"gemma2": 46, "gemma3": 62}  # layers of the 27B, whose scores are divided by √(D / H) instead of √d


Number = Callable[..., Any]  # (name, default) -> entry of the metadata that must be a number above 0


def hf_entries(
    architecture: str, number: Number, given: Mapping[str, Any], entries: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the entries of a `config.json` that Gemma has of its own, or with another meaning.

    Args:
      architecture: `general.architecture`.
      number: reads an entry, see `Number`.
      given: entries of the metadata, without the architecture in their names.
      entries: entries of the `config.json` that all models have.
    """
    own = _of_gemma2(number) if architecture == "gemma2" else _of_gemma3(number, given, entries["rope_parameters"])
    wide = entries["num_hidden_layers"] == WIDE_HEADS[architecture]
    over_all = entries["hidden_size"] // entries["num_attention_heads"]
    scalar = over_all if wide else entries["head_dim"]
    return own | {"model_type": MODEL_TYPES[architecture], "query_pre_attn_scalar": scalar}


def _of_gemma2(number: Number) -> dict[str, Any]:
    return {
        "sliding_window": number("attention.sliding_window", 4096),
        "attn_logit_softcapping": number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": number("final_logit_softcapping", 30.0),
    }


def _of_gemma3(number: Number, given: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, Any]:
    optional = lambda name: number(name) if given.get(name) else None
    factor, scaling = optional("rope.scaling.factor"), {}
    if factor is not None and given.get("rope.scaling.type", "linear") == "linear":  # as llama.cpp does
        scaling = {"rope_type": "linear", "factor": factor}
    local = {"rope_type": "default", "rope_theta": number("rope.freq_base_swa", 10000.0)}
    window = optional("attention.sliding_window")
    period = number("attention.sliding_window_pattern", PERIOD["gemma3_text"])
    return {
        "sliding_window": window,
        "sliding_window_pattern": 1 if window is None else period,  # without a window, all layers are global
        **{name: optional(name) for name in CAPS},
        "rope_parameters": {"full_attention": {**rope, **scaling}, "sliding_attention": local},
    }
