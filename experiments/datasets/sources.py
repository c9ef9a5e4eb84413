"""Preparation of TFDS data sets: one is prepared again when the names, sizes or times of its files have changed.

TFDS stores a data set under its name and version, whatever folder it came from; here its metadata records the folder.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from google.protobuf.json_format import ParseError

from mcl_jax.console import say
from mcl_jax.data.paths import checksum

DAMAGED = (UnicodeDecodeError, json.JSONDecodeError, ParseError, AssertionError, KeyError)  # of TFDS, for its own files


def made_of(folder: Path | str, patterns: Sequence[str]) -> dict[str, Any]:
    """Describes the files in a folder.

    Args:
      folder: folder with the files of a data set.
      patterns: globs of the files that count.
    Returns:
      JSON types: the absolute `folder`, the number of `files`, and a `checksum` of their names, sizes and times.
    """
    folder = Path(folder).absolute()
    names = {path.relative_to(folder).as_posix() for pattern in patterns for path in folder.glob(pattern)}
    names = {name for name in names if (folder / name).is_file()}
    return {"folder": str(folder), "files": len(names), "checksum": checksum(folder, names)}


def prepare(
    make: Callable[[], tfds.core.DatasetBuilder], folder: Path | str | None, patterns: Sequence[str], **options: Any
) -> tuple[tfds.core.DatasetBuilder, bool]:
    """Returns a builder with a data set made from the current files of a folder; prepares it if necessary.

    Args:
      make: makes a builder whose `info.metadata["sources"]` is the result of `made_of` for the folder.
      folder: the files of the data set. If it is None or does not exist, an existing data set is used, and a line on
        the console says what it was made from.
      patterns: globs for `made_of`.
      **options: arguments of `download_and_prepare`.
    Returns:
      The builder, and whether the data set was made now.
    Raises:
      ValueError: if the files in which TFDS describes the data set are damaged.
    """
    try:
        builder = make()
        sources = (builder.info.metadata or {}).get("sources") or {}
    except DAMAGED as error:
        raise ValueError(
            f"the description of the data set that was made of {folder or 'what was fetched'} cannot be read "
            f"({first_line(error)}): move dataset_info.json and all that is beside it away, and it is made again"
        ) from error
    if builder.info.initialized:
        if folder is None or not Path(folder).is_dir():
            _say_what_it_is(builder, folder, patterns, sources)
            return builder, False
        if made_of(folder, patterns)["checksum"] == sources.get("checksum"):
            return builder, False
        say(f"{builder.info.full_name} was made from {_described(sources)}; making it again from the files in {folder}")
    with set_aside(Path(builder.data_dir)):
        builder = make()
        quiet(builder)
        builder.download_and_prepare(**options)
    return builder, True


def first_line(error: BaseException) -> str:
    """What an error says, without what a library adds below."""
    return next(iter(str(error).strip().splitlines()), repr(error))


def quiet(builder: tfds.core.DatasetBuilder, hint: str = "this happens once") -> None:
    """Replaces TFDS's progress bars and messages by one line of our own.

    Args:
      builder: the builder to silence, before `download_and_prepare`.
      hint: how long it takes, for the line.
    """
    tfds.disable_progress_bar()

    def say_it_begins() -> None:
        say(f"Preparing the data set {builder.info.full_name} in {builder.data_dir} ({hint}).")

    builder._log_download_bytes = say_it_begins
    builder._log_download_done = lambda: None


def _described(sources: dict[str, Any]) -> str:
    if not sources:
        return "unknown files"
    count = f"{sources['files']} files in " if "files" in sources else "the files fetched to "
    return count + sources["folder"]


def _say_what_it_is(
    builder: tfds.core.DatasetBuilder, folder: Path | str | None, patterns: Sequence[str], sources: dict[str, Any]
) -> None:
    """Prints a line if the data set was made from another folder than the requested one."""
    asked = "no folder is given" if folder is None else f"there is no folder {folder}"
    if folder is None and sources.get("fetched", True):
        return
    changed = "checksum" in sources and Path(sources["folder"]).is_dir()
    changed = changed and made_of(sources["folder"], patterns)["checksum"] != sources["checksum"]
    hint = "; these have changed since then, so pass that folder to make it again" if changed else ""
    say(f"{builder.info.full_name}: {asked}; using the data set that was made from {_described(sources)}{hint}")


@contextlib.contextmanager
def set_aside(folder: Path) -> Iterator[None]:
    """Moves an existing folder away; restores it if the body fails, and deletes it otherwise."""
    aside = folder.with_name(folder.name + ".before")
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    try:
        yield
    except BaseException:
        if aside.exists() and not folder.exists():
            aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)
