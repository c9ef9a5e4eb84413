"""Records of one-to-many data: a source text, image or audio clip, several right targets, and the split.

Every loader (a TFDS builder, a JSON-lines file, a folder) returns a `Corpus`, and batches are made from it. Its records
are sorted by id, so the same data always gives the same batches.
"""

import dataclasses
import difflib
import hashlib
import itertools
from collections.abc import Iterable
from typing import Any

from mcl_jax.console import say
from mcl_jax.data.media import Media
from mcl_jax.json_io import check_unicode

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Target:
    """A right answer, and the name of its mode if that is known (such as "es")."""

    text: str
    mode: str | None = None


@dataclasses.dataclass(frozen=True)
class Record:
    """A source with its right answers.

    Attributes:
      id: a text that is unique in its corpus.
      source: the input text of the model; may be empty if there is an image or audio clip.
      targets: right answers, at least one; training draws one of them in each epoch.
      further_references: right answers for evaluation only.
      split: one of `SPLITS`.
      media: the image or audio clip that the targets describe, if any.
    Raises:
      ValueError: if the split is unknown, a text is empty or not valid Unicode, or there is no target.
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
            raise ValueError(f"record {self.id!r} needs a source text, an image or an audio clip, got none")
        if not self.targets:
            raise ValueError(f"record {self.id!r} needs at least one target, got none")
        if any(not target.text.strip() for target in self.references):
            raise ValueError(f"record {self.id!r}: targets and references must not be empty")
        check_unicode(self.id, f"the id {self.id!r} of a record")
        check_unicode(self.source, f"record {self.id!r}: the source")
        for target in self.references:
            check_unicode(target.text, f"record {self.id!r}: a target or reference")
            check_unicode(target.mode or "", f"record {self.id!r}: a mode")

    @property
    def references(self) -> tuple[Target, ...]:
        """All right answers, for comparison with held-out answers."""
        return self.targets + self.further_references


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Records of all splits, sorted by id.

    Attributes:
      name: name of the corpus in messages.
      records: the records, which are sorted by id.
      left_out: entries of the data that became no record, such as broken files: pairs of a name and the reason.
      made_of: checksum of the names, sizes and times of the files; "" if it is unknown.
    Raises:
      ValueError: if an id occurs twice, or there are no records.
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
        """Names of the modes in all splits, sorted; empty if the targets name none."""
        targets = (target for record in self.records for target in record.references)
        return tuple(sorted({target.mode for target in targets if target.mode is not None}))

    def split(self, name: str) -> tuple[Record, ...]:
        """Returns the records of one split, in the order of their ids.

        Args:
          name: one of `SPLITS`.
        Raises:
          ValueError: if the name is unknown, or the split is empty; says how many records each split has.
        """
        if name not in SPLITS:
            raise ValueError(f"split {describe_unknown(name, SPLITS)}")
        records = tuple(record for record in self.records if record.split == name)
        if not records:
            hint = "" if name == "train" else f"; `corpus.with_{name}()` moves some of the training split there"
            raise ValueError(f"corpus {self.name!r} has no records in {name!r}, only {self.counts()}{hint}")
        return records

    def with_validation(self, fraction: float = 0.05, seed: int = 0) -> "Corpus":
        """Moves some training records to the validation split if that is empty.

        A hash of a record's source decides (of its id, if it has an image or audio clip), so records with the same
        source stay together, and the choice is the same on every machine.

        Args:
          fraction: expected share of the training split; at least one source is moved, and never all of them.
          seed: another seed chooses other sources.
        Returns:
          The corpus; unchanged if it has a validation split or only one training source.
        """
        return self._with("validation", fraction, seed)

    def with_test(self, fraction: float = 0.05, seed: int = 0) -> "Corpus":
        """Moves some training records to the test split if that is empty; otherwise like `with_validation`."""
        return self._with("test", fraction, seed)

    def _with(self, split: str, fraction: float, seed: int) -> "Corpus":
        def key_of(record: Record) -> str:
            return record.source if record.media is None else record.id

        keys = {key_of(record) for record in self.records if record.split == "train"}
        if self.counts()[split] or len(keys) < 2:
            return self
        salt = f"{split} {seed}" if seed else split
        places = {key: _place(f"{salt} {key}") for key in keys}
        chosen = {key for key, place in places.items() if place < fraction}
        if not chosen or chosen == keys:
            chosen = {min(keys, key=places.get)}
        records = [
            dataclasses.replace(record, split=split) if record.split == "train" and key_of(record) in chosen else record
            for record in self.records
        ]
        return dataclasses.replace(self, records=tuple(records))

    def with_modes(self, *modes: str) -> "Corpus":
        """Keeps only the targets and references of these modes; records that lack a mode are left out.

        Args:
          *modes: names such as "en", "fr"; each record then has the modes in this order.
        Returns:
          The smaller corpus.
        Raises:
          ValueError: if no record has one of the modes.
        """
        if modes and not self.modes:
            raise ValueError(f"corpus {self.name!r}: the targets must name the modes {', '.join(modes)}, got no modes")
        if unknown := [mode for mode in modes if mode not in self.modes]:
            raise ValueError(f"corpus {self.name!r}: a mode {describe_unknown(unknown[0], self.modes)}")

        def chosen(targets: tuple[Target, ...]) -> tuple[Target, ...]:
            return tuple(target for mode in modes for target in targets if target.mode == mode)

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
        """Returns the number of records in each split."""
        return {name: sum(record.split == name for record in self.records) for name in SPLITS}


def split_of(key: str, validation: float = 0.05, test: float = 0.05) -> str:
    """Assigns a key to a split: pseudo-random, but the same on every machine and in every version.

    Args:
      key: a text; equal keys are in the same split, for example the name of a chapter.
      validation, test: expected fractions of the keys.
    Returns:
      One of `SPLITS`.
    Raises:
      ValueError: if a fraction is negative, or nothing is left for training.
    """
    if min(validation, test) < 0 or validation + test >= 1:
        raise ValueError(
            f"validation and test must be at least 0 with a sum below 1, got validation={validation} and test={test}"
        )
    place = _place(key)
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def _place(key: str) -> float:
    """Returns a pseudo-random number in [0, 1), the same on every machine and in every version."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def warn_of_left_out(corpus: Corpus) -> None:
    """Prints a line that counts and names the entries that a corpus leaves out, if there are any."""
    if corpus.left_out:
        say(f"Warning: {summary_of_left_out(corpus)}")


def summary_of_left_out(corpus: Corpus) -> str:
    """Returns a line that counts and names the entries that a corpus leaves out."""
    count, names = len(corpus.left_out), describe_left_out(corpus.left_out)
    return f"corpus {corpus.name!r}: left out {count}, kept {len(corpus.records)}; {names}"


def describe_left_out(left_out: Iterable[tuple[str, str]], most: int = 5) -> str:
    """Returns "REASON: NAME, NAME and 3 more; REASON: ...", with `most` names for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out:
        by_reason.setdefault(reason, []).append(name)

    def some(names: list[str]) -> str:
        return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

    return "; ".join(f"{reason}: {some(names)}" for reason, names in by_reason.items())


def printable(name: str) -> str:
    """Returns a file name that can always be printed: bytes that are not UTF-8 become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def describe_unknown(value: Any, known: Iterable[str]) -> str:
    """Returns "must be one of [...], got VALUE; did you mean NEAREST?", the end of an error about a name."""
    known = list(known)
    near = difflib.get_close_matches(str(value), known, n=1)
    return f"must be one of {known}, got {value!r}" + (f"; did you mean {near[0]!r}?" if near else "")
