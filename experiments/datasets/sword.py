"""Texts of SWORD modules, verse by verse: fetched as Debian packages, read with pysword, markup taken out here.

pysword can clean texts itself, but then glues words and keeps what editors added.
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

# What editors added goes with its content, and so does what stands behind the end of a chapter: WEB has a glossary
# there. Tags that break lines become a space; other tags vanish, as in <w>word</w>s.
ADDED = re.compile(r"<(note|title|figure)\b[^>]*(?<!/)>.*?</\1\s*>", re.DOTALL)
AFTER_CHAPTER = re.compile(r"<chapter\b[^>]*\beID=.*", re.DOTALL)
BREAKS = re.compile(r"</?(?:l|lg|lb|p|div|milestone|list|item|verse)\b[^>]*>")
TAG = re.compile(r"<[^>]*>")
# Words that the translators added are tagged without a space before or after them in Spanish: "la</w><transChange>que".
# Only a pronoun that hangs on a verb stays there: "oyéndo</w><transChange>lo".
ADDED_WORD = re.compile(r"(?<=\w)(?:<[^>]*>)*</?transChange\b[^>]*>(?:<[^>]*>)*(?=\w)")
VERB = re.compile(r"(?:[áéíóú]\w*|ndo|r|d)$")
PRONOUN = re.compile(r"(?:l[ao]s?|les?|nos|os|me|te|se)\b")
PILCROW, CUT = "¶", "\0"


class Place(NamedTuple):
    """Of a verse: testament ("ot", "nt"), OSIS name of the book ("Matt"), chapter and verse from 1."""

    testament: str
    book: str
    chapter: int
    verse: int


def fetch_module(package: str, cache_dir: Path | str) -> Path:
    """The SWORD folder, which holds mods.d, of a Debian package such as "sword-text-kjv"; see `fetch_package`."""
    return fetch_package(package, cache_dir, "usr/share/sword", "sword_dir")


def read_module(sword_dir: Path | str, module: str, testament: str = "whole") -> Iterator[tuple[Place, str]]:
    """Verses of a module in order, with markup, as an iterator; empty ones too, so that numbers stay right.

    Args:
      sword_dir: folder that holds mods.d.
      module: name of the module, in any case, such as "engKJV2006eb".
      testament: "new" or "whole".
    Raises:
      FileNotFoundError: if the folder has no such module; says which it has.
    """
    sword_dir = Path(sword_dir)
    if not (sword_dir / "mods.d").is_dir():
        raise FileNotFoundError(f"sword_dir must hold mods.d and modules, as in usr/share/sword; got {sword_dir}")
    modules = SwordModules(str(sword_dir))
    names = {name.lower(): name for name in modules.parse_modules()}
    if module.lower() not in names:
        raise FileNotFoundError(f"{sword_dir} has no module {module!r}, it has {sorted(names.values())}")
    bible = modules.get_bible_from_module(names[module.lower()])
    if decompress := getattr(bible, "_decompressed_text", None):  # of a whole book, which pysword does for each verse
        bible._decompressed_text = functools.lru_cache(maxsize=2)(decompress)
    for part in TESTAMENTS[testament]:
        for book in bible.get_structure().get_books()[part]:
            for chapter, length in enumerate(book.chapter_lengths, 1):
                for verse in range(1, length + 1):
                    texts = bible.get_iter(books=[book.name], chapters=[chapter], verses=[verse], clean=False)
                    yield Place(part, book.osis_name, chapter, verse), next(texts, "")


def strip_markup(text: str) -> str:
    """The words of a verse: no tags, notes or headings, characters instead of entities, single spaces.

    A note may stand for the space between two words: "Christ,<note>…</note>the son".

    Args:
      text: with OSIS markup.
    """
    text = BREAKS.sub(" ", ADDED.sub(CUT, AFTER_CHAPTER.sub("", text)))
    text = TAG.sub("", ADDED_WORD.sub(_space_or_nothing, text))
    text = re.sub(rf"{CUT}+(?=[\w“‘(])|(?<=”)(?=\w)", " ", text).replace(CUT, "")
    text = " ".join(html.unescape(text).replace(PILCROW, " ").split())
    return re.sub(r" +([,.;:?!)])", r"\1", text)


def _space_or_nothing(tags: re.Match[str]) -> str:
    """What stands between two words where the tag of an added word does."""
    hangs_on = VERB.search(tags.string[max(0, tags.start() - 30) : tags.start()])
    return "" if hangs_on and PRONOUN.match(tags.string, tags.end()) else " "
