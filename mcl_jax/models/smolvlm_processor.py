"""Prompts and pictures to the arrays of a SmolVLM, in NumPy.

A picture is enlarged or reduced to a longest side, cut into rows and columns of tiles, and shown once more as a whole,
squeezed into one tile. In the prompt, its placeholder becomes

    <fake_token_around_image><row_1_col_1><image>…<fake_token_around_image><row_1_col_2><image>…
    …

    <fake_token_around_image><global-img><image>…<fake_token_around_image>

or the last line alone if it is not cut. Pixels and tokens are those of Hugging Face's `Idefics3Processor` without
torch.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mcl_jax.extras import needed_for
from mcl_jax.models import processor
from mcl_jax.models.processor import Picture, Processor, checked_picture
from mcl_jax.models.smolvlm import SmolVLMConfig

AROUND, WHOLE = "<fake_token_around_image>", "<global-img>"
LONGEST = 4096  # pixels; transformers reduces whatever is larger


class Count(int):
    """Number of placeholder tokens of a picture, which also tells the rows and columns of its tiles.

    Attributes:
      rows, columns: of tiles; 0 if the picture is not cut.
    """

    rows: int
    columns: int

    def __new__(cls, tile_tokens: int, rows: int = 0, columns: int = 0):
        """Counts the tokens of all tiles and of the whole picture."""
        count = super().__new__(cls, tile_tokens * (rows * columns + 1))
        count.rows, count.columns = rows, columns
        return count


class SmolVLMProcessor(Processor):
    """Prepares the inputs of `SmolVLM`: `processor(prompts, pictures)`.

    Args:
      config: config of the model.
      hf: a `transformers.Idefics3Processor`.
    Raises:
      ValueError: if the processor cuts pictures in another way than the model's config says, or does not bound their
        size.
    """

    media = "pictures"

    def __init__(self, config: SmolVLMConfig, hf: Any):
        super().__init__(config, hf, (config.image_token_id, hf.image_token))
        images, self.size = hf.image_processor, config.vision_config.image_size
        theirs = images.max_image_size["longest_edge"], hf.image_seq_len
        if theirs != (ours := (self.size, config.tile_tokens)):
            raise ValueError(f"the processor's max_image_size and image_seq_len must be {ours}, got {theirs}")
        self.longest, self.cuts = images.size["longest_edge"], bool(images.do_image_splitting)
        if not self.longest or (self.cuts and not images.do_resize):
            raise ValueError(
                "the processor must have do_resize and a size with longest_edge, so that the number of tiles has a "
                f"bound, got {images.do_resize} and {dict(images.size)}"
            )

    @classmethod
    def from_pretrained(cls, folder: str | Path, config: SmolVLMConfig) -> "SmolVLMProcessor":
        """Reads a folder with the files of a tokenizer and an image processor; one for videos is passed over."""
        with needed_for("the processor of SmolVLM", "text", "media"):
            import PIL  # noqa: F401  (transformers prepares pictures with it)
            from transformers import Idefics3Processor as HuggingFaces  # takes seconds to import
        return processor.read(folder, lambda: cls(config, HuggingFaces.from_pretrained(folder, backend="pil")))

    @property
    def most_tiles(self) -> int:
        """P, the largest number of tiles of a picture, with the whole one."""
        side = -(-min(self.longest + self.longest % 2, LONGEST) // self.size)  # odd sides become even
        return side**2 + 1 if self.cuts and side > 1 else 1

    def num_features(self, picture: Picture) -> Count:
        """Returns the number of placeholder tokens of a picture.

        Raises:
          ValueError: if the picture is not uint8 RGB.
        """
        height, width = checked_picture(picture).shape[:2]
        rows, columns = grid(height, width, self.longest, self.size) if self.cuts else (0, 0)
        return Count(self.config.tile_tokens, rows, columns)

    def picture(self, picture: Picture) -> Float[np.ndarray, "P S S 3"]:
        """Returns the normalised tiles of one picture, row by row, and the whole picture last.

        Raises:
          ValueError: if the picture is not uint8 RGB.
        """
        # Without input_data_format, transformers takes an image 3 pixels high for one with channels first.
        options = dict(input_data_format="channels_last", return_tensors="np")
        tiles = self.hf.image_processor([checked_picture(picture)], **options)
        return tiles["pixel_values"][0].transpose(0, 2, 3, 1)

    def inputs(self, pictures: Sequence[Picture | None]) -> dict[str, np.ndarray]:
        """Returns the inputs of `encode`: pixel_values and tiles of B pictures (see `__call__`); None gives no tile."""
        pixel_values = np.zeros((len(pictures), self.most_tiles, self.size, self.size, 3), np.float32)
        number = np.zeros(len(pictures), np.int32)
        for b, picture in enumerate(pictures):
            if picture is not None:
                tiles = self.picture(picture)
                pixel_values[b, : len(tiles)], number[b] = tiles, len(tiles)
        return {"pixel_values": pixel_values, "tiles": number}

    def prompt(self, text: str, num_features: int = 0) -> Int[np.ndarray, " T"]:
        """Tokenizes a prompt, in which the placeholder becomes the tokens of its picture.

        Args:
          text: the prompt.
          num_features: result of `num_features`; a plain number stands for a picture that is not cut.
        Raises:
          ValueError: if the number of placeholders in the text is not that of its pictures (0 or 1).
        """
        tokens = self.checked_tokens(text, num_features)
        if not num_features:
            return tokens
        spelled = text.replace(self.placeholder[1], self._spelled(num_features))
        return self.ids(spelled)

    def _spelled(self, count: int) -> str:
        rows, columns = getattr(count, "rows", 0), getattr(count, "columns", 0)
        tile = self.placeholder[1] * (count // (rows * columns + 1))
        tiles = [[f"{AROUND}<row_{r + 1}_col_{c + 1}>{tile}" for c in range(columns)] for r in range(rows)]
        lines = "".join("".join(row) + "\n" for row in tiles) + "\n" * bool(tiles)
        return f"{lines}{AROUND}{WHOLE}{tile}{AROUND}"

    def __call__(
        self, prompts: Sequence[str], pictures: Sequence[Picture | None], *, length: int | None = None
    ) -> dict[str, np.ndarray]:
        """Prepares a batch of prompts, each with a picture or None.

        Args:
          prompts: texts, with the placeholder once where there is a picture.
          pictures: one picture or None per prompt.
          length: T; the length of the longest prompt if None.
        Returns:
          tokens int32 [B, T] and mask bool [B, T], padded on the left; pixel_values float32 [B, P, S, S, 3], padded to
          the largest number of tiles of any picture, so that shapes do not depend on the pictures; and tiles int32 [B].
        Raises:
          ValueError: as `picture` and `prompt` do; also if the numbers of prompts and pictures differ, or a prompt is
            longer than T.
        """
        counts = [0 if picture is None else self.num_features(picture) for picture in pictures]
        return self.batch(prompts, self.inputs(pictures), counts, length)


def grid(height: int, width: int, longest: int, tile: int) -> tuple[int, int]:
    """Returns the rows and columns of tiles of a picture, (0, 0) if one tile is enough.

    The longer side becomes `longest`, and both are rounded up to multiples of `tile`, by way of the whole and even
    pixels of transformers (`image_processing_pil_idefics3`, `resize` and `resize_for_vision_encoder`).

    Args:
      height, width: of the picture, in pixels.
      longest: pixels of the longer side.
      tile: height and width of a tile, in pixels.
    """
    up = lambda pixels: math.ceil(pixels / tile) * tile
    height, width = _bounded(*_scaled(height, width, longest))
    ratio = width / height
    if width >= height:
        width = up(width)
        height = up(int(width / ratio))
    else:
        height = up(height)
        width = up(int(height * ratio))
    return (height // tile, width // tile) if max(height, width) > tile else (0, 0)


def _scaled(height: int, width: int, longest: int) -> tuple[int, int]:
    """Returns the size with this longer side; the other one is even."""
    even = lambda pixels: max(pixels + pixels % 2, 1)
    ratio = width / height
    return (even(int(longest / ratio)), longest) if width >= height else (longest, even(int(longest * ratio)))


def _bounded(height: int, width: int) -> tuple[int, int]:
    """Returns the size with at most `LONGEST` pixels at the longer side."""
    ratio = width / height
    if max(height, width) <= LONGEST:
        return height, width
    return (max(int(LONGEST / ratio), 1), LONGEST) if width >= height else (LONGEST, max(int(LONGEST * ratio), 1))
