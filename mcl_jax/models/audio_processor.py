"""Prompts and clips to the arrays of a Qwen2-Audio, in NumPy.

Tokens and log-mel frames are those of Hugging Face's `Qwen2AudioProcessor` without torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mcl_jax.models import processor
from mcl_jax.models.processor import Processor
from mcl_jax.models.qwen2_audio import Qwen2AudioConfig
from mcl_jax.models.whisper import check_clips, num_features

Clip = Float[np.ndarray, " S"]
SAMPLE_RATE = 16_000  # Hz: Whisper's, and that of clips of `mcl_jax.data`
LOUDEST = 2.0  # of full scale; resampling may overshoot 1, and whole numbers as floats lie far above


class AudioProcessor(Processor):
    """`processor(prompts, clips)` gives what `Qwen2Audio` takes.

    Args:
      config: of the model.
      hf: a `transformers.Qwen2AudioProcessor`.

    Raises:
      ValueError: if it makes other frames, or has another audio token, than the model's config says, or if it hears
        clips of another rate than 16 kHz.
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
        from transformers import Qwen2AudioProcessor  # seconds to import: only where it is needed

        return processor.read(folder, lambda: cls(config, Qwen2AudioProcessor.from_pretrained(folder)))

    def num_features(self, clip: Clip) -> int:
        """Audio tokens that a clip takes; raises as `__call__` does for what is none."""
        samples = min(len(self._checked(clip)), self.extractor.n_samples)
        return int(num_features(np.int32(-(-samples // self.extractor.hop_length))))

    def inputs(self, clips: Sequence[Clip | None], *, window: int | None = None) -> dict[str, np.ndarray]:
        """What `encode` takes: mel and frames of B clips, see `__call__`; of None, silence and 0."""
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
        """A batch of prompts with a clip each, or None.

        Args:
          prompts: texts, with the audio token (`<|AUDIO|>`) once where there is a clip.
          clips: as many, mono, floats in [-1, 1], at 16 kHz (which an array does not tell: `mcl_jax.data` gives it), of
            any lengths; what is longer than the extractor's window (30 s) is cut, as in Hugging Face.
          length: T; of the longest prompt if None.
          window: mel frames to compute, at least two more than any clip has (100 a second); the model's whole window if
            None, which is mostly silence where clips are short.
          padding_side: "left", to generate from the prompts, or "right".
        Returns:
          tokens int32 [B, T], the audio token repeated for each feature, and mask bool [B, T]; mel float32 [B, M,
          window], and frames int32 [B] of each clip, 0 where there is none.
        Raises:
          ValueError: prompts and clips that do not belong together; a clip that is not mono, of whole numbers (PCM),
            beyond [-1, 1], not finite, too short for a feature, or longer than the window asked for; a prompt longer
            than T.
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
        """As float32."""
        clip, least = np.asarray(clip), 2 * self.extractor.hop_length
        if clip.ndim != 1 or len(clip) <= least:
            raise ValueError(f"{name} must be mono, [S] with S > {least} samples, got shape {clip.shape}")
        if not np.issubdtype(clip.dtype, np.floating):
            raise ValueError(f"{name} must be floats in [-1, 1], got {clip.dtype}; divide PCM of 16 bits by 32768")
        loudest = np.abs(clip).max()
        if not loudest <= LOUDEST:  # also of NaN
            raise ValueError(f"{name} must be in [-1, 1], got a sample of {loudest:g}")
        return clip.astype(np.float32)
