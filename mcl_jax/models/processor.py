"""Prompts with placeholders to padded tokens, in NumPy: what processors of pictures and of clips share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int

from mcl_jax import json_io
from mcl_jax.models.tokenizer_files import PROCESSORS

NOT_NULL = ("do_rescale", "do_normalize", "dither")  # transformers takes null for no, or notices it with the first clip


def read(folder: str | Path, load: Callable[[], "Processor"]) -> "Processor":
    """What `load` reads from a folder with transformers, to which null in the files of a processor is a value.

    Raises:
      ValueError: names the entries that are null and must not be, or those of files that cannot be read.
    """
    files = [Path(folder) / name for name in PROCESSORS if (Path(folder) / name).is_file()]
    nulls = [f"{file.name}: {name}" for file in files for name in _nulls(json_io.read_json(file))]
    if wrong := [name for name in nulls if name.split(".")[-1] in NOT_NULL]:
        raise ValueError(f"{folder}: entries must not be null, got {wrong}; leave them out for their defaults")
    try:
        return load()
    except (OSError, KeyError, TypeError, ValueError) as error:
        if not nulls:
            raise
        raise ValueError(
            f"{folder}: the processor cannot be read ({error}); entries that are null are better left out: {nulls}"
        ) from error


def _nulls(entries: Mapping[str, Any]) -> Iterator[str]:
    for name, value in entries.items():
        if isinstance(value, dict):
            yield from (f"{name}.{inner}" for inner in _nulls(value))
        elif value is None:
            yield name


class Processor:
    """A Hugging Face processor and what a model's config says of it.

    Attributes:
      media: what a prompt may come with, such as "pictures"; for messages.
      config: of the model.
      hf: the Hugging Face processor.
      tokenizer: its tokenizer.
      placeholder: token that features stand in for, and its text.
    """

    media: ClassVar[str]

    def __init__(self, config: Any, hf: Any, placeholder: tuple[int, str]):
        self.config, self.hf, self.tokenizer, self.placeholder = config, hf, hf.tokenizer, placeholder

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the files that `from_pretrained` reads."""
        self.hf.save_pretrained(folder)

    def prompt(self, text: str, num_features: int = 0) -> Int[np.ndarray, " T"]:
        """Tokens of a prompt, with its placeholder token repeated for each feature of its picture or clip.

        Raises:
          ValueError: if the text has no placeholder for a picture or clip that is there, several, or one too many.
        """
        tokens, (placeholder, name) = np.asarray(self.tokenizer(text)["input_ids"], np.int32), self.placeholder
        found, needed = int((tokens == placeholder).sum()), int(num_features > 0)
        if found != needed:
            raise ValueError(
                f"the prompt must have {name!r} (token {placeholder}) {needed} times, for its {needed} {self.media}, "
                f"got {found} in {text!r}"
            )
        return np.repeat(tokens, np.where(tokens == placeholder, num_features, 1))

    def check_number(self, prompts: Sequence[str], media: Sequence[Any]) -> None:
        """Raises a ValueError unless there is a picture or clip, or None, for every prompt."""
        if len(prompts) != len(media):
            one = self.media.removesuffix("s")
            raise ValueError(f"every prompt needs a {one} or None, got {len(prompts)} and {len(media)}")

    def padded(
        self, rows: Sequence[Int[np.ndarray, " T"]], length: int | None, side: Literal["left", "right"] = "left"
    ) -> dict[str, np.ndarray]:
        """{tokens int32 [B, T], mask bool [B, T]} of rows of unequal lengths.

        Args:
          length: T; of the longest row if None.
          side: where padding goes: "left", to generate from the prompts, or "right".
        Raises:
          ValueError: for a row longer than T, or another side.
        """
        longest = max(map(len, rows), default=0)
        length = longest if length is None else length
        if longest > length:
            raise ValueError(f"a prompt has {longest} tokens, more than length={length}")
        if side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', got {side!r}")
        ids = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0  # a tokenizer may have none of its own
        tokens = np.full((len(rows), length), next(token for token in ids if token is not None), np.int32)
        mask = np.zeros(tokens.shape, bool)
        for row, real, of_row in zip(tokens, mask, rows, strict=True):
            here = slice(length - len(of_row), None) if side == "left" else slice(len(of_row))
            row[here], real[here] = of_row, True
        return {"tokens": tokens, "mask": mask}
