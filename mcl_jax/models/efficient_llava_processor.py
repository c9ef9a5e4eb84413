"""Prompts and pictures to the arrays of an `EfficientLlava`, in NumPy and Pillow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mcl_jax.extras import needed_for
from mcl_jax.json_io import read_json_object, write_json
from mcl_jax.models import tokenizer_files
from mcl_jax.models.efficient_llava import EfficientLlavaConfig
from mcl_jax.models.processor import Picture, Processor, checked_picture

FILE = "preprocessor_config.json"
MEAN, SCALE = 127.0, 128.0  # as EfficientNet-Lite was trained
WHITE = (255, 255, 255)


class EfficientLlavaProcessor(Processor):
    """Prepares the inputs of `EfficientLlava`: `processor(prompts, pictures)`.

    Args:
      config: config of the model.
      tokenizer: tokenizer of the language model, which has the placeholder as one token.
      image_token: text of the placeholder.
    Raises:
      ValueError: if the placeholder is not the token that the config says.
    """

    media = "pictures"

    def __init__(self, config: EfficientLlavaConfig, tokenizer: Any, image_token: str = "<image>"):
        self.config, self.tokenizer, self.placeholder = config, tokenizer, (config.image_token_index, image_token)
        if (ids := list(tokenizer(image_token, add_special_tokens=False)["input_ids"])) != [config.image_token_index]:
            raise ValueError(f"{image_token!r} must be the token {config.image_token_index} alone, got {ids}")

    @classmethod
    def from_pretrained(cls, folder: str | Path, config: EfficientLlavaConfig) -> "EfficientLlavaProcessor":
        """Reads a folder that `save_pretrained` wrote.

        Raises:
          ValueError: if the settings or the tokenizer cannot be read; names the file.
        """
        folder = Path(folder)
        with needed_for("the processor of EfficientLlava", "text", "media"):
            import PIL  # noqa: F401  (prepares pictures)
            from transformers import PreTrainedTokenizerFast
        image_token = read_json_object(folder / FILE).get("image_token")
        if not isinstance(image_token, str):
            raise ValueError(
                f"{folder / FILE} must have an image_token, the text of the placeholder, got {image_token}"
            )
        # AutoTokenizer would warn that transformers does not know this kind of model.
        tokenizer = tokenizer_files.read(folder, lambda: PreTrainedTokenizerFast.from_pretrained(folder))
        return cls(config, tokenizer, image_token)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the files that `from_pretrained` reads."""
        self.tokenizer.save_pretrained(folder)
        write_json(Path(folder) / FILE, {"processor_class": type(self).__name__, "image_token": self.placeholder[1]})

    def num_features(self, picture: Picture) -> int:
        """Returns the number of placeholder tokens of a picture.

        Raises:
          ValueError: if the picture is not uint8 RGB.
        """
        checked_picture(picture)
        return self.config.num_features

    def inputs(self, pictures: Sequence[Picture | None]) -> dict[str, np.ndarray]:
        """Returns the input of `encode`: pixel_values of B pictures (see `__call__`); None gives grey."""
        size = self.config.vision_config.image_size
        pixel_values = np.zeros((len(pictures), size, size, 3), np.float32)
        for row, picture in zip(pixel_values, pictures, strict=True):
            if picture is not None:
                row[...] = pixels(picture, size)
        return {"pixel_values": pixel_values}

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


def pixels(picture: Picture, size: int) -> Float[np.ndarray, "S S 3"]:
    """Returns a whole picture on a white square of S x S pixels, normalised for the tower.

    Raises:
      ValueError: if the picture is not uint8 RGB.
    """
    from PIL import Image

    image = Image.fromarray(checked_picture(picture))
    side = max(image.size)
    square = Image.new("RGB", (side, side), WHITE)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    small = square.resize((size, size), Image.Resampling.BICUBIC)
    return (np.asarray(small, np.float32) - MEAN) / SCALE
