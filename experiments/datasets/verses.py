"""Verses in archaic English (KJV), modern English (WEB) and Spanish (Reina-Valera), aligned: one source, two answers.

    languages   a KJV verse, answered in Spanish or in modern English: distant modes
    styles      a Spanish verse, answered in archaic or in modern English: close modes

The texts are in the public domain; they are fetched as Debian packages (3 to 4 MB each) or read from a folder, see
`sword`. Whole chapters are assigned to splits. Chapters that the versions number differently, and verses that do not
correspond, are left out.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from experiments.datasets import sword
from experiments.datasets.sources import made_of
from mcl_jax.console import Progress, say
from mcl_jax.data.records import Corpus, Record, Target, describe_unknown, split_of
from mcl_jax.json_io import write_text

MODULES = {  # Debian package and SWORD module of each version
    "kjv": ("sword-text-kjv", "engKJV2006eb"),
    "web": ("sword-text-web", "engWEB2015eb"),
    "spanish": ("sword-text-sparv", "spaRV1909eb"),
}
SOURCES = ("mods.d/*", "modules/**/*")  # globs of the files that are read
TASKS = ("languages", "styles")
FORMAT = 1  # version of the cache; raise it, and the version of the TFDS builder, when texts or alignment change


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
    """Verses that all versions have, and what was left out.

    Attributes:
      verses: the verses, in the order of the books.
      dropped_chapters: names of chapters that all versions have but number differently, such as "Rom 16".
      dropped_verses: number of verses in the other chapters that are missing or much longer in one version (in WEB, Rom
        14:23 continues with Rom 16:25 to 27 of the others; some Spanish letters end with notes on their dispatch).
    """

    verses: tuple[Verse, ...]
    dropped_chapters: tuple[str, ...]
    dropped_verses: int


def read_verses(
    cache_dir: Path | str, sword_dir: Path | str | None = None, testament: Literal["new", "whole"] = "new"
) -> Aligned:
    """Reads the aligned verses once and caches them as JSON, separately for each state of a `sword_dir`.

    A line on the console says each time what is left out.

    Args:
      cache_dir: folder for packages and verses; created if it does not exist.
      sword_dir: folder with mods.d and the three modules; None fetches the Debian packages.
      testament: "new" or "whole".
    Returns:
      The aligned verses.
    Raises:
      ValueError: if the testament is unknown.
      RuntimeError: if the packages cannot be fetched; gives the commands to get them.
      FileNotFoundError: if `sword_dir` lacks a module; names it.
    """
    if testament not in sword.TESTAMENTS:
        raise ValueError(f"testament {describe_unknown(testament, sword.TESTAMENTS)}")
    path = Path(cache_dir) / f"verses_{testament}_{FORMAT}{_suffix(sword_dir)}.json"
    if (aligned := _kept(path)) is None:
        aligned = align({name: _read_version(name, cache_dir, sword_dir, testament) for name in MODULES})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(dataclasses.asdict(aligned), ensure_ascii=False))
    if aligned.dropped_chapters or aligned.dropped_verses:
        say(summary_of_dropped(len(aligned.verses), aligned.dropped_chapters, aligned.dropped_verses))
    return aligned


def summary_of_dropped(kept: int, chapters: Sequence[str], verses: int) -> str:
    """Returns a line that names the chapters and counts the verses that were left out."""
    names = ", ".join(chapters) or "none"
    return (
        f"verses: kept {kept}; left out chapters that the versions number differently ({names}) and verses of other "
        f"chapters that do not correspond ({verses})"
    )


def _suffix(sword_dir: Path | str | None) -> str:
    """Returns a suffix of the cache file that identifies the files of a folder; empty for the Debian packages."""
    return "" if sword_dir is None else f"_{made_of(sword_dir, SOURCES)['checksum']}"


def _kept(path: Path) -> Aligned | None:
    """Reads the cached verses; None if there is no such file, or it is damaged."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        verses = tuple(Verse(**verse) for verse in fields["verses"])
        return Aligned(verses, tuple(fields["dropped_chapters"]), fields["dropped_verses"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _read_version(
    name: str, cache_dir: Path | str, sword_dir: Path | str | None, testament: str
) -> dict[sword.Place, str]:
    """Reads the texts of one version without markup, by place; shows progress."""
    package, module = MODULES[name]
    folder = sword.fetch_module(package, cache_dir) if sword_dir is None else sword_dir
    total = {"new": 7957, "whole": 31102}[testament]  # approximate, since versions differ
    texts = {}
    with Progress(total, description=f"reading {package}") as progress:
        for place, text in sword.read_module(folder, module, testament):
            texts[place] = sword.strip_markup(text)
            progress.update(min(len(texts), total))
    return texts


def align(versions: dict[str, dict[sword.Place, str]]) -> Aligned:
    """Aligns the versions verse by verse.

    Args:
      versions: texts by place, by name of the version ("kjv", "web", "spanish").
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
    """Whether the lengths are close enough for texts that translate each other."""
    lengths = [len(text) for text in texts]
    return max(lengths) <= 1.8 * min(lengths) + 20


def _chapter_lengths(texts: dict[sword.Place, str]) -> dict[tuple[str, str, int], int]:
    """Returns the number of the last verse with a text in each chapter."""
    lengths = {}
    for place, text in texts.items():
        if text:
            lengths[place[:3]] = max(place.verse, lengths.get(place[:3], 0))
    return lengths


def to_corpus(verses: Iterable[Verse], task: Literal["languages", "styles"] = "languages") -> Corpus:
    """Makes the corpus of a task, with one record per verse.

    Args:
      verses: aligned verses.
      task: "languages" (KJV → "es" or "en") or "styles" (Spanish → "archaic" or "modern").
    Raises:
      ValueError: if the task is unknown.
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
