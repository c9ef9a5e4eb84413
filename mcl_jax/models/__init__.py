"""Base models: plain Flax Linen modules that know nothing about LoRA or hypotheses.

    module, params, tokenizer = from_pretrained("path/to/folder")    # Hugging Face folder or GGUF file

All models share `decoder` and `layers`; the text models are `gpt2`, `gpt_neo`, `llama` (with Mistral, Qwen2, Qwen3
and SmolLM3, which `llama_config` tells apart), and `gemma` (1 to 3) and `phi` (3 and 4), which replace parts of it.
`llava_next` (with `clip` and `tiling`), `smolvlm` and `paligemma` (with `siglip`) and `efficient_llava` (with
`efficientnet_lite`) take images, and `qwen2_audio` audio; these share `multimodal`. `assembly` makes an
`efficient_llava` of pretrained parts. `whisper`, an encoder-decoder, hears speech, also in the format of CTranslate2
(`ctranslate2_file`). Models that see or hear come with a processor (`processor`, `clip_processor`) instead of a
tokenizer; both that hear share `whisper_encoder`. `families` registers the models, `names` maps their parameters to
tensors of a checkpoint, and `pretrained` loads and saves them. `quantized` stores kernels in fewer bits, and `narrowed`
computes in fewer bits.
"""

from mcl_jax.models.assembly import assemble
from mcl_jax.models.efficient_llava import EfficientLlava, EfficientLlavaConfig
from mcl_jax.models.families import lora_targets
from mcl_jax.models.gemma import Gemma, GemmaConfig
from mcl_jax.models.gpt2 import GPT2, GPT2Config
from mcl_jax.models.gpt_neo import GPTNeo, GPTNeoConfig
from mcl_jax.models.llama import Llama, LlamaConfig
from mcl_jax.models.llava_next import LlavaNext, LlavaNextConfig
from mcl_jax.models.narrowed import narrowed
from mcl_jax.models.paligemma import PaliGemma, PaliGemmaConfig
from mcl_jax.models.phi import Phi, PhiConfig
from mcl_jax.models.pretrained import from_pretrained, save_pretrained
from mcl_jax.models.qwen2_audio import Qwen2Audio, Qwen2AudioConfig
from mcl_jax.models.smolvlm import SmolVLM, SmolVLMConfig
from mcl_jax.models.whisper import Whisper, WhisperConfig

__all__ = [
    "GPT2",
    "EfficientLlava",
    "EfficientLlavaConfig",
    "GPT2Config",
    "GPTNeo",
    "GPTNeoConfig",
    "Gemma",
    "GemmaConfig",
    "Llama",
    "LlamaConfig",
    "LlavaNext",
    "LlavaNextConfig",
    "PaliGemma",
    "PaliGemmaConfig",
    "Phi",
    "PhiConfig",
    "Qwen2Audio",
    "Qwen2AudioConfig",
    "SmolVLM",
    "SmolVLMConfig",
    "Whisper",
    "WhisperConfig",
    "assemble",
    "from_pretrained",
    "lora_targets",
    "narrowed",
    "save_pretrained",
]
