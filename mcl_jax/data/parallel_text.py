"""Parallel text: plain files in which line n of a target file answers line n of the source file.

    train.en  train.de                     one source and its right answer per line
    train.en  train.de.0  train.de.1       several right answers: targets of one record
    valid.en  valid.de
    test.en   test.de     test.de.0 …      the first file is the target, the others hold further references, like the
                                           ten for 500 sentences of newstest2014 (Ott et al., arXiv 1803.00047)

A split that is missing or has only blank lines is taken from the training split, by a hash of the ids. Lines with the
same source are then in the same split.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from mcl_jax.console import say
from mcl_jax.data.records import SPLITS, Corpus, Record, Target, split_of

STEMS = {"train": "train", "validation": "valid", "test": "test"}
Row = tuple[str, tuple[str, ...]]  # a source and its answers


def read_parallel(
    folder: Path | str, source: str = "en", target: str = "de", validation: float = 0.05, test: float = 0.05
) -> Corpus:
    """Reads a corpus from a folder of parallel files (UTF-8, see the top of this file).

    Args:
      folder: folder with train.SOURCE and train.TARGET, and optionally valid and test files.
      source, target: endings of the file names.
      validation, test: expected fractions of the training lines, for a split without files.
    Returns:
      The corpus, named after the folder. Lines with a blank source or answer are left out, and a line on the console
      counts them; identical answers of a line count once.
    Raises:
      FileNotFoundError: if a file is missing; names it.
      ValueError: if files have different lengths, or a line is not UTF-8; names files and line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} must be a folder with train.{source} and train.{target}, but there is no such folder"
        )
    files = {split: _files_of(folder, split, source, target) for split in SPLITS}  # checks all before reading any
    rows = {split: _read_split(*paths) for split, paths in files.items() if paths is not None}
    return corpus_of(folder.resolve().name, rows, validation, test)


def _files_of(folder: Path, split: str, source: str, target: str) -> tuple[Path, list[Path]] | None:
    """Returns the source file and the answer files of a split; None if it has neither and is not for training."""
    file, answers = folder / f"{STEMS[split]}.{source}", _answer_files(folder, f"{STEMS[split]}.{target}")
    if split != "train" and not file.exists() and not answers:
        return None
    if not file.exists() or not answers:
        missing = f"{STEMS[split]}.{target} or {STEMS[split]}.{target}.0" if file.exists() else file.name
        found = sorted(p.name for p in folder.iterdir())
        raise FileNotFoundError(f"{folder}, a folder of parallel text, must hold {missing}, got {found}")
    return file, answers


def _read_split(file: Path, answers: list[Path]) -> list[Row]:
    """Reads the rows of a split."""
    sources, texts = _lines(file), [_lines(path) for path in answers]
    for path, lines in zip(answers, texts, strict=True):
        if len(lines) != len(sources):
            raise ValueError(
                f"{path} must have as many lines as {file}, got {len(lines)} lines, but {file.name} has {len(sources)}"
            )
    return list(zip(sources, zip(*texts, strict=True), strict=True))


def _answer_files(folder: Path, name: str) -> list[Path]:
    """Returns FOLDER/name, FOLDER/name.0, FOLDER/name.1, …, those that exist."""
    numbers = {path: re.fullmatch(rf"{re.escape(name)}(?:\.(\d+))?", path.name) for path in folder.iterdir()}
    return sorted((path for path, match in numbers.items() if match), key=lambda path: int(numbers[path][1] or -1))


def _lines(path: Path) -> list[str]:
    """Reads the stripped lines of a file; splits only at newlines."""
    lines = []
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                lines.append(raw.decode("utf-8-sig" if number == 1 else "utf-8").strip())
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: must be UTF-8, got {error}") from None
    return lines


def corpus_of(name: str, rows: dict[str, Sequence[Row]], validation: float, test: float) -> Corpus:
    """Makes a corpus whose ids are split and line number, so that the records keep the order of the lines.

    Args:
      name: name of the corpus.
      rows: (source, answers) of each line, by split.
      validation, test: expected fractions of the training lines, for a split without rows.
    """
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
            if split == "train" and any(fractions):  # lines with the same source go where the first one goes
                place = split_of(first_with.setdefault(source, key), *fractions)
            records.append(Record(key, source, targets[:trained], targets[trained:], place))
    if dropped:
        say(f"Warning: corpus {name!r}: dropped {dropped} of {pairs} pairs because a line is blank.")
    return Corpus(name, tuple(records))


def _has_pair(rows: Sequence[Row] | None) -> bool:
    return any(source and any(answers) for source, answers in rows or ())
