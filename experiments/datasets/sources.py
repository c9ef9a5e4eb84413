"""Preparation of TFDS data sets: one is prepared again when the names, sizes or times of its files have changed.

TFDS stores a data set under its name and version, whatever folder it came from; here its metadata records the folder.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from google.protobuf.json_format import ParseError

from mcl_jax.console import say
from mcl_jax.data.paths import checksum
from mcl_jax.lock import DirectoryInUse, DirectoryLock

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
    builder = _described_builder(make, folder)
    if _is_current(builder, folder, patterns):
        return builder, False
    with only_one_process(Path(builder.data_dir).parent, f"to prepare {builder.info.full_name}"):
        builder = _described_builder(make, folder)  # another process may have made it in the meantime
        if _is_current(builder, folder, patterns):
            return builder, False
        if builder.info.initialized:
            made_from = _described(_sources(builder))
            say(f"{builder.info.full_name} was made from {made_from}; making it again from the files in {folder}")
        with set_aside(Path(builder.data_dir)):
            builder = make()
            quiet(builder)
            builder.download_and_prepare(**options)
    return builder, True


def _described_builder(
    make: Callable[[], tfds.core.DatasetBuilder], folder: Path | str | None
) -> tfds.core.DatasetBuilder:
    try:
        builder = make()
        _sources(builder)
    except DAMAGED as error:
        raise ValueError(
            f"the description of the data set that was made of {folder or 'what was fetched'} cannot be read "
            f"({first_line(error)}): move dataset_info.json and all that is beside it away, and it is made again"
        ) from error
    return builder


def _sources(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
    return (builder.info.metadata or {}).get("sources") or {}


def _is_current(builder: tfds.core.DatasetBuilder, folder: Path | str | None, patterns: Sequence[str]) -> bool:
    """Whether the data set exists and need not be made again; without a folder, a line says what it was made from."""
    if not builder.info.initialized:
        return False
    if folder is None or not Path(folder).is_dir():
        _say_what_it_is(builder, folder, patterns, _sources(builder))
        return True
    return made_of(folder, patterns)["checksum"] == _sources(builder).get("checksum")


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
def only_one_process(folder: Path, purpose: str, poll: float = 1.0) -> Iterator[None]:
    """Waits until no other process is in the body for the same folder; a line says whom it waits for.

    Args:
      folder: folder whose lock is taken; created if it does not exist.
      purpose: what the process waits to do, for the line.
      poll: seconds between two attempts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting = False
    while True:
        lock = DirectoryLock(folder)
        try:
            lock.acquire()
            break
        except DirectoryInUse as error:
            if not waiting:
                say(f"Waiting {purpose}: {str(error).split(';')[0]}.")
            waiting = True
            time.sleep(poll)
    try:
        yield
    finally:
        lock.release()


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
