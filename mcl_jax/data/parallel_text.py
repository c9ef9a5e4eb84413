"""Parallel text: plain files whose line n answers line n of the source.

    train.en  train.de                     a source and its right answer a line
    train.en  train.de.0  train.de.1       several right answers: targets of one record
    valid.en  valid.de
    test.en   test.de     test.de.0 …      the first is the target, the others further references, as the ten of the
                                           500 sentences of newstest2014 (Ott et al., arXiv 1803.00047)

A split that is not there, or holds blank lines alone, is taken out of the training split by a hash of its ids. Lines
with one source are in one split then.
"""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from mcl_jax.data.records import SPLITS, Corpus, Record, Target, split_of

STEMS = {"train": "train", "validation": "valid", "test": "test"}
Row = tuple[str, tuple[str, ...]]  # a source and its answers


def read_parallel(
    folder: Path | str, source: str = "en", target: str = "de", validation: float = 0.05, test: float = 0.05
) -> Corpus:
    """The corpus in a folder of parallel files, UTF-8, see the top of this file.

    Args:
      folder: holds train.SOURCE and train.TARGET; valid and test likewise, if they are there.
      source, target: how the names of the files end.
      validation, test: expected fractions of the lines of train, for a split without files.
    Returns:
      The corpus, named as the folder. Lines where source or answer is blank are left out, with a warning that counts
      them; an answer that is exactly another one of its line counts once.
    Raises:
      FileNotFoundError: for a missing file; names it.
      ValueError: for files of different lengths, or a line that is not UTF-8; names files and line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"data {str(folder)!r}: no such folder; needed train.{source} and train.{target} in it")
    files = {split: _files_of(folder, split, source, target) for split in SPLITS}  # all are there before any is read
    rows = {split: _read_split(*of) for split, of in files.items() if of is not None}
    return corpus_of(folder.resolve().name, rows, validation, test)


def _files_of(folder: Path, split: str, source: str, target: str) -> tuple[Path, list[Path]] | None:
    """The files of a split, of sources and of answers; None if it has none, unless it is the training split."""
    file, answers = folder / f"{STEMS[split]}.{source}", _answer_files(folder, f"{STEMS[split]}.{target}")
    if split != "train" and not file.exists() and not answers:
        return None
    if not file.exists() or not answers:
        missing = f"{STEMS[split]}.{target} or {STEMS[split]}.{target}.0" if file.exists() else file.name
        raise FileNotFoundError(
            f"data {str(folder)!r}: no {missing}; it has {sorted(p.name for p in folder.iterdir())}"
        )
    return file, answers


def _read_split(file: Path, answers: list[Path]) -> list[Row]:
    """Rows of a split."""
    sources, texts = _lines(file), [_lines(path) for path in answers]
    for path, lines in zip(answers, texts, strict=True):
        if len(lines) != len(sources):
            raise ValueError(f"{path} has {len(lines)} lines, {file} has {len(sources)}; needed one for each")
    return list(zip(sources, zip(*texts, strict=True), strict=True))


def _answer_files(folder: Path, name: str) -> list[Path]:
    """FOLDER/name, then FOLDER/name.0, name.1, … as far as they are there."""
    numbers = {path: re.fullmatch(rf"{re.escape(name)}(?:\.(\d+))?", path.name) for path in folder.iterdir()}
    return sorted((path for path, match in numbers.items() if match), key=lambda path: int(numbers[path][1] or -1))


def _lines(path: Path) -> list[str]:
    """The lines, split at newlines only, without space around them."""
    lines = []
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                lines.append(raw.decode("utf-8-sig" if number == 1 else "utf-8").strip())
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: needed UTF-8, got {error}") from None
    return lines


def corpus_of(name: str, rows: dict[str, Sequence[Row]], validation: float, test: float) -> Corpus:
    """Records named after split and line, so that their order is that of the lines."""
    fractions = [0.0 if _has_pair(rows.get("validation")) else validation, 0.0 if _has_pair(rows.get("test")) else test]
    records, pairs, dropped, first_with = [], 0, 0, {}
    for split in SPLITS:
        for number, (source, answers) in enumerate(rows.get(split, ()), 1):
            kept = [answer for answer in answers if source and answer]
            pairs, dropped = pairs + len(answers), dropped + len(answers) - len(kept)
            if not kept:
                continue
            key, targets = f"{split}-{number:09}", tuple(Target(answer) for answer in dict.fromkeys(kept))
            trained = 1 if split == "test" else len(targets)
            place = split
            if split == "train" and any(fractions):  # lines with one source go where the first of them goes
                place = split_of(first_with.setdefault(source, key), *fractions)
            records.append(Record(key, source, targets[:trained], targets[trained:], place))
    if dropped:
        warnings.warn(f"corpus {name!r}: dropped {dropped} of {pairs} pairs, where a line is blank", stacklevel=3)
    return Corpus(name, tuple(records))


def _has_pair(rows: Sequence[Row] | None) -> bool:
    return any(source and any(answers) for source, answers in rows or ())
