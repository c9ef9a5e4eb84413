"""Common parts of image and audio processors: prompts with placeholders to padded tokens, in NumPy."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int, UInt8

from mcl_jax import json_io
from mcl_jax.models.tokenizer_files import PROCESSORS
from mcl_jax.tokenization import chat_text, check_chat

Picture = UInt8[np.ndarray, "H W 3"]
# What stands for a picture or clip in a message. Some templates know a clip by its type, others by its audio_url.
PARTS = {"pictures": {"type": "image"}, "clips": {"type": "audio", "audio_url": ""}}
NOT_NULL = ("do_rescale", "do_normalize", "dither")  # transformers reads null as "no", or fails at the first clip


def read(folder: str | Path, load: Callable[[], "Processor"]) -> "Processor":
    """Reads a processor with transformers, after checking the null entries of its files, which transformers keeps.

    Args:
      folder: the folder.
      load: reads the processor.
    Returns:
      The processor.
    Raises:
      ValueError: if an entry is null that must not be, or the processor cannot be read; names the null entries.
    """
    files = [Path(folder) / name for name in PROCESSORS if (Path(folder) / name).is_file()]
    nulls = [f"{file.name}: {name}" for file in files for name in _nulls(json_io.read_json(file))]
    if wrong := [name for name in nulls if name.split(".")[-1] in NOT_NULL]:
        raise ValueError(f"{folder}: the entries {wrong} must not be null; remove them to use their defaults")
    try:
        return load()
    except (OSError, KeyError, TypeError, ValueError) as error:
        if not nulls:
            raise
        raise ValueError(
            f"{folder}: the processor cannot be read ({error}); try to remove the entries that are null: {nulls}"
        ) from error


def _nulls(entries: Mapping[str, Any]) -> Iterator[str]:
    for name, value in entries.items():
        if isinstance(value, dict):
            yield from (f"{name}.{inner}" for inner in _nulls(value))
        elif value is None:
            yield name


def checked_picture(picture: Picture) -> Picture:
    """Returns a picture as an array.

    Raises:
      ValueError: if it is not uint8 RGB.
    """
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ValueError(f"an image must be RGB, uint8[H, W, 3], got {picture.dtype}{list(picture.shape)}")
    return picture


class Processor:
    """A Hugging Face processor together with the model's config.

    Attributes:
      media: kind of media that a prompt may come with, such as "pictures"; for messages.
      config: config of the model.
      hf: the Hugging Face processor; None if there is none.
      tokenizer: its tokenizer.
      placeholder: id and text of the token that features replace; None if they replace none.
    """

    media: ClassVar[str]
    hf: Any = None

    def __init__(self, config: Any, hf: Any, placeholder: tuple[int, str] | None):
        self.config, self.hf, self.tokenizer, self.placeholder = config, hf, hf.tokenizer, placeholder

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the files that `from_pretrained` reads."""
        self.hf.save_pretrained(folder)

    @property
    def chat_template(self) -> Any:
        """The chat template of the Hugging Face processor, or else of the tokenizer; None if neither has one."""
        return getattr(self.hf, "chat_template", None) or getattr(self.tokenizer, "chat_template", None)

    def chat(self, text: str) -> str:
        """Returns a prompt in the chat template: the message of a user, up to where the answer begins.

        The prompt is that of Hugging Face's `apply_chat_template(..., add_generation_prompt=True)`. The template of a
        processor gets the parts of the message, and that of a tokenizer the text with the placeholder in it.

        Args:
          text: the message. The picture or clip is where its placeholder is, or comes first if it has none.
        Raises:
          ValueError: if there is no chat template, or it does not take the message; names the file.
          MissingExtra: if jinja2, which fills the template, is not installed.
        """
        check_chat(self)
        name = self.placeholder[1]
        before, found, after = text.partition(name)
        texts = (before, after) if found else ("", text)
        if not getattr(self.hf, "chat_template", None):
            return chat_text(self.tokenizer, name.join(texts))
        first, last = ([{"type": "text", "text": part}] if part else [] for part in texts)
        return chat_text(self.hf, [*first, PARTS[self.media], *last])

    def prompt(self, text: str, num_features: int = 0) -> Int[np.ndarray, " T"]:
        """Tokenizes a prompt and repeats its placeholder token once per feature of its image or audio clip.

        Raises:
          ValueError: if the number of placeholders in the text is not that of its images or clips (0 or 1).
        """
        tokens = self.checked_tokens(text, num_features)
        return np.repeat(tokens, np.where(tokens == self.placeholder[0], num_features, 1))

    def checked_tokens(self, text: str, num_features: int) -> Int[np.ndarray, " T"]:
        """Tokenizes a prompt as it is, after the check of `prompt`."""
        tokens, (placeholder, name) = self.ids(text), self.placeholder
        count, needed = int((tokens == placeholder).sum()), int(num_features > 0)
        if count != needed:
            raise ValueError(
                f"the prompt must have {name!r} (token {placeholder}) {needed} times, for its {needed} {self.media}, "
                f"got {count} in {text!r}"
            )
        return tokens

    def ids(self, text: str) -> Int[np.ndarray, " T"]:
        """Tokenizes a text; one that begins with bos itself, as some chats do, gets no other first token."""
        bos = self.tokenizer.bos_token
        begun = bos is not None and text.startswith(bos)
        return np.asarray(self.tokenizer(text, add_special_tokens=not begun)["input_ids"], np.int32)

    def batch(
        self,
        prompts: Sequence[str],
        inputs: dict[str, np.ndarray],
        num_features: Sequence[int],
        length: int | None = None,
        side: Literal["left", "right"] = "left",
    ) -> dict[str, np.ndarray]:
        """Joins prompts with the inputs of their images or clips.

        Args:
          prompts: texts, see `prompt`.
          inputs: the arguments of `encode`, with a row for each image or clip.
          num_features: number of features of each.
          length, side: as in `padded`.
        Returns:
          The tokens and mask of `padded`, and the inputs.
        Raises:
          ValueError: if there are more or fewer prompts than images or clips; or as `prompt` and `padded` do.
        """
        if len(prompts) != len(num_features):
            raise ValueError(
                f"every prompt needs one of the {self.media} or None, got {len(prompts)} prompts and "
                f"{len(num_features)} {self.media}"
            )
        rows = [self.prompt(text, n) for text, n in zip(prompts, num_features, strict=True)]
        return self.padded(rows, length, side) | inputs

    def padded(
        self, rows: Sequence[Int[np.ndarray, " T"]], length: int | None, side: Literal["left", "right"] = "left"
    ) -> dict[str, np.ndarray]:
        """Pads rows of unequal lengths.

        Args:
          rows: token ids of each prompt.
          length: T; the length of the longest row if None.
          side: side of the padding: "left", to generate from the prompts, or "right".
        Returns:
          {tokens int32 [B, T], mask bool [B, T]}.
        Raises:
          ValueError: if a row is longer than T, or the side is unknown.
        """
        longest = max(map(len, rows), default=0)
        length = longest if length is None else length
        if longest > length:
            raise ValueError(f"a prompt must have at most length={length} tokens, got {longest}")
        if side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', got {side!r}")
        ids = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0  # a tokenizer may lack the first two
        tokens = np.full((len(rows), length), next(token for token in ids if token is not None), np.int32)
        mask = np.zeros(tokens.shape, bool)
        for row, real, of_row in zip(tokens, mask, rows, strict=True):
            here = slice(length - len(of_row), None) if side == "left" else slice(len(of_row))
            row[here], real[here] = of_row, True
        return {"tokens": tokens, "mask": mask}
