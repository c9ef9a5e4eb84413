"""The options --columns and --splits: what the columns and the splits of a table are."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Self

from mcl_jax.data.columns import Columns, Splits
from mcl_jax.data.records import SPLITS, describe_unknown

COLUMNS = ("source", "targets", "mode", "split")


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the columns and the splits of a table are.

    Attributes:
      columns: the columns.
      splits: names of the splits in the table by ours; None if they are the same.
    """

    columns: Columns
    splits: Mapping[str, str] | None = None

    @classmethod
    def parse(cls, columns: Sequence[str], splits: Sequence[str] = ()) -> Self:
        """Parses words such as source=question and test=dev.

        Raises:
          ValueError: if a word is not of this form or occurs twice, or there are no source or targets.
        """
        given = _pairs("--columns", columns, COLUMNS)
        if missing := [name for name in ("source", "targets") if name not in given]:
            raise ValueError(f"--columns needs {' and '.join(f'{name}=NAME' for name in missing)}, got {list(columns)}")
        targets = tuple(given["targets"].split(","))
        names = _pairs("--splits", splits, SPLITS) or None
        Splits(names)
        try:
            return cls(Columns(given["source"], targets, given.get("mode"), given.get("split")), names)
        except ValueError as error:
            raise ValueError(f"--columns: {error}") from None


def _pairs(option: str, words: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not value:
            raise ValueError(f"{option} needs words like {known[0]}=NAME, got {word!r}")
        if name not in known:
            raise ValueError(f"{option}: the word before = {describe_unknown(name, known)}")
        if name in pairs:
            raise ValueError(f"{option} must have {name}=NAME once, got {list(words)}")
        pairs[name] = value
    return pairs
