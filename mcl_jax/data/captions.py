"""Your own images or audio clips: a folder with the files and captions.jsonl, one object per line.

    {"file": "cats/7.jpg", "caption": "un chat", "mode": "fr", "split": "train"}
    {"file": "cats/7.jpg", "caption": "a cat", "mode": "en"}
    {"id": "8", "file": "8.png", "caption": "a dog", "references": ["a brown dog", {"caption": "un chien"}]}

`file` (a path inside the folder, written in any way, see `paths`) and `caption` are required. Lines with the same id or
file form one record, and their captions are collected; without `id`, the file is the id. `mode`, `split` and
`references` are as in `jsonl`.
"""

import dataclasses
import difflib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mcl_jax.console import Progress
from mcl_jax.data.jsonl import Layout, merge_lines
from mcl_jax.data.media import Media, Unreadable, media_in
from mcl_jax.data.paths import checksum, locate
from mcl_jax.data.records import Corpus, Record, split_of, warn_of_left_out

FILE = "captions.jsonl"
CAPTIONS = Layout(("file", "caption"), ("id", "mode", "split", "references"), "file", "caption", locate)


def read_captions(
    folder: Path | str,
    validation: float = 0.05,
    test: float = 0.05,
    *,
    check: Callable[[Corpus], object] | None = None,
) -> Corpus:
    """Reads a corpus from a folder of images or audio clips, see the top of this file.

    Every file is read once, so that none fails in the middle of a training.

    Args:
      folder: folder with captions.jsonl and the images, or the audio clips.
      validation, test: expected fractions of the ids without a `split`.
      check: checks the records before any file is read, and may raise an error.
    Returns:
      The corpus, named after the folder. Broken files are in `left_out`, and a line on the console names them.
    Raises:
      FileNotFoundError: if there is no captions.jsonl.
      ValueError: if a line is wrong, a file is not in the folder or of another kind, or the folder mixes images and
        audio clips; names the line, and the nearest file.
    """
    corpus = _listed(Path(folder), validation, test)
    if check is not None:
        check(corpus)
    broken = _broken({record.id: record.media for record in corpus.records})
    records = tuple(record for record in corpus.records if record.id not in broken)
    corpus = dataclasses.replace(corpus, records=records, left_out=tuple(broken.values()))
    warn_of_left_out(corpus)
    return corpus


def _listed(folder: Path, validation: float, test: float) -> Corpus:
    """Returns the records of captions.jsonl, after checking that their files exist, but without reading them."""
    path = folder / FILE
    merged = merge_lines(path, CAPTIONS)
    media = {}
    for key, fields in merged.items():
        try:
            media[key] = _media(folder, fields["subject"])
            _check_kind(media[key], next(iter(media.values())))
        except ValueError as error:
            raise ValueError(f"{path}, line {fields['line']}: {error}") from None
    records = (
        Record(
            id=key,
            source="",
            targets=tuple(fields["targets"]),
            further_references=tuple(fields["references"]),
            split=fields["split"] or split_of(key, validation, test),
            media=media[key],
        )
        for key, fields in merged.items()
    )
    names = [FILE, *(fields["subject"] for fields in merged.values())]
    return Corpus(folder.resolve().name, tuple(records), made_of=checksum(folder, names))


def _media(folder: Path, name: str) -> Media:
    """Returns the image or clip in a file; the ending of its name tells the kind."""
    file = locate(folder, name)
    if not file.is_file:
        names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != FILE]
        near = difflib.get_close_matches(name, names, n=1)
        raise ValueError(f"file {name!r} is not in the folder" + (f"; did you mean {near[0]!r}?" if near else ""))
    return media_in(file.path, file.name)


def _check_kind(media: Media, first: Media) -> None:
    if media.kind != first.kind:
        raise ValueError(
            f"all files must be of one kind, but {media.name!r} is a {media.kind} and {first.name!r} is a {first.kind}"
        )


def _broken(media: dict[str, Media]) -> dict[str, tuple[str, str]]:
    """Reads all files and shows progress; returns name and reason of those that cannot be read, by id."""
    broken = {}
    with ThreadPoolExecutor() as pool, Progress(len(media), description="reading images or clips") as progress:
        for number, (key, error) in enumerate(zip(media, pool.map(_error, media.values()), strict=True), 1):
            if error is not None:
                broken[key] = (error.name, error.reason)
            progress.update(number)
    return broken


def _error(media: Media) -> Unreadable | None:
    try:
        media.read()
    except Unreadable as error:
        return error
    return None
