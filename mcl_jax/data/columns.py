"""Rows of a table in any layout as one-to-many data: which column holds the source, the targets, their mode, the split.

    {"question": "Who?", "answers": ["A", "B"], "kind": "name"}     source="question", targets="answers", mode="kind"
    {"en": "a cat", "fr": "un chat", "es": "un gato"}               source="en", targets=("fr", "es")
    {"q": "Who?", "a": {"text": ["A", "B"], "start": [3, 7]}}       source="q", targets="a.text"

A column of targets holds a text or a list of texts. Several columns of targets name the modes, unless there is a column
of modes, which holds a name (or a number) for the row, or a list with one for each target. Rows with the same source
are one record.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mcl_jax.console import say
from mcl_jax.data.records import SPLITS, Corpus, Record, Target, describe_unknown
from mcl_jax.json_io import check_unicode

Row = Mapping[str, Any]
ABSENT = object()  # stands for the value of a column that a row does not have


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns of a table. `a.b` names the field b inside column a, if no column has that name.

    Attributes:
      source: the column of the sources.
      targets: one or more columns of right answers.
      mode: the column of the modes of the targets.
      split: the column of the splits.
    Raises:
      ValueError: if a name is empty, or a column is used twice.
    """

    source: str
    targets: tuple[str, ...]
    mode: str | None = None
    split: str | None = None

    def __post_init__(self):
        targets = (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)
        object.__setattr__(self, "targets", targets)
        twice = [name for name, times in collections.Counter(self.names).items() if times > 1]
        if not targets or not all(self.names) or twice:
            given = f"source={self.source!r}, targets={targets!r}, mode={self.mode!r} and split={self.split!r}"
            raise ValueError(f"source, targets, mode and split must be different columns, got {given}")

    @property
    def names(self) -> tuple[str, ...]:
        """All columns."""
        return tuple(name for name in (self.source, *self.targets, self.mode, self.split) if name is not None)

    def check(self, known: Sequence[str]) -> None:
        """Raises a ValueError if a table with these columns lacks one, or has one twice; names the nearest."""
        for name in self.names:
            found = name if name in known else name.partition(".")[0]
            if found not in known:
                raise ValueError(f"a column {describe_unknown(name, known)}")
            if list(known).count(found) > 1:
                raise ValueError(f"the names of its columns must differ, got {list(known)}")

    def source_of(self, row: Row) -> str:
        """Returns the source of a row.

        Raises:
          ValueError: if it is missing or no text.
        """
        value = value_in(row, self.source)
        if value is ABSENT:
            raise ValueError(f"the column of the source {describe_unknown(self.source, row)}")
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"column {self.source!r} must hold a text that is not empty, got {_short(value)}")
        return check_unicode(value, f"column {self.source!r}")

    def targets_of(self, row: Row) -> list[Target]:
        """Returns the targets of a row; empty texts are none.

        Raises:
          ValueError: if there are none, or they or their modes have a wrong type.
        """
        values = {name: value_in(row, name) for name in self.targets}
        if all(value is ABSENT for value in values.values()):
            raise ValueError(f"a column of targets {describe_unknown(self.targets[0], row)}")
        pairs = [(name, text) for name, value in values.items() for text in _texts(value, name)]
        modes = self._modes(row, [name for name, _ in pairs])
        targets = [Target(text, mode) for (_, text), mode in zip(pairs, modes, strict=True) if text.strip()]
        if not targets:
            raise ValueError(f"the row has no answer: {', '.join(map(repr, self.targets))} must hold at least one text")
        return targets

    def _modes(self, row: Row, columns: list[str]) -> list[str | None]:
        """Returns the mode of each target, given the columns that they stand in."""
        if self.mode is None:
            return columns if len(self.targets) > 1 else [None] * len(columns)
        value = value_in(row, self.mode)
        if not isinstance(value, (list, tuple)):
            return [_mode(value, self.mode)] * len(columns)
        if len(value) != len(columns):
            raise ValueError(
                f"column {self.mode!r} must hold one mode, or one for each of {len(columns)} targets, got {len(value)}"
            )
        return [_mode(one, self.mode) for one in value]


def value_in(row: Row, name: str) -> Any:
    """Returns the value of a column, or of the field b of column a for "a.b"; `ABSENT` if there is none.

    A field of a list of objects is the list of its values.
    """
    if name in row:
        return row[name]
    head, _, rest = name.partition(".")
    inner = row.get(head) if rest else None
    if isinstance(inner, Mapping):
        return value_in(inner, rest)
    if isinstance(inner, list):
        values = [value_in(one, rest) if isinstance(one, Mapping) else ABSENT for one in inner]
        return ABSENT if ABSENT in values else values
    return None if rest and head in row and inner is None else ABSENT


def _texts(value: Any, column: str) -> list[str]:
    """Returns the texts of a cell; a missing one is empty."""
    if value is ABSENT:
        return []
    texts = ["" if one is None else one for one in (value if isinstance(value, (list, tuple)) else [value])]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"column {column!r} must hold a text or a list of texts, got {_short(value)}")
        check_unicode(text, f"column {column!r}")
    return texts


def _mode(value: Any, column: str) -> str | None:
    if value is ABSENT or value is None or value == "":
        return None
    if not isinstance(value, (str, int)):
        raise ValueError(f"column {column!r} must hold the name of a mode, got {_short(value)}")
    return check_unicode(str(value), f"column {column!r}")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:80]} …"


class Splits:
    """The splits of a table by the names that they have there.

    Args:
      given: the name in the table of each of `SPLITS` that is wanted, such as {"validation": "dev"}; the rest of the
        table is left out. None takes the splits that are named as in `SPLITS`, and refuses others.
    Raises:
      ValueError: if a key is none of `SPLITS`, or two have the same name.
    """

    def __init__(self, given: Mapping[str, str] | None):
        for split in given or ():
            if split not in SPLITS:
                raise ValueError(f"splits: a split {describe_unknown(split, SPLITS)}")
        if given and len(set(given.values())) < len(given):
            raise ValueError(f"splits: the names of splits must differ, got {dict(given)}")
        self.given = bool(given)
        self.names = dict(given or zip(SPLITS, SPLITS, strict=True))
        self._found: set[str] = set()

    def of(self, value: Any, column: str) -> str | None:
        """Returns the split that a cell names; None if it is not wanted.

        Raises:
          ValueError: if the cell names no split.
        """
        if not isinstance(value, str) or not (self.given or value in SPLITS):
            got = "nothing" if value is ABSENT else _short(value)
            raise ValueError(
                f"column {column!r} must hold the name of a split, one of {list(SPLITS)}, got {got}; for other names, "
                "say which is which (splits)"
            )
        self._found.add(value)
        return next((split for split, name in self.names.items() if name == value), None)

    def check(self, known: Iterable[str] | None = None) -> None:
        """Raises a ValueError if a wanted name is not among those of the table; by default, those that `of` saw."""
        known = sorted(self._found if known is None else known)
        for name in self.names.values() if self.given else ():
            if name not in known:
                raise ValueError(f"the name of a split {describe_unknown(name, known)}")


def corpus_of_rows(
    name: str,
    rows: Iterable[tuple[str, str, Row]],
    columns: Columns,
    splits: Splits | None = None,
    left_out: Sequence[tuple[str, str]] = (),
) -> Corpus:
    """Makes a corpus of the rows of a table. Records are in the order of the rows with their sources.

    Args:
      name: name of the corpus.
      rows: (place of the row for messages, its split, the row).
      columns: what is where.
      splits: names of the splits in the column `columns.split`, which then decides instead of the split in `rows`.
      left_out: what else became no record; see `Corpus`.
    Returns:
      The corpus. A line on the console counts test sources that are in the training split, too.
    Raises:
      ValueError: if a row is wrong; names its place. If there are no rows, or a column or a split is in none of them.
    """
    splits = splits or Splits(None)
    found: dict[tuple[str, str], tuple[int, dict[Target, None]]] = {}
    met: dict[str, None] = {}  # the columns of all rows, in order
    for number, (place, split, row) in enumerate(rows):
        met |= dict.fromkeys(row)
        try:
            if columns.split is not None and (split := splits.of(value_in(row, columns.split), columns.split)) is None:
                continue
            source, targets = columns.source_of(row), columns.targets_of(row)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        found.setdefault((split, source), (number, {}))[1].update(dict.fromkeys(targets))
    try:
        _check_met(columns, splits, [*met], found)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    _warn_of_shared(name, found)
    records = [
        Record(f"{number:09}", source, tuple(targets), split=split)
        for (split, source), (number, targets) in found.items()
    ]
    return Corpus(name, tuple(records), left_out=tuple(left_out))


def _check_met(columns: Columns, splits: Splits, met: Sequence[str], found: Mapping[Any, Any]) -> None:
    if met:
        columns.check(met)
    if columns.split is not None:
        splits.check()
    if not found:
        raise ValueError("a table needs rows, got none")


def _warn_of_shared(name: str, found: Iterable[tuple[str, str]]) -> None:
    sources = {split: {source for at, source in found if at == split} for split in SPLITS}
    for split in ("validation", "test"):
        if shared := len(sources[split] & sources["train"]):
            say(
                f"Warning: corpus {name!r}: {shared} of {len(sources[split])} {split} sources are in the training "
                "split, too."
            )
