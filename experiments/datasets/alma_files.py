"""Parallel text in the files of ALMA, which the paper's authors use, with the further references of newstest2014.

    deen/train.de-en.json             JSON lines, {"translation": {"de": "...", "en": "..."}}, for both directions
    deen/valid.de-en.json
    deen/test.en-de.json              for one direction
    wmt14-en-de.extra_refs.tok        S-0<TAB>source, T-0<TAB>translation, R1-0<TAB>reference, R2-0<TAB>reference ...

The folder is named after the language that is not English, and English. A file NAME.extra_refs.tok or NAME.extra_refs,
anywhere in the folder, is the test split if there is one; as in the authors' code, its answers are the lines R, without
T, and texts stay as they are, with spaces between words and punctuation.
"""

import collections
import re
from collections.abc import Iterator
from pathlib import Path

from mcl_jax.data.parallel_text import Row, corpus_of
from mcl_jax.data.records import Corpus
from mcl_jax.json_io import parse, read_text

LINE = re.compile(r"(S|T|R\d{1,9})-(\d{1,9})\t(.*)")
ENDINGS = (".extra_refs.tok", ".extra_refs")


def found_in(folder: Path | str, source: str, target: str) -> bool:
    """Whether a folder has the training file of a pair of languages."""
    return _file(Path(folder), "train", source, target).is_file()


def read_alma(
    folder: Path | str, source: str = "en", target: str = "de", validation: float = 0.05, test: float = 0.05
) -> Corpus:
    """Reads a corpus from a folder with these files.

    Args:
      folder: folder with deen/train.de-en.json, and optionally the others.
      source, target: the direction; one of them is "en".
      validation, test: expected fractions of the training pairs, for a split without a file.
    Returns:
      The corpus, named after the folder.
    Raises:
      FileNotFoundError: if there is no training file.
      ValueError: if a line is wrong, or there are several files of references; names them.
    """
    folder = Path(folder)
    rows = {"train": list(_pairs(_file(folder, "train", source, target), source, target))}
    if (valid := _file(folder, "valid", source, target)).is_file():
        rows["validation"] = list(_pairs(valid, source, target))
    further = sorted(path for path in folder.rglob("*.extra_refs*") if path.name.endswith(ENDINGS))
    if len(further) > 1:
        raise ValueError(f"{folder} must hold one file of further references, got {[path.name for path in further]}")
    one_way = valid.with_name(f"test.{source}-{target}.json")
    if further:
        rows["test"] = _with_references(further[0])
    elif one_way.is_file():
        rows["test"] = list(_pairs(one_way, source, target))
    return corpus_of(folder.resolve().name, rows, validation, test)


def _file(folder: Path, stem: str, source: str, target: str) -> Path:
    """Returns the path of a file for both directions."""
    other = target if source == "en" else source
    return folder / f"{other}en" / f"{stem}.{other}-en.json"


def _pairs(path: Path, source: str, target: str) -> Iterator[Row]:
    """Yields the pairs of a file of JSON lines."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            pair = parse(line)["translation"]
            texts = pair[source], pair[target]
        except (ValueError, KeyError, TypeError):
            texts = (None,)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f'{path}, line {number}, must be like {{"translation": {{"{source}": "...", "{target}": "..."}}}}, '
                f"got {line[:80]!r}"
            )
        yield texts[0].strip(), (texts[1].strip(),)


def _with_references(path: Path) -> list[Row]:
    """Returns the sources of a file of further references, each with its lines R."""
    sources, answers = {}, collections.defaultdict(list)
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        if (match := LINE.fullmatch(line.rstrip("\r"))) is None:
            raise ValueError(f"{path}, line {number}, must be like 'R1-0<TAB>text', got {line[:80]!r}")
        kind, index, text = match[1], int(match[2]), match[3].strip()
        if kind == "S":
            sources[index] = text
        elif kind != "T":
            answers[index].append(text)
    if lonely := sorted(sources.keys() ^ answers.keys()):
        raise ValueError(f"{path} must have a line S and lines R for each number, but {lonely[0]} lacks one of them")
    return [(sources[index], tuple(answers[index])) for index in sorted(sources)]
