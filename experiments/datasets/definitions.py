"""Words that are both a noun and a verb, with the definition of each from WordNet: one source, two answers.

The source is the word alone, so nothing tells which of the two is asked for. WordNet 3.0 is fetched as the Debian
package wordnet-base (6.5 MB; WordNet's own licence, which permits any use), or read from a folder.
"""

from pathlib import Path
from typing import NamedTuple

from experiments.datasets.debian import fetch_package
from mcl_jax.data.records import Corpus, Record, Target, split_of

PACKAGE, CONTENTS = "wordnet-base", "usr/share/wordnet"
PARTS = ("noun", "verb")


class Sense(NamedTuple):
    """The most frequent sense of a word.

    Attributes:
      place: byte offset of its line in data.noun or data.verb.
      tagged: number of senses of the word that WordNet's own corpus contains; the others are rare.
    """

    place: int
    tagged: int


def read_definitions(cache_dir: Path | str, wordnet_dir: Path | str | None = None) -> Corpus:
    """Reads the words that WordNet's corpus contains both as a noun and as a verb: 1,368.

    Args:
      cache_dir: folder for the package.
      wordnet_dir: folder with index.noun, data.noun, index.verb and data.verb; None fetches the package.
    Returns:
      Records with the word as their source and two targets, of the modes "noun" and "verb".
    Raises:
      RuntimeError: if the package cannot be fetched; gives the commands to get it.
      FileNotFoundError: if a file is missing.
    """
    folder = Path(wordnet_dir or fetch_package(PACKAGE, cache_dir, CONTENTS, "--wordnet-dir"))
    needed = [f"{kind}.{part}" for part in PARTS for kind in ("index", "data")]
    if missing := [name for name in needed if not (folder / name).is_file()]:
        raise FileNotFoundError(f"--wordnet-dir must hold {', '.join(needed)}, but {folder} lacks {', '.join(missing)}")
    senses = {part: _senses(folder / f"index.{part}") for part in PARTS}
    data = {part: (folder / f"data.{part}").read_bytes() for part in PARTS}
    words = [word for word in senses["noun"] if all(senses[part].get(word, Sense(0, 0)).tagged for part in PARTS)]
    records = [
        Record(
            word,
            word,
            tuple(Target(_definition(data[part], senses[part][word].place), part) for part in PARTS),
            split=split_of(f"definitions {word}"),
        )
        for word in words
    ]
    return Corpus("definitions", tuple(records))


def _senses(index: Path) -> dict[str, Sense]:
    """Reads the words of letters only: lines "word part senses pointers [pointer ...] senses tagged place ..."."""
    lines = (line.split() for line in index.read_text(encoding="utf-8").splitlines() if not line.startswith(" "))
    fields = ((line[0], line[4 + int(line[3]) :]) for line in lines)
    return {word: Sense(int(rest[2]), int(rest[1])) for word, rest in fields if word.isalpha()}


def _definition(data: bytes, place: int) -> str:
    """Returns the text between "| " and the first example, which is in quotation marks."""
    line = data[place : data.index(b"\n", place)].decode()
    return line.partition("| ")[2].partition('"')[0].strip(" ;:")
