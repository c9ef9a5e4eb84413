"""Texts of SWORD modules, verse by verse: fetched as Debian packages, read with pysword, and stripped of markup here.

pysword can clean texts itself, but it joins words and keeps editors' additions.
"""

import functools
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pysword.modules import SwordModules

from experiments.datasets.debian import fetch_package

TESTAMENTS = {"new": ("nt",), "whole": ("ot", "nt")}

# Editors' additions are removed with their content, and so is everything after the end of a chapter, where WEB has a
# glossary. Tags that break lines become a space; other tags are removed, as in <w>word</w>s.
ADDED = re.compile(r"<(note|title|figure)\b[^>]*(?<!/)>.*?</\1\s*>", re.DOTALL)
AFTER_CHAPTER = re.compile(r"<chapter\b[^>]*\beID=.*", re.DOTALL)
BREAKS = re.compile(r"</?(?:l|lg|lb|p|div|milestone|list|item|verse)\b[^>]*>")
TAG = re.compile(r"<[^>]*>")
# In Spanish, words that the translators added are tagged without spaces around them: "la</w><transChange>que". Only a
# pronoun that is attached to a verb has no space: "oyéndo</w><transChange>lo".
ADDED_WORD = re.compile(r"(?<=\w)(?:<[^>]*>)*</?transChange\b[^>]*>(?:<[^>]*>)*(?=\w)")
VERB = re.compile(r"(?:[áéíóú]\w*|ndo|r|d)$")
PRONOUN = re.compile(r"(?:l[ao]s?|les?|nos|os|me|te|se)\b")
PILCROW, CUT = "¶", "\0"


class Place(NamedTuple):
    """Place of a verse: testament ("ot", "nt"), OSIS name of the book ("Matt"), chapter and verse from 1."""

    testament: str
    book: str
    chapter: int
    verse: int


def fetch_module(package: str, cache_dir: Path | str) -> Path:
    """Fetches a Debian package such as "sword-text-kjv"; returns its SWORD folder with mods.d, see `fetch_package`."""
    return fetch_package(package, cache_dir, "usr/share/sword", "sword_dir")


def read_module(sword_dir: Path | str, module: str, testament: str = "whole") -> Iterator[tuple[Place, str]]:
    """Yields the verses of a module in order, with markup; also empty ones, so that the numbers stay right.

    Args:
      sword_dir: folder with mods.d.
      module: name of the module, such as "engKJV2006eb"; case does not matter.
      testament: "new" or "whole".
    Raises:
      FileNotFoundError: if the folder has no such module; names those it has.
    """
    sword_dir = Path(sword_dir)
    if not (sword_dir / "mods.d").is_dir():
        raise FileNotFoundError(f"sword_dir must hold mods.d and modules, like usr/share/sword, got {sword_dir}")
    modules = SwordModules(str(sword_dir))
    names = {name.lower(): name for name in modules.parse_modules()}
    if module.lower() not in names:
        raise FileNotFoundError(f"{sword_dir} must hold the module {module!r}, got {sorted(names.values())}")
    bible = modules.get_bible_from_module(names[module.lower()])
    if decompress := getattr(bible, "_decompressed_text", None):  # pysword decompresses a whole book for each verse
        bible._decompressed_text = functools.lru_cache(maxsize=2)(decompress)
    for part in TESTAMENTS[testament]:
        for book in bible.get_structure().get_books()[part]:
            for chapter, length in enumerate(book.chapter_lengths, 1):
                for verse in range(1, length + 1):
                    texts = bible.get_iter(books=[book.name], chapters=[chapter], verses=[verse], clean=False)
                    yield Place(part, book.osis_name, chapter, verse), next(texts, "")


def strip_markup(text: str) -> str:
    """Returns the words of a verse, without tags, notes, headings and entities, separated by single spaces.

    A note may replace the space between two words: "Christ,<note>…</note>the son".

    Args:
      text: a verse with OSIS markup.
    """
    text = BREAKS.sub(" ", ADDED.sub(CUT, AFTER_CHAPTER.sub("", text)))
    text = TAG.sub("", ADDED_WORD.sub(_space_or_nothing, text))
    text = re.sub(rf"{CUT}+(?=[\w“‘(])|(?<=”)(?=\w)", " ", text).replace(CUT, "")
    text = " ".join(html.unescape(text).replace(PILCROW, " ").split())
    return re.sub(r" +([,.;:?!)])", r"\1", text)


def _space_or_nothing(tags: re.Match[str]) -> str:
    """Returns the separator of two words at the tag of an added word."""
    hangs_on = VERB.search(tags.string[max(0, tags.start() - 30) : tags.start()])
    return "" if hangs_on and PRONOUN.match(tags.string, tags.end()) else " "
