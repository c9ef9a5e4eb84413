"""Prompts and pictures to the arrays of a PaliGemma, in NumPy.

A picture is resized to the square of the tower. A prompt "<image>caption en" becomes, with a newline at its end,

    <image>…<image><bos>caption en↵

Pixels and tokens are those of Hugging Face's `PaliGemmaProcessor` without torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from mcl_jax.extras import needed_for
from mcl_jax.models import processor
from mcl_jax.models.paligemma import PaliGemmaConfig
from mcl_jax.models.processor import Picture, Processor, checked_picture


class PaliGemmaProcessor(Processor):
    """Prepares the inputs of `PaliGemma`: `processor(prompts, pictures)`.

    Args:
      config: config of the model.
      hf: a `transformers.PaliGemmaProcessor`.
    Raises:
      ValueError: if the processor makes pictures of another size than the model's config says, or the tokenizer has no
        first token.
    """

    media = "pictures"

    def __init__(self, config: PaliGemmaConfig, hf: Any):
        super().__init__(config, hf, (config.image_token_index, hf.image_token))
        size, patches = config.vision_config.image_size, config.vision_config.num_patches
        theirs = dict(hf.image_processor.size), hf.image_seq_length
        ours = {"height": size, "width": size}, patches
        if theirs[1] != patches or any(theirs[0].get(name) != size for name in ours[0]):
            raise ValueError(f"the processor's size and image_seq_length must be {ours}, got {theirs}")
        if self.tokenizer.bos_token is None:
            raise ValueError("the tokenizer must have a bos_token, which follows a picture, got none")

    @classmethod
    def from_pretrained(cls, folder: str | Path, config: PaliGemmaConfig) -> "PaliGemmaProcessor":
        """Reads a folder with the files of a tokenizer and an image processor."""
        with needed_for("the processor of PaliGemma", "text", "media"):
            import PIL  # noqa: F401  (transformers prepares pictures with it)
            from transformers import PaliGemmaProcessor as HuggingFaces  # takes seconds to import
        return processor.read(folder, lambda: cls(config, HuggingFaces.from_pretrained(folder, backend="pil")))

    def num_features(self, picture: Picture) -> int:
        """Returns the number of placeholder tokens of a picture.

        Raises:
          ValueError: if the picture is not uint8 RGB.
        """
        checked_picture(picture)
        return self.config.vision_config.num_patches

    def inputs(self, pictures: Sequence[Picture | None]) -> dict[str, np.ndarray]:
        """Returns the input of `encode`: pixel_values of B pictures (see `__call__`); None gives grey."""
        size = self.config.vision_config.image_size
        pixel_values = np.zeros((len(pictures), size, size, 3), np.float32)
        # Without input_data_format, transformers takes an image 3 pixels high for one with channels first.
        options = dict(input_data_format="channels_last", return_tensors="np")
        for row, picture in zip(pixel_values, pictures, strict=True):
            if picture is not None:
                theirs = self.hf.image_processor([checked_picture(picture)], **options)
                row[...] = theirs["pixel_values"][0].transpose(1, 2, 0)
        return {"pixel_values": pixel_values}

    def prompt(self, text: str, num_features: int = 0) -> Int[np.ndarray, " T"]:
        """Tokenizes a prompt: the picture and what is before it, the first token, the text, and a newline.

        Raises:
          ValueError: if the number of placeholders in the text is not that of its pictures (0 or 1).
        """
        before, image, after = text.rpartition(self.placeholder[1])
        return super().prompt(f"{before}{image}{self.tokenizer.bos_token}{after}\n", num_features)

    def __call__(
        self, prompts: Sequence[str], pictures: Sequence[Picture | None], *, length: int | None = None
    ) -> dict[str, np.ndarray]:
        """Prepares a batch of prompts, each with a picture or None.

        Args:
          prompts: texts, with the placeholder once where there is a picture.
          pictures: one picture or None per prompt.
          length: T; the length of the longest prompt if None.
        Returns:
          tokens int32 [B, T] and mask bool [B, T], padded on the left; pixel_values float32 [B, S, S, 3].
        Raises:
          ValueError: if a picture is not uint8 RGB, a prompt does not have one placeholder for its picture or is longer
            than T, or the numbers of prompts and pictures differ.
        """
        counts = [0 if picture is None else self.num_features(picture) for picture in pictures]
        return self.batch(prompts, self.inputs(pictures), counts, length)
