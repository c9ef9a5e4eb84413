"""Checks that a corpus can be used for training, validation and testing, before anything that takes long."""

import dataclasses

from experiments.common.groups import Training
from mcl_jax import data
from mcl_jax.console import say


def usable(corpus: data.Corpus, *, option: str, training: Training, needed: str = "", seed: int = 0) -> data.Corpus:
    """Returns the corpus if a run can use it, `with_held_out` splits. Does not read any picture or clip.

    Args:
      corpus: records of all splits.
      option: the option that chose the corpus, for messages.
      training: says how many examples a batch has, and whether each answer is one or each record.
      needed: "pictures" or "clips", if records must have them.
      seed: that of `with_held_out`.
    Raises:
      ValueError: for the other kind, or for a split that is too small; says how many records each split has.
    """
    if needed and (kind := f"{corpus.records[0].media.kind}s") != needed:
        raise ValueError(f"{option} must have {needed}, but has {kind}")
    complete = corpus.with_test(seed=seed).with_validation(seed=seed)
    given, counts = corpus.counts(), complete.counts()
    examples, unit = counts["train"], "records"
    if training.each_answer:
        examples, unit = sum(len(r.targets) for r in complete.records if r.split == "train"), "answers"
    if examples < training.batch_size:
        taken = [f"{counts[of] - given[of]} for {of}" for of in ("validation", "test") if counts[of] > given[of]]
        besides = f" (and {' and '.join(taken)})" if taken else ""
        raise ValueError(
            f"{option} has only {examples} training {unit}{besides}, fewer than --batch-size {training.batch_size}"
        )
    for split in ("test", "validation"):
        if not counts[split]:
            raise ValueError(
                f"{option} has no records with the split {split!r}, but needs some in each of "
                f"{', '.join(data.SPLITS)}; it has {given}"
            )
    return corpus


def with_held_out(corpus: data.Corpus, seed: int = 0) -> data.Corpus:
    """Returns the corpus with a test and a validation split. Takes a missing one from training, and says so.

    Args:
      corpus: records of all splits.
      seed: chooses the sources. It is not the seed of a run, so that runs with several seeds have the same test split.
    """
    tested = corpus.with_test(seed=seed)
    _say_taken(corpus, tested, "test")
    complete = tested.with_validation(seed=seed)
    _say_taken(tested, complete, "validation")
    return complete


def _say_taken(before: data.Corpus, after: data.Corpus, split: str) -> None:
    if taken := after.counts()[split] - before.counts()[split]:
        say(
            f"The corpus {before.name!r} has no {split} split. {taken} of its {before.counts()['train']} training "
            "records are used for it, the same ones each time."
        )


def with_test_split_of(corpus: data.Corpus, other: data.Corpus) -> data.Corpus:
    """Returns a corpus with the test split of another one, whose ids begin with its name, in place of its own.

    A corpus without any split but the training split, such as a single table, is taken as a whole.
    """
    if other.counts()["train"] == len(other.records):
        say(f"The corpus {other.name!r} has no splits, so all its {len(other.records)} records are used for testing.")
        records = tuple(dataclasses.replace(record, split="test") for record in other.records)
        other = dataclasses.replace(other, records=records)
    own = [record for record in corpus.records if record.split != "test"]
    tested = [dataclasses.replace(record, id=f"{other.name}/{record.id}") for record in other.split("test")]
    return dataclasses.replace(corpus, records=tuple(own + tested))
