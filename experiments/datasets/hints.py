"""Sources that name the mode of their answer, so that the prompt tells in part which hypothesis will win."""

import dataclasses
import random

from mcl_jax import data


def with_hints(corpus: data.Corpus, share: float, seed: int = 0) -> data.Corpus:
    """Returns the corpus in which some sources end in " (MODE)" and have only the answers in this mode.

    Source and seed decide which sources, and which of their modes; both are drawn uniformly.

    Args:
      corpus: records of all splits.
      share: expected share of the sources, from 0 to 1.
      seed: another seed chooses other sources and modes.
    Raises:
      ValueError: if sources are to have hints, but no source has answers in two modes.
    """
    found = tuple(_with_hint(record, random.Random(f"{seed} {record.source}"), share) for record in corpus.records)
    if share and not any(len(_modes(record)) > 1 for record in corpus.records):
        raise ValueError(f"hints need sources with answers in two modes or more, and {corpus.name!r} has none")
    return dataclasses.replace(corpus, records=found)


def _with_hint(record: data.Record, rng: random.Random, share: float) -> data.Record:
    modes = _modes(record)
    if len(modes) < 2 or rng.random() >= share:
        return record
    mode = rng.choice(modes)
    of_mode = lambda targets: tuple(target for target in targets if target.mode == mode)
    return dataclasses.replace(
        record,
        source=f"{record.source} ({mode})",
        targets=of_mode(record.targets),
        further_references=of_mode(record.further_references),
    )


def _modes(record: data.Record) -> list[str]:
    """Returns the modes of the targets, sorted."""
    return sorted({target.mode for target in record.targets if target.mode is not None})
