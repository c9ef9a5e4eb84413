"""Verses in archaic English (KJV), modern English (WEB) and Spanish (Reina-Valera), aligned: one source, two answers.

    languages   a KJV verse, answered in Spanish or in modern English: far modes
    styles      a Spanish verse, answered in archaic or in modern English: near modes

The texts are public domain, fetched as Debian packages (3 to 4 MB each) or read from a folder; see `sword`. Splits are
by chapter. Chapters that the three number differently, and verses that do not correspond, are left out.
"""

import dataclasses
import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from experiments.datasets import sword
from experiments.datasets.sources import made_of
from mcl_jax.console import Progress
from mcl_jax.data.records import Corpus, Record, Target, describe_unknown, split_of
from mcl_jax.json_io import write_text

MODULES = {  # Debian package and SWORD module of each version
    "kjv": ("sword-text-kjv", "engKJV2006eb"),
    "web": ("sword-text-web", "engWEB2015eb"),
    "spanish": ("sword-text-sparv", "spaRV1909eb"),
}
SOURCES = ("mods.d/*", "modules/**/*")  # globs of what is read of a folder
TASKS = ("languages", "styles")
FORMAT = 1  # of the cache; raise it when texts or alignment change, and the version of the TFDS builder too


@dataclasses.dataclass(frozen=True)
class Verse:
    """A verse in its three versions; `book` is its OSIS name, such as "Matt"."""

    book: str
    chapter: int
    verse: int
    kjv: str
    web: str
    spanish: str

    @property
    def split(self) -> str:
        """The split of its chapter."""
        return split_of(f"verses {self.book} {self.chapter}")


@dataclasses.dataclass(frozen=True)
class Aligned:
    """Verses that all versions have, and how many were left out.

    Attributes:
      verses: in the order of the books.
      dropped_chapters: names of chapters that all versions have but number differently, such as "Rom 16".
      dropped_verses: number of verses of the other chapters that one version lacks, or has far more of (in WEB, Rom
        14:23 goes on with what is Rom 16:25 to 27 elsewhere; some Spanish letters end with notes on their sending).
    """

    verses: tuple[Verse, ...]
    dropped_chapters: tuple[str, ...]
    dropped_verses: int


def read_verses(
    cache_dir: Path | str, sword_dir: Path | str | None = None, testament: Literal["new", "whole"] = "new"
) -> Aligned:
    """The aligned verses, read once and then kept as JSON in the cache, apart for each state of a `sword_dir`.

    What is left out is warned of each time.

    Args:
      cache_dir: where packages and verses are kept; made if need be.
      sword_dir: a folder with mods.d that has the three modules; None to fetch the Debian packages.
      testament: "new" or "whole".
    Raises:
      ValueError: for another testament.
      RuntimeError: if the packages cannot be had; says by which commands.
      FileNotFoundError: if `sword_dir` lacks a module; says which.
    """
    if testament not in sword.TESTAMENTS:
        raise ValueError(f"testament {describe_unknown(testament, sword.TESTAMENTS)}")
    path = Path(cache_dir) / f"verses_{testament}_{FORMAT}{_suffix(sword_dir)}.json"
    if (aligned := _kept(path)) is None:
        aligned = align({name: _read_version(name, cache_dir, sword_dir, testament) for name in MODULES})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(dataclasses.asdict(aligned), ensure_ascii=False))
    if aligned.dropped_chapters or aligned.dropped_verses:
        warnings.warn(
            summary_of_dropped(len(aligned.verses), aligned.dropped_chapters, aligned.dropped_verses), stacklevel=2
        )
    return aligned


def summary_of_dropped(kept: int, chapters: Sequence[str], verses: int) -> str:
    """A line that names the chapters and counts the verses that were left out."""
    names = ", ".join(chapters) or "none"
    return (
        f"verses: kept {kept}; left out chapters that the versions number differently ({names}) "
        f"and, of the others, verses that do not correspond ({verses})"
    )


def _suffix(sword_dir: Path | str | None) -> str:
    """Tells verses from a folder from those of the packages, and from those of other files in it."""
    return "" if sword_dir is None else f"_{made_of(sword_dir, SOURCES)['checksum']}"


def _kept(path: Path) -> Aligned | None:
    """The verses that are kept in a file; None if there are none, or it does not hold what was written."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        verses = tuple(Verse(**verse) for verse in fields["verses"])
        return Aligned(verses, tuple(fields["dropped_chapters"]), fields["dropped_verses"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _read_version(
    name: str, cache_dir: Path | str, sword_dir: Path | str | None, testament: str
) -> dict[sword.Place, str]:
    """Texts of one version without markup, by place; shows progress."""
    package, module = MODULES[name]
    folder = sword.fetch_module(package, cache_dir) if sword_dir is None else sword_dir
    total = {"new": 7957, "whole": 31102}[testament]  # about: versions differ
    texts = {}
    with Progress(total, description=f"reading {package}") as progress:
        for place, text in sword.read_module(folder, module, testament):
            texts[place] = sword.strip_markup(text)
            progress.update(min(len(texts), total))
    return texts


def align(versions: dict[str, dict[sword.Place, str]]) -> Aligned:
    """Puts the versions side by side.

    Args:
      versions: by name ("kjv", "web", "spanish"), texts by place.
    Returns:
      The verses, without chapters whose numbers of verses differ, and without verses that do not correspond.
    """
    lengths = {name: _chapter_lengths(texts) for name, texts in versions.items()}
    chapters = [c for c in lengths["kjv"] if all(c in version for version in lengths.values())]
    same = [c for c in chapters if len({version[c] for version in lengths.values()}) == 1]
    verses, dropped_verses = [], 0
    for chapter in same:
        for number in range(1, lengths["kjv"][chapter] + 1):
            place = sword.Place(*chapter, number)
            texts = {name: version.get(place, "") for name, version in versions.items()}
            if all(texts.values()) and _same_content(texts.values()):
                verses.append(Verse(place.book, place.chapter, place.verse, **texts))
            else:
                dropped_verses += 1
    dropped = tuple(f"{book} {number}" for part, book, number in chapters if (part, book, number) not in same)
    return Aligned(tuple(verses), dropped, dropped_verses)


def _same_content(texts: Iterable[str]) -> bool:
    """Whether the lengths are such that one text may translate the other."""
    lengths = [len(text) for text in texts]
    return max(lengths) <= 1.8 * min(lengths) + 20


def _chapter_lengths(texts: dict[sword.Place, str]) -> dict[tuple[str, str, int], int]:
    """The last verse with a text, of each chapter."""
    lengths = {}
    for place, text in texts.items():
        if text:
            lengths[place[:3]] = max(place.verse, lengths.get(place[:3], 0))
    return lengths


def to_corpus(verses: Iterable[Verse], task: Literal["languages", "styles"] = "languages") -> Corpus:
    """Records of a task, a verse each.

    Args:
      verses: aligned verses.
      task: "languages": KJV → "es" or "en"; "styles": Spanish → "archaic" or "modern".
    Raises:
      ValueError: for another task.
    """
    if task not in TASKS:
        raise ValueError(f"task {describe_unknown(task, TASKS)}")
    return Corpus(task, tuple(_record(verse, task) for verse in verses))


def _record(verse: Verse, task: str) -> Record:
    if task == "languages":
        source, targets = verse.kjv, (Target(verse.spanish, "es"), Target(verse.web, "en"))
    else:
        source, targets = verse.spanish, (Target(verse.kjv, "archaic"), Target(verse.web, "modern"))
    return Record(f"{verse.book} {verse.chapter}:{verse.verse}", source, targets, split=verse.split)
