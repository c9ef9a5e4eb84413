"""Prompts and pictures to the arrays of a LLaVA-NeXT, in NumPy.

Pixels and tokens are those of Hugging Face's `LlavaNextProcessor` without torch. How many placeholder tokens a picture
takes follows from the same `Tiling` as the features, so the two cannot differ.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mcl_jax.extras import needed_for
from mcl_jax.models import processor
from mcl_jax.models.llava_next import LlavaNextConfig
from mcl_jax.models.processor import Picture, Processor, checked_picture
from mcl_jax.models.tiling import PADDING, OneTile, Tiling


class LlavaNextProcessor(Processor):
    """Prepares the inputs of `LlavaNext`: `processor(prompts, pictures)`.

    Args:
      config: config of the model.
      hf: a `transformers.LlavaNextProcessor`.
    Raises:
      ValueError: if the processor tiles images in another way than the model's config says.
    """

    media = "pictures"

    def __init__(self, config: LlavaNextConfig, hf: Any):
        super().__init__(config, hf, (config.image_token_index, hf.image_token))
        self.tiling: Tiling | OneTile = config.tiling
        size = config.vision_config.image_size
        theirs = tuple(map(tuple, hf.image_processor.image_grid_pinpoints)), dict(hf.image_processor.crop_size)
        ours = config.image_grid_pinpoints, {"height": size, "width": size}
        if theirs[0] != ours[0] or any(theirs[1][name] != size for name in ours[1]):
            raise ValueError(f"the processor's image_grid_pinpoints and crop_size must be {ours}, got {theirs}")

    @classmethod
    def from_pretrained(cls, folder: str | Path, config: LlavaNextConfig) -> "LlavaNextProcessor":
        """Reads a folder with the files of a tokenizer and an image processor."""
        with needed_for("the processor of LLaVA-NeXT", "text", "media"):
            import PIL  # noqa: F401  (transformers prepares pictures with it)
            from transformers import LlavaNextProcessor as HuggingFaces  # takes seconds to import
        return processor.read(folder, lambda: cls(config, HuggingFaces.from_pretrained(folder, backend="pil")))

    def padded_to_squares(self) -> "LlavaNextProcessor":
        """Returns a processor that pads an image to a square with the mean colour and shows it as one tile.

        This is how LLaVA-1.5 sees, and how the paper's authors train LLaVA-1.6: 576 tokens of 336 x 336 pixels.
        """
        other = copy.copy(self)
        tower = self.config.vision_config
        other.tiling = OneTile(tower.image_size, tower.patch_size)
        return other

    def picture(self, picture: Picture) -> tuple[Float[np.ndarray, "P S S 3"], Int[np.ndarray, " N"]]:
        """Returns the normalised tiles of one image and the index of its tokens, see `Tiling`.

        Raises:
          ValueError: if the image is not uint8 RGB.
        """
        picture = checked_picture(picture)
        if isinstance(self.tiling, OneTile):
            picture = _square(picture, self.hf.image_processor.image_mean)
        # Without input_data_format, transformers takes an image 3 pixels high for one with channels first.
        tiles = self.hf.image_processor([picture], input_data_format="channels_last", return_tensors="np")
        pixels = tiles["pixel_values"][0][: self.tiling.most_tiles]  # tile 0 is the whole image
        return pixels.transpose(0, 2, 3, 1), self.tiling.index(*picture.shape[:2])

    def num_features(self, picture: Picture) -> int:
        """Returns the number of placeholder tokens of an image; raises as `picture` does."""
        return len(self.tiling.index(*checked_picture(picture).shape[:2]))

    def inputs(self, pictures: Sequence[Picture | None]) -> dict[str, np.ndarray]:
        """Returns the inputs of `encode`: pixel_values and index of B images (see `__call__`); None gives black."""
        size, B = self.config.vision_config.image_size, len(pictures)
        pixel_values = np.zeros((B, self.tiling.most_tiles, size, size, 3), np.float32)
        index = np.full((B, self.tiling.most_tokens), PADDING, np.int32)
        for b, picture in enumerate(pictures):
            if picture is not None:
                tiles, tokens = self.picture(picture)
                pixel_values[b, : len(tiles)], index[b, : len(tokens)] = tiles, tokens
        return {"pixel_values": pixel_values, "index": index}

    def __call__(
        self, prompts: Sequence[str], pictures: Sequence[Picture | None], *, length: int | None = None
    ) -> dict[str, np.ndarray]:
        """Prepares a batch of prompts, each with an image or None.

        Args:
          prompts: texts, with the placeholder once where there is an image.
          pictures: one image or None per prompt.
          length: T; the length of the longest prompt if None.
        Returns:
          tokens int32 [B, T] and mask bool [B, T], padded on the left; pixel_values float32 [B, P, S, S, 3] and index
          int32 [B, N], padded to the largest size of any image, so that shapes do not depend on the images.
        Raises:
          ValueError: as `picture` and `prompt` do; also if the numbers of prompts and images differ, or a prompt is
            longer than T.
        """
        inputs = self.inputs(pictures)
        return self.batch(prompts, inputs, (inputs["index"] != PADDING).sum(1), length)


def _square(picture: Picture, mean: Sequence[float]) -> Picture:
    """Centres an image on a square of the mean colour, in [0, 1] for each channel."""
    H, W, _ = picture.shape
    side, colour = max(H, W), [int(255 * channel) for channel in mean]
    square = np.empty((side, side, 3), np.uint8)
    square[:] = colour
    top, left = (side - H) // 2, (side - W) // 2
    square[top : top + H, left : left + W] = picture
    return square
