"""Arguments of a command to questions: texts, or files of pictures or clips."""

import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mcl_jax.answer.recipe import Kind
from mcl_jax.data.media import KINDS, Media, media_in
from mcl_jax.json_io import check_unicode

STDIN = "-"
CLASSES = {f"{name}s": media for name, media in KINDS.items()}  # "pictures" and "clips"


@dataclasses.dataclass(frozen=True)
class Question:
    """A text, or a picture or clip in a file.

    Attributes:
      name: the text, or the path of the file.
      media: the picture or clip; None for a text.
    """

    name: str
    media: Media | None = None

    def read(self) -> str | np.ndarray:
        """Returns the text, or the array of the picture or clip; raises `Unreadable` for a broken file."""
        return self.name if self.media is None else self.media.read()


def questions(arguments: Sequence[str], kind: Kind) -> list[Question]:
    """Returns the questions that arguments name.

    Args:
      arguments: texts, or files and folders of pictures or clips; "-" stands for the lines of standard input, as no
        arguments do.
      kind: what is answered.
    Raises:
      ValueError: if a file is missing or of another kind, a folder has no such files, a text is blank, or there are no
        questions; names the argument.
    """
    given = [line for argument in arguments or [STDIN] for line in (_lines() if argument == STDIN else [argument])]
    found = [question for argument in given for question in _questions(argument, kind)]
    if not found:
        raise ValueError(f"there is nothing to answer: give {_wanted(kind)}, as arguments or on standard input")
    return found


def _wanted(kind: Kind) -> str:
    return "texts" if kind == "text" else f"files or folders of {kind}"


def _lines() -> list[str]:
    """Returns the lines of standard input that are not blank; none if it is a terminal and nothing was typed."""
    if sys.stdin is None or sys.stdin.isatty():
        return []
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input must be text in UTF-8: {error}") from None
    return [line for line in text.splitlines() if line.strip()]


def _questions(argument: str, kind: Kind) -> Iterator[Question]:
    if kind == "text":
        yield _text(argument)
    elif os.path.isdir(argument):
        yield from _in_folder(Path(argument), kind)
    else:
        yield _file(argument, kind)


def _text(argument: str) -> Question:
    suffix = Path(argument).suffix.lower()
    if suffix and os.path.isfile(argument):
        media = next((media.kind for media in KINDS.values() if suffix in media.endings), "file")
        raise ValueError(
            f"{argument} is a {media}, but these hypotheses answer text; give the lines of a file on standard input"
        )
    if not argument.strip():
        raise ValueError("a text must not be blank")
    return Question(check_unicode(argument, "a text"))


def _file(argument: str, kind: Kind) -> Question:
    if not os.path.isfile(argument):
        raise ValueError(f"there is no file or folder {argument}; these hypotheses answer {kind}")
    media = media_in(Path(argument), argument)
    if not isinstance(media, CLASSES[kind]):
        raise ValueError(f"{argument} is a {media.kind}, but these hypotheses answer {kind}")
    return Question(argument, media)


def _in_folder(folder: Path, kind: Kind) -> Iterator[Question]:
    """Yields the pictures or clips of a folder and of the folders in it, in the order of their names."""
    endings = CLASSES[kind].endings
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file())
    if not files:
        raise ValueError(f"the folder {folder} has no {kind}: no file whose name ends in one of {', '.join(endings)}")
    yield from (Question(str(path), media_in(path, str(path))) for path in files)
