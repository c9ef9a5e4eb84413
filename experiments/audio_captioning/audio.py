"""Prepares clips for a tower, and makes a small Qwen2-Audio."""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from transformers import PreTrainedTokenizerFast, Qwen2AudioProcessor, WhisperFeatureExtractor

from experiments.common.perception import Inputs
from mcl_jax import augmentation, data
from mcl_jax.models.audio_processor import AudioProcessor
from mcl_jax.models.clip_processor import ClipProcessor
from mcl_jax.models.llama import LlamaConfig
from mcl_jax.models.qwen2_audio import Qwen2Audio, Qwen2AudioConfig
from mcl_jax.models.whisper_encoder import WhisperEncoderConfig

FRAMES = 100  # mel frames per second
MEL_BINS = 80  # for the small base


@dataclasses.dataclass(frozen=True)
class Clips:
    """Clips; see `captioning.modality.Modality`.

    Attributes:
      seconds: longest clip; longer ones are cropped, and mel frames are computed for this length.
      time_mask, frequency_mask: longest masked span and widest masked band of `augment`, as shares of the clip.
    """

    seconds: float
    time_mask: float = dataclasses.field(default=0.2, repr=False)
    frequency_mask: float = dataclasses.field(default=0.25, repr=False)
    media = "clips"
    placeholder = "<|AUDIO|>"
    question = "Write a caption for the audio clip."

    def read(self, record: data.Record) -> np.ndarray:
        """Returns the cropped clip, float32 [S] at 16 kHz."""
        return record.media.read()[: round(self.seconds * data.SAMPLE_RATE)]

    def prepared(self, processor: ClipProcessor) -> ClipProcessor:
        """Returns the processor as it is."""
        return processor

    def inputs(self, processor: ClipProcessor, media: Sequence[np.ndarray | None]) -> Inputs:
        """Returns mel, and for a Qwen2-Audio frames."""
        return processor.inputs(media, window=self._window(processor))

    def limits(self, processor: ClipProcessor) -> dict[str, float]:
        """Returns the seconds to which clips are cropped, and the number of mel frames that are computed."""
        return {"seconds": self.seconds, "window": self._window(processor)}

    def _window(self, processor: ClipProcessor) -> int:
        return min(math.ceil(self.seconds * FRAMES) + 2, processor.window)

    def augment(self, processor: ClipProcessor, key: Key[Array, ""], media: np.ndarray) -> Inputs:
        """Masks bands of frequencies and spans of time (SpecAugment)."""
        inputs = self.inputs(processor, [media])
        shares = self.time_mask, self.frequency_mask
        return inputs | {"mel": np.asarray(_masked(key, inputs["mel"], _frames(inputs), *shares))}

    def vary(self, key: Key[Array, ""], inputs: dict[str, Array]) -> dict[str, Array]:
        """Masks as `augment` does by default."""
        return inputs | {"mel": _masked(key, inputs["mel"], _frames(inputs), Clips.time_mask, Clips.frequency_mask)}

    def small(self, tokenizer: PreTrainedTokenizerFast) -> tuple[nn.Module, AudioProcessor]:
        """Makes 3 million parameters: an encoder of 4 layers, and a Qwen2 of 4 layers."""
        window = round(self.seconds * FRAMES)
        config = Qwen2AudioConfig(
            text_config=LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=192,
                intermediate_size=512,
                num_hidden_layers=4,
                num_attention_heads=6,
                qkv_bias=True,
            ),
            audio_config=WhisperEncoderConfig(
                num_mel_bins=MEL_BINS,
                d_model=128,
                encoder_layers=4,
                encoder_attention_heads=4,
                encoder_ffn_dim=512,
                max_source_positions=window // 2,
            ),
            audio_token_index=tokenizer.convert_tokens_to_ids(self.placeholder),
        )
        extractor = WhisperFeatureExtractor(feature_size=MEL_BINS, chunk_length=round(self.seconds))
        return Qwen2Audio(config), AudioProcessor(config, Qwen2AudioProcessor(extractor, tokenizer))


def _frames(inputs: Inputs) -> Int[Array, " B"]:
    """Returns the frames of each clip; those of the window for Whisper, which hears all of it."""
    B, _, window = inputs["mel"].shape
    return inputs.get("frames", np.full(B, window, np.int32))


@partial(jax.jit, static_argnums=(3, 4))
def _masked(
    key: Key[Array, ""], mel: Float[Array, "B M T"], frames: Int[Array, " B"], time: float, frequency: float
) -> Float[Array, "B M T"]:
    _, M, T = mel.shape
    mask = jnp.arange(T)[None] < frames[:, None]
    return augmentation.spec_augment(key, mel, mask, frequency_width=int(frequency * M), time_width=T, time_share=time)
