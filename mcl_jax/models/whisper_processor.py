"""Inputs of Whisper from prompts and audio clips, in NumPy.

Tokens and log-mel frames equal those of Hugging Face's `WhisperProcessor`, without torch.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from mcl_jax.extras import needed_for
from mcl_jax.models import processor
from mcl_jax.models.clip_processor import Clip, ClipProcessor
from mcl_jax.models.tokenizer_files import has_processor
from mcl_jax.models.whisper import WhisperConfig

START, NO_TIMESTAMPS = "<|startoftranscript|>", "<|notimestamps|>"


class WhisperProcessor(ClipProcessor):
    """Prepares the inputs of `Whisper`: `processor(prompts, clips)`.

    Args:
      config: config of the model.
      hf: a `transformers.WhisperProcessor`.
    Raises:
      ValueError: if its mel bins or frames are not those of the model's config, or its sampling rate is not 16 kHz.
    """

    chat_template = None  # its prompts are no chats, and nothing in them stands for the clip

    def __init__(self, config: WhisperConfig, hf: Any):
        super().__init__(config, hf, None, config.num_mel_bins, config.encoder.window)

    @classmethod
    def from_pretrained(cls, folder: str | Path, config: WhisperConfig) -> "WhisperProcessor":
        """Reads the files of a tokenizer, and of a feature extractor, which is OpenAI's if there is none."""
        with needed_for("the processor of Whisper", "text"):
            import transformers  # takes seconds to import

        def load() -> WhisperProcessor:
            if has_processor(Path(folder)):
                return cls(config, transformers.WhisperProcessor.from_pretrained(folder))
            extractor = transformers.WhisperFeatureExtractor(feature_size=config.num_mel_bins)
            tokenizer = transformers.WhisperTokenizer.from_pretrained(folder)
            return cls(config, transformers.WhisperProcessor(extractor, tokenizer))

        return processor.read(folder, load)

    def transcribe(self, language: str | None = None) -> str:
        """Returns the prompt after which the model writes what it hears.

        Args:
          language: the code of the language that is spoken, such as "en"; None for a model of English alone.
        Raises:
          ValueError: if the model does not know the language; names the nearest ones.
        """
        if language is None:
            return START + NO_TIMESTAMPS
        known = [token[2:-2] for token in self.tokenizer.get_vocab() if token.startswith("<|") and len(token) in (6, 7)]
        if language not in known:
            near = difflib.get_close_matches(language, known, n=3, cutoff=0) or known
            raise ValueError(f"language must be a code that the tokenizer knows, such as {near}, got {language!r}")
        return f"{START}<|{language}|><|transcribe|>{NO_TIMESTAMPS}"

    def prompt(self, text: str, num_features: int = 0) -> Int[np.ndarray, " T"]:
        """Tokenizes a prompt as it is written. Its length does not depend on the number of features."""
        return np.asarray(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)

    def num_features(self, clip: Clip) -> int:
        """Returns the number of features of a whole window; raises as `__call__` does if it is not a valid clip."""
        self.num_frames(clip)
        return self.config.max_source_positions

    def inputs(self, clips: Sequence[Clip | None], *, window: int | None = None) -> dict[str, np.ndarray]:
        """Returns the inputs of `encode`: mel of B clips, see `__call__`; None gives zeros."""
        if window is not None and not 0 < window <= self.window:
            raise ValueError(f"window must be in 1 to {self.window} mel frames, got {window}")
        return {"mel": self.mel(clips, window)[0]}

    def __call__(
        self,
        prompts: Sequence[str],
        clips: Sequence[Clip | None],
        *,
        length: int | None = None,
        window: int | None = None,
        padding_side: str = "left",
    ) -> dict[str, np.ndarray]:
        """Prepares a batch of prompts, each with an audio clip.

        Args:
          prompts: texts such as that of `transcribe`; no special tokens are added to them.
          clips: one clip or None per prompt: mono floats in [-1, 1] at 16 kHz (as `mcl_jax.data` reads them).
          length: T; the length of the longest prompt if None.
          window: number of mel frames to compute (100 per second); longer clips are cropped. None uses the model's
            whole window of 30 s. A shorter one costs less, but the published weights have not seen any.
          padding_side: "left", to generate from the prompts, or "right".
        Returns:
          tokens int32 [B, T] and mask bool [B, T]; mel float32 [B, M, window], zeros where there is no clip.
        Raises:
          ValueError: if the numbers of prompts and clips differ; a clip is not valid (see `mel`); the window is longer
            than the model's; or a prompt is longer than T.
        """
        inputs = self.inputs(clips, window=window)
        return self.batch(prompts, inputs, [self.config.max_source_positions] * len(clips), length, padding_side)
