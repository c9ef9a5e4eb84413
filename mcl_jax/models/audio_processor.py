"""Inputs of Qwen2-Audio from prompts and audio clips, in NumPy.

Tokens and log-mel frames equal those of Hugging Face's `Qwen2AudioProcessor`, without torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mcl_jax.extras import needed_for
from mcl_jax.models import processor
from mcl_jax.models.clip_processor import Clip, ClipProcessor
from mcl_jax.models.qwen2_audio import Qwen2AudioConfig
from mcl_jax.models.whisper_encoder import check_clips, num_features


class AudioProcessor(ClipProcessor):
    """Prepares the inputs of `Qwen2Audio`: `processor(prompts, clips)`.

    Args:
      config: config of the model.
      hf: a `transformers.Qwen2AudioProcessor`.
    Raises:
      ValueError: if its frames or audio token are not those of the model's config, or its sampling rate is not 16 kHz.
    """

    def __init__(self, config: Qwen2AudioConfig, hf: Any):
        audio = config.audio_config
        super().__init__(config, hf, (config.audio_token_index, hf.audio_token), audio.num_mel_bins, audio.window)
        if hf.audio_token_id != config.audio_token_index:
            shape = audio.num_mel_bins, audio.window
            needed, given = (*shape, config.audio_token_index), (*shape, hf.audio_token_id)
            raise ValueError(f"the processor's mel bins, frames and audio token must be {needed}, got {given}")

    @classmethod
    def from_pretrained(cls, folder: str | Path, config: Qwen2AudioConfig) -> "AudioProcessor":
        """Reads a folder with the files of a tokenizer and a feature extractor."""
        with needed_for("the processor of Qwen2-Audio", "text"):
            from transformers import Qwen2AudioProcessor  # takes seconds to import
        return processor.read(folder, lambda: cls(config, Qwen2AudioProcessor.from_pretrained(folder)))

    def num_features(self, clip: Clip) -> int:
        """Returns the number of audio tokens of a clip; raises as `__call__` does if it is not a valid clip."""
        return int(num_features(np.int32(self.num_frames(clip))))

    def inputs(self, clips: Sequence[Clip | None], *, window: int | None = None) -> dict[str, np.ndarray]:
        """Returns the inputs of `encode`: mel and frames of B clips (see `__call__`); None gives silence, 0 frames."""
        mel, frames = self.mel(clips, window)
        check_clips(frames, mel.shape[2], self.window)
        return {"mel": mel, "frames": frames}

    def __call__(
        self,
        prompts: Sequence[str],
        clips: Sequence[Clip | None],
        *,
        length: int | None = None,
        window: int | None = None,
        padding_side: str = "left",
    ) -> dict[str, np.ndarray]:
        """Prepares a batch of prompts, each with an audio clip or None.

        Args:
          prompts: texts, with the audio token (`<|AUDIO|>`) once where there is a clip.
          clips: one clip or None per prompt: mono floats in [-1, 1] at 16 kHz (as `mcl_jax.data` reads them), of any
            length. Clips longer than the extractor's window (30 s) are cropped, as in Hugging Face.
          length: T; the length of the longest prompt if None.
          window: number of mel frames to compute (100 per second), at least two more than any clip has; None uses the
            model's whole window, which is mostly silence for short clips.
          padding_side: "left", to generate from the prompts, or "right".
        Returns:
          tokens int32 [B, T], with the audio token repeated once per feature, and mask bool [B, T]; mel float32
          [B, M, window], and frames int32 [B] of each clip, 0 where there is none.
        Raises:
          ValueError: if the numbers of prompts and clips differ; a clip is not mono, not floats (but PCM integers),
            outside [-1, 1], not finite, too short for one feature, or longer than `window`; or a prompt is longer than
            T.
        """
        inputs = self.inputs(clips, window=window)
        return self.batch(prompts, inputs, num_features(inputs["frames"]).tolist(), length, padding_side)
