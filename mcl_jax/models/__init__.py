"""Base models: plain Flax Linen modules that know nothing about LoRA or hypotheses.

    module, params, tokenizer = from_pretrained("path/to/folder")    # Hugging Face folder or GGUF file

All models share `decoder` and `layers`; the text models are `gpt2`, `gpt_neo` and `llama` (with Mistral and Qwen2).
`llava_next` (with `clip` and `tiling`) takes images, and `qwen2_audio` (with `whisper`) takes audio; these two share
`multimodal` and `processor`, and come with a processor instead of a tokenizer. `families` registers the models, `names`
maps their parameters to tensors of a checkpoint, and `pretrained` loads and saves them.
"""

from mcl_jax.models.families import lora_targets
from mcl_jax.models.gpt2 import GPT2, GPT2Config
from mcl_jax.models.gpt_neo import GPTNeo, GPTNeoConfig
from mcl_jax.models.llama import Llama, LlamaConfig
from mcl_jax.models.llava_next import LlavaNext, LlavaNextConfig
from mcl_jax.models.pretrained import from_pretrained, save_pretrained
from mcl_jax.models.qwen2_audio import Qwen2Audio, Qwen2AudioConfig

__all__ = [
    "GPT2",
    "GPT2Config",
    "GPTNeo",
    "GPTNeoConfig",
    "Llama",
    "LlamaConfig",
    "LlavaNext",
    "LlavaNextConfig",
    "Qwen2Audio",
    "Qwen2AudioConfig",
    "from_pretrained",
    "lora_targets",
    "save_pretrained",
]
