"""Log-mel frames of clips, in NumPy: what the processors of models that hear have in common.

The frames equal those of Hugging Face's `WhisperFeatureExtractor`, without torch.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from mcl_jax.models.processor import Processor

Clip = Float[np.ndarray, " S"]
SAMPLE_RATE = 16_000  # Hz, for Whisper and the clips of `mcl_jax.data`
LOUDEST = 2.0  # relative to full scale; resampling may overshoot 1, and integers stored as floats are far above


class ClipProcessor(Processor):
    """A Hugging Face processor with a feature extractor.

    Args:
      config: config of the model.
      hf: the Hugging Face processor, which has a `WhisperFeatureExtractor`.
      placeholder: id and text of the token that features replace; None if they replace none.
      bins: mel bins of the encoder.
      window: frames of the encoder's whole window.
    Raises:
      ValueError: if the extractor has other bins, another window, or another sampling rate than 16 kHz.
    """

    media: ClassVar[str] = "clips"

    def __init__(self, config: Any, hf: Any, placeholder: tuple[int, str] | None, bins: int, window: int):
        super().__init__(config, hf, placeholder)
        self.extractor, self.window = hf.feature_extractor, window
        theirs = self.extractor.feature_size, self.extractor.nb_max_frames
        if theirs != (bins, window):
            raise ValueError(f"the processor's mel bins and frames must be {(bins, window)}, got {theirs}")
        if self.extractor.sampling_rate != SAMPLE_RATE:
            raise ValueError(f"the processor's sampling_rate must be {SAMPLE_RATE}, got {self.extractor.sampling_rate}")

    def num_frames(self, clip: Clip) -> int:
        """Returns the number of mel frames of a clip; raises as `mel` does if it is not a valid clip."""
        samples = min(len(self._checked(clip)), self.extractor.n_samples)
        return -(-samples // self.extractor.hop_length)

    def mel(
        self, clips: Sequence[Clip | None], window: int | None = None
    ) -> tuple[Float[np.ndarray, "B M T"], Int[np.ndarray, " B"]]:
        """Computes log-mel frames.

        Args:
          clips: mono floats in [-1, 1] at 16 kHz; those longer than the extractor's window (30 s) are cropped, as in
            Hugging Face. None gives zeros and 0 frames.
          window: T; None uses the encoder's whole window.
        Returns:
          The frames of the window, float32, and the number of frames of each clip, int32.
        Raises:
          ValueError: if a clip is not mono, not floats (but PCM integers), outside [-1, 1], not finite, or too short.
        """
        window, hop = self.window if window is None else window, self.extractor.hop_length
        mel = np.zeros((len(clips), self.extractor.feature_size, window), np.float32)
        frames = np.zeros(len(clips), np.int32)
        for row, clip in enumerate(clips):
            if clip is None:
                continue
            clip = self._checked(clip, f"clip {row}")[: self.extractor.n_samples]
            frames[row] = -(-len(clip) // hop)
            heard = self.extractor(
                clip, max_length=window * hop, sampling_rate=self.extractor.sampling_rate, return_tensors="np"
            )
            mel[row] = heard["input_features"][0]
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
