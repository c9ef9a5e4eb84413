"""Whether there is data to train, validate and test on, which is known before anything long is done."""

from mcl_jax import data
from mcl_jax.console import say


def usable(corpus: data.Corpus, *, option: str, batch_size: int, needed: str = "") -> data.Corpus:
    """The corpus, if a run can be made of it; nothing of it is read but captions and names.

    Args:
      corpus: records of all splits.
      option: what the corpus was asked for by, for messages.
      batch_size: records that a batch needs.
      needed: "pictures" or "clips", if records must have them.
    Raises:
      ValueError: for the other kind, or for a split that is too small; says how many records each split has.
    """
    if needed and (came := f"{corpus.records[0].media.kind}s") != needed:
        raise ValueError(f"{option} has {came}, needed {needed}")
    counts = corpus.with_validation().counts()
    if counts["train"] < batch_size:
        taken = corpus.counts()["train"] - counts["train"]
        besides = f" besides {taken} for validation" if taken else ""
        raise ValueError(
            f"{option} has {counts['train']} records to train on{besides}, fewer than --batch-size {batch_size}"
        )
    for split in ("test", "validation"):
        if not counts[split]:
            raise ValueError(
                f"{option} has no records with the split {split!r}: needed some in each of {', '.join(data.SPLITS)}, "
                f"got {corpus.counts()}"
            )
    return corpus


def with_validation(corpus: data.Corpus) -> data.Corpus:
    """The corpus with a validation split, taken from the training split if it has none; then a line says so."""
    complete = corpus.with_validation()
    if taken := complete.counts()["validation"] - corpus.counts()["validation"]:
        say(
            f"corpus {corpus.name!r} has no validation split: it takes {taken} of the {corpus.counts()['train']} "
            "training records, the same each time"
        )
    return complete
