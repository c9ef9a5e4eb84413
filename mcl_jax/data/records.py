"""One-to-many text: a source and several right targets, and which split it belongs to.

A `Corpus` is what every loader gives (the TFDS builder of the verses, a JSON-lines file) and what batches are made of.
Its records are in the order of their ids, wherever they come from: the same text gives the same batches.
"""

import dataclasses
import difflib
import hashlib
import itertools
from collections.abc import Iterable
from typing import Any

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Target:
    """A right answer, and the name of the mode it belongs to if that is known (such as "es")."""

    text: str
    mode: str | None = None


@dataclasses.dataclass(frozen=True)
class Record:
    """A source with its right answers.

    Attributes:
      id: unique in its corpus.
      source: what the model is given.
      targets: right answers, at least one; training draws one of them in each epoch.
      further_references: right answers that are for evaluation only, never trained on.
      split: one of `SPLITS`.
    """

    id: str
    source: str
    targets: tuple[Target, ...]
    further_references: tuple[Target, ...] = ()
    split: str = "train"

    def __post_init__(self):
        if self.split not in SPLITS:
            raise ValueError(f"record {self.id!r}: split {describe_unknown(self.split, SPLITS)}")
        if not self.source.strip():
            raise ValueError(f"record {self.id!r}: the source is empty")
        if not self.targets:
            raise ValueError(f"record {self.id!r}: needs at least one target, got none")
        if any(not target.text.strip() for target in self.references):
            raise ValueError(f"record {self.id!r}: a target or reference is empty")

    @property
    def references(self) -> tuple[Target, ...]:
        """Every right answer, with its mode: what held-out answers are compared with."""
        return self.targets + self.further_references


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Records of all splits, sorted by id.

    Attributes:
      name: what messages call it.
      records: in any order when given, sorted by id afterwards.
    Raises:
      ValueError: for an id that occurs twice, or no records at all.
    """

    name: str
    records: tuple[Record, ...] = dataclasses.field(repr=False)

    def __post_init__(self):
        records = tuple(sorted(self.records, key=lambda record: record.id))
        twice = [a.id for a, b in itertools.pairwise(records) if a.id == b.id]
        if twice or not records:
            problem = f"the id {twice[0]!r} occurs twice" if twice else "it has no records"
            raise ValueError(f"corpus {self.name!r}: {problem}")
        object.__setattr__(self, "records", records)

    @property
    def modes(self) -> tuple[str, ...]:
        """Names of the modes of all splits, sorted; empty if none are named."""
        targets = (target for record in self.records for target in record.references)
        return tuple(sorted({target.mode for target in targets if target.mode is not None}))

    def split(self, name: str) -> tuple[Record, ...]:
        """The records of one split, in the order of their ids.

        Args:
          name: one of `SPLITS`.
        Raises:
          ValueError: for another name, or if the split is empty; says how many records each split has.
        """
        if name not in SPLITS:
            raise ValueError(f"split {describe_unknown(name, SPLITS)}")
        records = tuple(record for record in self.records if record.split == name)
        if not records:
            raise ValueError(f"corpus {self.name!r} has no records in {name!r}; it has {self.counts()}")
        return records

    def counts(self) -> dict[str, int]:
        """Number of records in each split."""
        return {name: sum(record.split == name for record in self.records) for name in SPLITS}


def split_of(key: str, validation: float = 0.05, test: float = 0.05) -> str:
    """The split that a text falls into: pseudo-random, but the same on every machine and in every version.

    Args:
      key: what must stay together, such as a chapter's name.
      validation, test: expected fractions of keys.
    Returns:
      One of `SPLITS`.
    Raises:
      ValueError: unless both fractions are at least 0 and leave something to train on.
    """
    if min(validation, test) < 0 or validation + test >= 1:
        raise ValueError(f"need fractions ≥ 0 with a sum below 1, got validation={validation} and test={test}")
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64  # uniform in [0, 1)
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def describe_unknown(value: Any, known: Iterable[str]) -> str:
    """ "must be one of [...], got VALUE; did you mean NEAREST?", the end of a message about a name."""
    known = list(known)
    near = difflib.get_close_matches(str(value), known, n=1)
    return f"must be one of {known}, got {value!r}" + (f"; did you mean {near[0]!r}?" if near else "")
