"""Qwen2-Audio: a frozen Whisper encoder and a linear projector make features for a Qwen2 language model.

    module, params, processor = from_pretrained(folder)
    batch = processor(["<|audio_bos|><|AUDIO|><|audio_eos|>Generate the caption in English:"], [clip])
    features = module.apply({"params": params}, batch["mel"], batch["frames"], method="encode")     # once, whatever K
    logits = module.apply({"params": params}, batch["tokens"], batch["mask"], features)

The module tree has the names of the published files: `audio_tower` (see `whisper_encoder`),
`multi_modal_projector/linear` and `language_model` (see `llama`). Source: Hugging Face transformers 5.23,
`models/qwen2_audio`; arXiv 2407.10759.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mcl_jax import options
from mcl_jax.models.layers import dense
from mcl_jax.models.llama import Llama, LlamaConfig
from mcl_jax.models.llama_config import MEANT_NULL
from mcl_jax.models.multimodal import Multimodal
from mcl_jax.models.whisper_encoder import PooledEncoder, WhisperEncoderConfig

ARCHITECTURE = "Qwen2AudioForConditionalGeneration"


@dataclasses.dataclass(frozen=True)
class Qwen2AudioConfig:
    """Configs of the language model and of the encoder, and the placeholder token.

    Args:
      text_config: config of the language model.
      audio_config: config of the encoder.
      audio_token_index: id of the placeholder token, which features replace.
    Raises:
      ValueError: if the placeholder token is outside the vocabulary.
    """

    text_config: LlamaConfig
    audio_config: WhisperEncoderConfig = dataclasses.field(default_factory=WhisperEncoderConfig)
    audio_token_index: int = 151646

    def __post_init__(self):
        options.settle(self)
        options.check_integers(0, audio_token_index=self.audio_token_index)
        if not 0 <= self.audio_token_index < self.text_config.vocab_size:
            raise ValueError(
                f"audio_token_index must be below vocab_size={self.text_config.vocab_size}, got "
                f"{self.audio_token_index}."
            )

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any], **overrides: Any) -> "Qwen2AudioConfig":
        """Reads the dict of a Hugging Face `config.json`.

        Args:
          hf_config: the dict.
          **overrides: fields of the language model's config; dtype, param_dtype and scan also apply to the encoder.
        Raises:
          ValueError: if the encoder or the language model is not supported.
        """
        shared = {name: overrides[name] for name in ("dtype", "param_dtype", "scan") if name in overrides}
        hf_config = options.given(hf_config)
        text_config = options.given(hf_config.get("text_config"), meaning=MEANT_NULL)
        return cls(
            LlamaConfig.from_text_config({"model_type": "qwen2"} | text_config, **overrides),
            WhisperEncoderConfig.from_hf(hf_config.get("audio_config", {}), **shared),
            hf_config.get("audio_token_index", hf_config.get("audio_token_id", cls.audio_token_index)),
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns the dict of a Hugging Face `config.json` of this model."""
        return {
            "model_type": "qwen2_audio",
            "architectures": [ARCHITECTURE],
            "audio_token_index": self.audio_token_index,
            "audio_config": self.audio_config.to_hf(),
            "text_config": self.text_config.to_hf(),
        }


class Projector(nn.Module):
    """Projects features of the encoder to the width of the language model."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B N E"]) -> Float[Array, "B N D"]:
        return dense(self.config, self.config.hidden_size, "linear")(x)


class Qwen2Audio(Multimodal):
    """A Qwen2 with audio as input. `encode` runs outside the adapters."""

    config: Qwen2AudioConfig

    def setup(self):
        self.audio_tower = PooledEncoder(self.config.audio_config)
        self.multi_modal_projector = Projector(self.config.text_config)
        self.language_model = Llama(self.config.text_config)

    @property
    def placeholder(self) -> int:
        """Id of the token that features replace."""
        return self.config.audio_token_index

    def encode(self, mel: Float[Array, "B M T"], frames: Int[Array, " B"]) -> Float[Array, "B N D"]:
        """Computes features of one clip per row, in the language model's width; see `whisper_encoder.PooledEncoder`."""
        return self.multi_modal_projector(self.audio_tower(mel, frames))

    def encode_empty(self) -> None:
        """Calls `encode` on two silent frames."""
        self.encode(jnp.zeros((1, self.config.audio_config.num_mel_bins, 2)), jnp.zeros(1, jnp.int32))
