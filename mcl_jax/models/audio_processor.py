"""Inputs of Qwen2-Audio from prompts and audio clips, in NumPy.

Tokens and log-mel frames equal those of Hugging Face's `Qwen2AudioProcessor`, without torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mcl_jax.extras import needed_for
from mcl_jax.models import processor
from mcl_jax.models.processor import Processor
from mcl_jax.models.qwen2_audio import Qwen2AudioConfig
from mcl_jax.models.whisper import check_clips, num_features

Clip = Float[np.ndarray, " S"]
SAMPLE_RATE = 16_000  # Hz, for Whisper and the clips of `mcl_jax.data`
LOUDEST = 2.0  # relative to full scale; resampling may overshoot 1, and integers stored as floats are far above


class AudioProcessor(Processor):
    """Prepares the inputs of `Qwen2Audio`: `processor(prompts, clips)`.

    Args:
      config: config of the model.
      hf: a `transformers.Qwen2AudioProcessor`.
    Raises:
      ValueError: if its frames or audio token are not those of the model's config, or its sampling rate is not 16 kHz.
    """

    media = "clips"

    def __init__(self, config: Qwen2AudioConfig, hf: Any):
        super().__init__(config, hf, (config.audio_token_index, hf.audio_token))
        self.extractor = hf.feature_extractor
        theirs = self.extractor.feature_size, self.extractor.nb_max_frames, hf.audio_token_id
        ours = config.audio_config.num_mel_bins, config.audio_config.window, config.audio_token_index
        if theirs != ours:
            raise ValueError(f"the processor's mel bins, frames and audio token must be {ours}, got {theirs}")
        if self.extractor.sampling_rate != SAMPLE_RATE:
            raise ValueError(f"the processor's sampling_rate must be {SAMPLE_RATE}, got {self.extractor.sampling_rate}")

    @classmethod
    def from_pretrained(cls, folder: str | Path, config: Qwen2AudioConfig) -> "AudioProcessor":
        """Reads a folder with the files of a tokenizer and a feature extractor."""
        with needed_for("the processor of Qwen2-Audio", "text"):
            from transformers import Qwen2AudioProcessor  # takes seconds to import
        return processor.read(folder, lambda: cls(config, Qwen2AudioProcessor.from_pretrained(folder)))

    def num_features(self, clip: Clip) -> int:
        """Returns the number of audio tokens of a clip; raises as `__call__` does if it is not a valid clip."""
        samples = min(len(self._checked(clip)), self.extractor.n_samples)
        return int(num_features(np.int32(-(-samples // self.extractor.hop_length))))

    def inputs(self, clips: Sequence[Clip | None], *, window: int | None = None) -> dict[str, np.ndarray]:
        """Returns the inputs of `encode`: mel and frames of B clips (see `__call__`); None gives silence, 0 frames."""
        mel, frames = self._mel(clips, self.config.audio_config.window if window is None else window)
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
        self.check_number(prompts, clips)
        inputs = self.inputs(clips, window=window)
        counts = num_features(inputs["frames"]).tolist()
        rows = [self.prompt(text, n) for text, n in zip(prompts, counts, strict=True)]
        return self.padded(rows, length, padding_side) | inputs

    def _mel(self, clips, window):
        mel = np.zeros((len(clips), self.extractor.feature_size, window), np.float32)
        frames, hop = np.zeros(len(clips), np.int32), self.extractor.hop_length
        for row, clip in enumerate(clips):
            if clip is None:
                continue
            clip = self._checked(clip, f"clip {row}")[: self.extractor.n_samples]
            frames[row] = -(-len(clip) // hop)
            heard = self.extractor(
                clip, max_length=window * hop, sampling_rate=self.extractor.sampling_rate, return_tensors="np"
            )
            mel[row] = heard["input_features"][0]
        check_clips(frames, window, self.config.audio_config.window)
        return mel, frames

    def _checked(self, clip: Clip, name: str = "a clip") -> Clip:
        """Checks a clip and returns it as float32."""
        clip, least = np.asarray(clip), 2 * self.extractor.hop_length
        if clip.ndim != 1 or len(clip) <= least:
            raise ValueError(f"{name} must be mono, [S] with S > {least} samples, got shape {clip.shape}")
        if not np.issubdtype(clip.dtype, np.floating):
            raise ValueError(f"{name} must be floats in [-1, 1], got {clip.dtype}; divide 16-bit PCM by 32768")
        loudest = np.abs(clip).max()
        if not loudest <= LOUDEST:  # true for NaN as well
            raise ValueError(f"{name} must be in [-1, 1], got a sample of {loudest:g}")
        return clip.astype(np.float32)
