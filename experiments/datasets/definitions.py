"""Words with their definitions from WordNet, as a noun, as a verb, or both.

`read_definitions` takes words that are both: one source, two answers, and the source, the word alone, does not tell
which of the two is asked for. `read_words` adds words that are one of the two, which their endings tell in part (-ness
and -ity, -ize and -ify), so that a model may learn from the word how likely each answer is. WordNet 3.0 is fetched as
the Debian package wordnet-base (6.5 MB; WordNet's own licence, which permits any use), or read from a folder.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.datasets.debian import fetch_package
from mcl_jax.data.records import Corpus, Record, Target, split_of
from mcl_jax.json_io import read_text

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
    wordnet = _Wordnet.read(cache_dir, wordnet_dir)
    return Corpus("definitions", tuple(wordnet.record(word, PARTS) for word in wordnet.both))


def read_words(cache_dir: Path | str, wordnet_dir: Path | str | None = None) -> Corpus:
    """Reads the 1,368 words of `read_definitions`, half as many that are nouns only, and half as many verbs only.

    A word that is both has two targets, and another one has one. The two modes are equally frequent. The best guess of
    the mode of an answer from its word is right for 1,368 answers of 4,104 and by chance for the others: 67 %.

    Arguments and errors are as in `read_definitions`.
    """
    wordnet = _Wordnet.read(cache_dir, wordnet_dir)
    parts = dict.fromkeys(wordnet.both, PARTS)
    half = len(parts) // 2
    for part in PARTS:
        only = [word for word in wordnet.words(part) if word not in parts]
        parts |= dict.fromkeys(sorted(only, key=lambda word: zlib.crc32(word.encode()))[:half], (part,))
    return Corpus("words", tuple(wordnet.record(word, parts[word]) for word in sorted(parts)))


class _Wordnet(NamedTuple):
    """The most frequent senses of words of letters only, and the files that have their definitions, by part."""

    senses: dict[str, dict[str, Sense]]
    data: dict[str, bytes]
    folder: Path

    @classmethod
    def read(cls, cache_dir: Path | str, wordnet_dir: Path | str | None) -> "_Wordnet":
        folder = Path(wordnet_dir or fetch_package(PACKAGE, cache_dir, CONTENTS, "--wordnet-dir"))
        needed = [f"{kind}.{part}" for part in PARTS for kind in ("index", "data")]
        if missing := [name for name in needed if not (folder / name).is_file()]:
            raise FileNotFoundError(
                f"--wordnet-dir must hold {', '.join(needed)}, but {folder} lacks {', '.join(missing)}"
            )
        senses = {part: _senses(folder / f"index.{part}") for part in PARTS}
        return cls(senses, {part: (folder / f"data.{part}").read_bytes() for part in PARTS}, folder)

    def words(self, part: str) -> list[str]:
        """Returns the words that WordNet's corpus contains as this part of speech."""
        return [word for word, sense in self.senses[part].items() if sense.tagged]

    @property
    def both(self) -> list[str]:
        """The words that it contains as a noun and as a verb."""
        verbs = set(self.words("verb"))
        return [word for word in self.words("noun") if word in verbs]

    def record(self, word: str, parts: Sequence[str]) -> Record:
        """Returns a word with its definitions as these parts of speech."""
        targets = tuple(Target(self._definition(part, self.senses[part][word].place), part) for part in parts)
        return Record(word, word, targets, split=split_of(f"definitions {word}"))

    def _definition(self, part: str, place: int) -> str:
        """Returns the text between "| " and the first example, which is in quotation marks."""
        line = self.data[part][place:].partition(b"\n")[0].decode("utf-8", "replace")
        if not line.startswith(f"{place:08d} ") or "\ufffd" in line:
            raise ValueError(
                f"{self.folder / f'data.{part}'} must have a line of a sense at byte {place}, but has none"
            )
        return line.partition("| ")[2].partition('"')[0].strip(" ;:")


def _senses(index: Path) -> dict[str, Sense]:
    """Reads the words of letters only: lines "word part senses pointers [pointer ...] senses tagged place ..."."""
    senses = {}
    for number, line in enumerate(read_text(index).splitlines(), 1):
        if line.startswith(" "):
            continue
        try:
            word, _, _, pointers, *others = line.split()
            tagged, place = map(int, others[int(pointers) + 1 : int(pointers) + 3])
        except ValueError:
            raise ValueError(f"{index}, line {number}, must be that of a word, got {line[:80]!r}") from None
        if word.isalpha():
            senses[word] = Sense(place, tagged)
    return senses
