"""Checks that a corpus can be used for training, validation and testing, before anything that takes long."""

import dataclasses

from mcl_jax import data
from mcl_jax.console import say


def usable(corpus: data.Corpus, *, option: str, batch_size: int, needed: str = "") -> data.Corpus:
    """Returns the corpus if a run can use it. Does not read any picture or clip.

    Args:
      corpus: records of all splits.
      option: the option that chose the corpus, for messages.
      batch_size: number of records in a batch.
      needed: "pictures" or "clips", if records must have them.
    Raises:
      ValueError: for the other kind, or for a split that is too small; says how many records each split has.
    """
    if needed and (kind := f"{corpus.records[0].media.kind}s") != needed:
        raise ValueError(f"{option} must have {needed}, but has {kind}")
    counts = corpus.with_validation().counts()
    if counts["train"] < batch_size:
        taken = corpus.counts()["train"] - counts["train"]
        besides = f" (and {taken} for validation)" if taken else ""
        raise ValueError(
            f"{option} has only {counts['train']} training records{besides}, fewer than --batch-size {batch_size}"
        )
    for split in ("test", "validation"):
        if not counts[split]:
            raise ValueError(
                f"{option} has no records with the split {split!r}, but needs some in each of "
                f"{', '.join(data.SPLITS)}; it has {corpus.counts()}"
            )
    return corpus


def with_validation(corpus: data.Corpus) -> data.Corpus:
    """Returns the corpus with a validation split. If it has none, takes one from the training split and says so."""
    complete = corpus.with_validation()
    if taken := complete.counts()["validation"] - corpus.counts()["validation"]:
        say(
            f"The corpus {corpus.name!r} has no validation split. {taken} of its {corpus.counts()['train']} training "
            "records are used for it, the same ones each time."
        )
    return complete


def with_test_split_of(corpus: data.Corpus, other: data.Corpus) -> data.Corpus:
    """Returns a corpus with the test split of another one, whose ids begin with its name, in place of its own.

    Raises:
      ValueError: if the other corpus has no test split.
    """
    own = [record for record in corpus.records if record.split != "test"]
    tested = [dataclasses.replace(record, id=f"{other.name}/{record.id}") for record in other.split("test")]
    return dataclasses.replace(corpus, records=tuple(own + tested))
