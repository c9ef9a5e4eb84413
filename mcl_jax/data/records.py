"""One-to-many text: a source, a picture or a clip, several right targets, and which split it belongs to.

A `Corpus` is what every loader gives (a TFDS builder, a JSON-lines file, a folder) and what batches are made of.
Its records are in the order of their ids, wherever they come from: the same text gives the same batches.
"""

import dataclasses
import difflib
import hashlib
import itertools
import warnings
from collections.abc import Iterable
from typing import Any

from mcl_jax.data.media import Media
from mcl_jax.json_io import check_unicode

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
      source: the text that the model is given; may be empty if there is a picture or clip.
      targets: right answers, at least one; training draws one of them in each epoch.
      further_references: right answers that are for evaluation only, never trained on.
      split: one of `SPLITS`.
      media: the picture or clip that the targets caption, if any.
    """

    id: str
    source: str
    targets: tuple[Target, ...]
    further_references: tuple[Target, ...] = ()
    split: str = "train"
    media: Media | None = None

    def __post_init__(self):
        if self.split not in SPLITS:
            raise ValueError(f"record {self.id!r}: split {describe_unknown(self.split, SPLITS)}")
        if not self.source.strip() and self.media is None:
            raise ValueError(f"record {self.id!r}: the source is empty, and there is no picture or clip")
        if not self.targets:
            raise ValueError(f"record {self.id!r}: needs at least one target, got none")
        if any(not target.text.strip() for target in self.references):
            raise ValueError(f"record {self.id!r}: a target or reference is empty")
        check_unicode(self.id, f"the id {self.id!r} of a record")
        check_unicode(self.source, f"record {self.id!r}: the source")
        for target in self.references:
            check_unicode(target.text, f"record {self.id!r}: a target or reference")
            check_unicode(target.mode or "", f"record {self.id!r}: a mode")

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
      left_out: what the data holds but `records` does not, such as broken files: pairs of a name and the reason.
      made_of: a checksum of the names, sizes and times of the files that it was read from; "" if it is not known.
    Raises:
      ValueError: for an id that occurs twice, or no records at all.
    """

    name: str
    records: tuple[Record, ...] = dataclasses.field(repr=False)
    left_out: tuple[tuple[str, str], ...] = dataclasses.field(default=(), repr=False)
    made_of: str = dataclasses.field(default="", repr=False, compare=False)

    def __post_init__(self):
        records = tuple(sorted(self.records, key=lambda record: record.id))
        twice = [a.id for a, b in itertools.pairwise(records) if a.id == b.id]
        if twice or not records:
            nothing = "it has no records" + (f"; left out {describe_left_out(self.left_out)}" if self.left_out else "")
            problem = f"the id {twice[0]!r} occurs twice" if twice else nothing
            raise ValueError(f"corpus {self.name!r}: {problem}")
        object.__setattr__(self, "records", records)
        object.__setattr__(self, "name", printable(self.name))

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
            hint = "; `corpus.with_validation()` takes some of the training split" if name == "validation" else ""
            raise ValueError(f"corpus {self.name!r} has no records in {name!r}; it has {self.counts()}{hint}")
        return records

    def with_validation(self, fraction: float = 0.05) -> "Corpus":
        """The same if it has a validation split; otherwise some of the training split is for validation.

        A hash of a record's source decides (of its id, if it has a picture or clip), so that records with one source
        stay together, and the same records are chosen on every machine.

        Args:
          fraction: expected part of the training split; at least one source, and never all of them.
        Returns:
          The corpus, unchanged if there is not more than one source to train on.
        """
        key_of = lambda record: record.source if record.media is None else record.id
        keys = {key_of(record) for record in self.records if record.split == "train"}
        if self.counts()["validation"] or len(keys) < 2:
            return self
        places = {key: _place(f"validation {key}") for key in keys}
        chosen = {key for key, place in places.items() if place < fraction}
        if not chosen or chosen == keys:
            chosen = {min(keys, key=places.get)}
        move = lambda record: record.split == "train" and key_of(record) in chosen
        records = (dataclasses.replace(r, split="validation") if move(r) else r for r in self.records)
        return dataclasses.replace(self, records=tuple(records))

    def with_modes(self, *modes: str) -> "Corpus":
        """The same with the targets and references of these modes alone; records that lack one of them are left out.

        Args:
          *modes: such as "en", "fr"; each record then has the modes in this order.
        Raises:
          ValueError: for a mode that no record has.
        """
        if modes and not self.modes:
            raise ValueError(f"corpus {self.name!r}: its targets name no modes, needed {', '.join(modes)}")
        if unknown := [mode for mode in modes if mode not in self.modes]:
            raise ValueError(f"corpus {self.name!r}: a mode {describe_unknown(unknown[0], self.modes)}")
        chosen = lambda targets: tuple(target for mode in modes for target in targets if target.mode == mode)
        records, left_out = [], list(self.left_out)
        for record in self.records:
            targets = chosen(record.targets)
            if missing := sorted(set(modes) - {target.mode for target in targets}):
                left_out.append((record.id, f"no target in {', '.join(missing)}"))
                continue
            further = chosen(record.further_references)
            records.append(dataclasses.replace(record, targets=targets, further_references=further))
        return dataclasses.replace(self, records=tuple(records), left_out=tuple(left_out))

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
    place = _place(key)
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def _place(key: str) -> float:
    """A pseudo-random number in [0, 1), the same on every machine and in every version."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def warn_of_left_out(corpus: Corpus) -> None:
    """A warning that counts and names what a corpus leaves out, if there is any."""
    if corpus.left_out:
        warnings.warn(summary_of_left_out(corpus), stacklevel=3)


def summary_of_left_out(corpus: Corpus) -> str:
    """A line that counts and names what a corpus leaves out."""
    count, names = len(corpus.left_out), describe_left_out(corpus.left_out)
    return f"corpus {corpus.name!r}: left out {count}, kept {len(corpus.records)}; {names}"


def describe_left_out(left_out: Iterable[tuple[str, str]], most: int = 5) -> str:
    """ "REASON: NAME, NAME and 3 more; REASON: ...", `most` names for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out:
        by_reason.setdefault(reason, []).append(name)
    some = lambda names: ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
    return "; ".join(f"{reason}: {some(names)}" for reason, names in by_reason.items())


def printable(name: str) -> str:
    """A file's name that anything can print: bytes that are not UTF-8 are written as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def describe_unknown(value: Any, known: Iterable[str]) -> str:
    """ "must be one of [...], got VALUE; did you mean NEAREST?", the end of a message about a name."""
    known = list(known)
    near = difflib.get_close_matches(str(value), known, n=1)
    return f"must be one of {known}, got {value!r}" + (f"; did you mean {near[0]!r}?" if near else "")
