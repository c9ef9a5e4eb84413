"""The families of models: our implementation of each Hugging Face `model_type`, and its names in checkpoints."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from mcl_jax.lora import LoraConfig
from mcl_jax.models.audio_processor import AudioProcessor
from mcl_jax.models.efficient_llava import EfficientLlava, EfficientLlavaConfig
from mcl_jax.models.efficient_llava_processor import EfficientLlavaProcessor
from mcl_jax.models.gemma import Gemma, GemmaConfig
from mcl_jax.models.gpt2 import GPT2, GPT2Config
from mcl_jax.models.gpt_neo import GPTNeo, GPTNeoConfig
from mcl_jax.models.llama import Llama, LlamaConfig
from mcl_jax.models.llava_next import LlavaNext, LlavaNextConfig
from mcl_jax.models.llava_next_processor import LlavaNextProcessor
from mcl_jax.models.paligemma import PaliGemma, PaliGemmaConfig
from mcl_jax.models.paligemma_processor import PaliGemmaProcessor
from mcl_jax.models.phi import Phi, PhiConfig
from mcl_jax.models.qwen2_audio import Qwen2Audio, Qwen2AudioConfig
from mcl_jax.models.smolvlm import SmolVLM, SmolVLMConfig
from mcl_jax.models.smolvlm_processor import SmolVLMProcessor
from mcl_jax.models.whisper import Whisper, WhisperConfig
from mcl_jax.models.whisper_processor import WhisperProcessor


@dataclasses.dataclass(frozen=True)
class Family:
    """Our implementation of a Hugging Face `model_type`, and its names in checkpoints.

    Attributes:
      module: the Linen module.
      config: its config class.
      transposed: whether linear layers are stored as [out, in] (torch's Linear), not [in, out] (GPT-2's Conv1D).
      ignored: pattern of the names of tensors that hold no weights, such as the causal masks of old checkpoints.
      renames: (regular expression, replacement) for the names of other versions of transformers and of models without a
        head; the first match counts.
      in_memory: the reverse, for layers with another name in transformers' memory, which PEFT writes into its files.
      written: the same for tensors that have another name in published files than in the module tree.
      tied: name of a tensor that may be stored although it equals another one, and the name of that other one.
      writes_tied: whether that tensor is always written, because Hugging Face does not tie it.
      processor: class that prepares images or audio clips, if the model takes any; its `from_pretrained` takes the
        folder and the model's config.
      targets: the result of `lora_targets`.
      language_model: path of the part that adapters may be on, if the rest is a frozen tower; () for the whole module.
      task: `task_type` of PEFT's adapters.
    """

    module: type[nn.Module]
    config: Any
    transposed: bool = True
    ignored: str = r"(?!)"
    renames: tuple[tuple[str, str], ...] = ()
    in_memory: tuple[tuple[str, str], ...] = ()
    written: tuple[tuple[str, str], ...] = ()
    tied: tuple[str, str] = ("lm_head.weight", "transformer.wte.weight")
    writes_tied: bool = False
    processor: Any = None
    targets: tuple[str, ...] = LoraConfig.targets
    language_model: tuple[str, ...] = ()
    task: str | None = "CAUSAL_LM"


TO_GPT = ((r"(?=(wte|wpe|h|ln_f)\.)", "transformer."),)
LLAMA = Family(
    Llama,
    LlamaConfig,
    ignored=r"rotary_emb\.inv_freq$",
    renames=((r"(transformer\.)?(?=(embed_tokens|layers|norm)\.)", "model."),),  # "transformer" in question answering
    tied=("lm_head.weight", "model.embed_tokens.weight"),
)
GEMMA = dataclasses.replace(
    LLAMA,
    module=Gemma,
    config=GemmaConfig,
    ignored=rf"{LLAMA.ignored}|(^|\.)(vision_tower|multi_modal_projector)\.",  # of those that see
    renames=(
        (r"(model\.)?language_model\.(model\.)?(?=(embed_tokens|layers|norm)\.)", "model."),
        (r"language_model\.(?=lm_head\b)", ""),
        *LLAMA.renames,
    ),
)
# Published files use the names of the module tree; transformers from 4.52 on uses others in memory.
OF_TEXT_MODEL = (
    (r"(model\.)?language_model\.(?=(embed_tokens|layers|norm)\.)", "language_model.model."),
    (r"lm_head\b", "language_model.lm_head"),
)
IN_MEMORY = ((r"language_model\.model\.", "model.language_model."), (r"language_model\.lm_head\b", "lm_head"))
TIED_TEXT_MODEL = ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight")
LLAVA_NEXT = Family(
    LlavaNext,
    LlavaNextConfig,
    ignored=rf"{LLAMA.ignored}|embeddings\.position_ids$",
    renames=(  # transformers from 5 on writes the tower's names without "vision_model"
        (r"(model\.)?vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
        (r"model\.(?=vision_tower|multi_modal_projector|image_newline)", ""),
        *OF_TEXT_MODEL,
    ),
    in_memory=IN_MEMORY,
    tied=TIED_TEXT_MODEL,
    processor=LlavaNextProcessor,
    language_model=("language_model",),
)
PALIGEMMA = dataclasses.replace(
    LLAVA_NEXT,
    module=PaliGemma,
    config=PaliGemmaConfig,
    ignored=rf"{LLAVA_NEXT.ignored}|^vision_tower\.vision_model\.head\.",  # for a contrast with texts
    processor=PaliGemmaProcessor,
)
SMOLVLM = Family(
    SmolVLM,
    SmolVLMConfig,
    ignored=LLAMA.ignored,
    renames=((r"(?=(vision_model|connector|text_model)\.)", "model."),),
    written=(
        (r"language_model\.model\.", "model.text_model."),
        (r"language_model\.lm_head\b", "lm_head"),
        (r"(?=(vision_model|connector)\.)", "model."),
    ),
    tied=("lm_head.weight", "model.text_model.embed_tokens.weight"),
    processor=SmolVLMProcessor,
    language_model=("language_model",),
)
QWEN2_AUDIO = Family(
    Qwen2Audio,
    Qwen2AudioConfig,
    ignored=LLAMA.ignored,
    renames=((r"model\.(?=audio_tower|multi_modal_projector)", ""), *OF_TEXT_MODEL),
    in_memory=IN_MEMORY,
    tied=TIED_TEXT_MODEL,
    writes_tied=True,
    processor=AudioProcessor,
    language_model=("language_model",),
)
WHISPER = Family(
    Whisper,
    WhisperConfig,
    renames=((r"(?=(encoder|decoder)\.)", "model."),),
    tied=("proj_out.weight", "model.decoder.embed_tokens.weight"),
    processor=WhisperProcessor,
    targets=("q_proj", "k_proj", "v_proj", "fc1", "fc2"),
    language_model=("model", "decoder"),
    task=None,  # PEFT's wrapper for encoder-decoders would hand Whisper `input_ids`, which it does not take
)
EFFICIENT_LLAVA = Family(
    EfficientLlava,
    EfficientLlavaConfig,
    tied=TIED_TEXT_MODEL,
    processor=EfficientLlavaProcessor,
    language_model=("language_model",),
)
FAMILIES = {
    "efficient_llava": EFFICIENT_LLAVA,
    "gemma": GEMMA,
    "gemma2": GEMMA,
    "gemma3": GEMMA,
    "gemma3_text": GEMMA,
    "gpt2": Family(
        GPT2,
        GPT2Config,
        transposed=False,
        ignored=r"\.attn\.(bias|masked_bias)$",
        renames=TO_GPT,
        targets=("c_attn", "mlp/c_fc", "mlp/c_proj"),
    ),
    "gpt_neo": Family(
        GPTNeo,
        GPTNeoConfig,
        ignored=r"attn\.attention\.(bias|masked_bias)$",
        renames=TO_GPT,
        targets=("q_proj", "k_proj", "v_proj", "c_fc", "c_proj"),
    ),
    "idefics3": SMOLVLM,
    "llama": LLAMA,
    "llava_next": LLAVA_NEXT,
    "mistral": LLAMA,
    "paligemma": PALIGEMMA,
    "phi3": dataclasses.replace(LLAMA, module=Phi, config=PhiConfig, targets=("qkv_proj", "gate_up_proj", "down_proj")),
    "qwen2": LLAMA,
    "qwen2_audio": QWEN2_AUDIO,
    "qwen3": LLAMA,
    "smollm3": LLAMA,
    "smolvlm": SMOLVLM,
    "whisper": WHISPER,
}
# Models that look like one of these and are none.
REFUSED = {
    "phi": "Phi-1, 1.5 and 2, whose layers compute attention and MLP side by side",
    "phi3_v": "Phi-3-vision, which sees",
    "phi3small": "Phi-3-small, whose attention is sparse in blocks",
    "phi4_multimodal": "Phi-4-multimodal, which sees and hears",
    "phi4mm": "Phi-4-multimodal, which sees and hears",
    "phimoe": "Phi-3.5-MoE, a mixture of experts",
}


def of_config(hf_config: Mapping[str, Any]) -> Family:
    """Returns the family of a `config.json`.

    Raises:
      ValueError: if the model_type is unknown; names the nearest known ones, or says what the model has that is not
        supported.
    """
    name = hf_config.get("model_type")
    if isinstance(name, str) and name in REFUSED:
        raise ValueError(f"model_type {name!r} ({REFUSED[name]}) is not supported; known are {sorted(FAMILIES)}")
    if not isinstance(name, str) or name not in FAMILIES:
        near = difflib.get_close_matches(str(name), FAMILIES, n=3, cutoff=0.3) or list(FAMILIES)
        raise ValueError(f"unknown model_type {name!r}; known are {sorted(FAMILIES)} (nearest: {', '.join(near)})")
    return FAMILIES[name]


def of_module(module: nn.Module) -> Family:
    """Returns the family of a model.

    Raises:
      TypeError: if the module is not a language model from `mcl_jax.models`.
    """
    of_class = {family.module: family for family in FAMILIES.values()}
    for kind in type(module).__mro__:  # a Gemma is a Llama too
        if kind in of_class:
            return of_class[kind]
    known = sorted({family.module.__name__ for family in FAMILIES.values()})
    raise TypeError(f"the module must be one of {', '.join(known)} from mcl_jax.models, got {type(module).__name__}")


def lora_targets(module: nn.Module) -> tuple[str, ...]:
    """Returns the layers that the paper adapts, under their names in this model: the `targets` of a `LoraConfig`.

    These are the projections of queries, keys and values, and those of the MLP except its gate. In Phi, the gate is a
    part of a layer that is adapted.

    Args:
      module: a language model from `mcl_jax.models`.
    Raises:
      TypeError: if the module is another one, whose layers have other names.
    """
    return of_module(module).targets


def build(hf_config: Mapping[str, Any], **overrides: Any) -> tuple[Family, nn.Module]:
    """Builds the module of a `config.json`; overrides are fields of the model's config, such as dtype or scan."""
    family = of_config(hf_config)
    return family, family.module(family.config.from_hf(hf_config, **overrides))
