"""The parts that data sets read from published files share: `textcaps`, `audiocaps` and `clotho`."""

import dataclasses
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mcl_jax.data.media import Media
from mcl_jax.data.paths import locate
from mcl_jax.data.records import Corpus, Record, Target
from mcl_jax.json_io import check_unicode

NO_FILE = "no such file"
Item = tuple[str, list[Target], str, Media, str]  # id, captions, split, image or clip, its path in the folder


class Part(NamedTuple):
    """Files of a published split: the file of captions, the folder of images or clips, and the names needed there."""

    captions: Path
    folder: Path
    names: str


def corpus_of(
    name: str, folder: Path, parts: Mapping[str, Part], items: Iterable[Item], left_out: Iterable[tuple[str, str]]
) -> Corpus:
    """Makes a corpus without blank or repeated captions, and without records whose file is missing or shared.

    Raises:
      ValueError: if a split has no records left; checked before any file is read.
    """
    records, left_out = [], list(left_out)
    reasons = _not_of_their_own(folder, items)
    for key, targets, split, media, path in items:
        if key in reasons:
            left_out.append((path if reasons[key] == NO_FILE else key, reasons[key]))
            continue
        stripped = [dataclasses.replace(target, text=" ".join(target.text.split())) for target in targets]
        left_out += [(key, "a blank caption") for target in stripped if not target.text]
        if kept := tuple(dict.fromkeys(target for target in stripped if target.text)):
            records.append(Record(key, "", kept, split=split, media=media))
    filled = {record.split for record in records}
    for part in (parts[split] for split in parts if split not in filled):
        some = ", ".join(files_in(part.folder)[:3]) or "no files"
        raise ValueError(
            f"{part.captions} has no usable captions, because none of their files is in {part.folder}, which has "
            f"{some}; the files must be named {part.names}"
        )
    return Corpus(name, tuple(records), tuple(left_out))


def _not_of_their_own(folder: Path, items: Iterable[Item]) -> dict[str, str]:
    """Returns the reason, by id, why a record has no file of its own. A file shared by two records goes to neither."""
    reasons: dict[str, str] = {}
    owner: dict[Hashable, str] = {}
    for key, *_, path in items:
        try:
            file = locate(folder, path)
        except ValueError:
            reasons[key] = "a path outside the folder"
            continue
        if not file.is_file:
            reasons[key] = NO_FILE
        elif (first := owner.setdefault(file.identity, key)) != key:
            reasons |= {first: f"one file with {key}", key: f"one file with {first}"}
    return reasons


def text_of(value: Any, name: str) -> str:
    """Returns the value if it is a text of valid Unicode; else raises a ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, got {value!r:.80}")
    return check_unicode(value, name)


def needed(path: Path, layout: str) -> Path:
    """Returns the path if the file exists; else raises a FileNotFoundError that describes the layout."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path.name} in {str(path.parent)!r}\n{layout}")
    return path


def files_in(folder: Path) -> list[str]:
    """Returns the sorted names in a folder; none if there is no such folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
