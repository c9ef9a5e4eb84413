"""The method list: one model that writes all answers to a source in one pass, a line for each.

Its targets are lists of all right answers to a source, in a random order. The likelihood of a list depends on its order
and on the other answers in it, so it is no likelihood of a single answer, and there is no winner-takes-all loss.
"""

import dataclasses
import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mcl_jax import data

SEPARATOR = "\n"
WHY = "the likelihood of a list says nothing of a single answer"
NO_LIKELIHOOD: dict[str, Any] = {"test_loss": None, "not_available": {"test_loss": WHY}}


def joined(answers: Sequence[str]) -> str:
    """Returns the list of some answers, each on a line of its own: line breaks inside an answer become spaces."""
    return SEPARATOR.join(re.sub(r"\s*\n\s*", " ", answer.strip()) for answer in answers)


def split(text: str, num_answers: int) -> tuple[list[str], int]:
    """Returns the answers of a list, and how many of them it has.

    Answers beyond `num_answers` are left out. If there are too few, they are repeated in turn, which adds no quality
    and no diversity; an empty list gives empty answers.
    """
    lines = [line.strip() for line in text.split(SEPARATOR) if line.strip()][:num_answers]
    return [lines[i % len(lines)] if lines else "" for i in range(num_answers)], len(lines)


def listed(record: data.Record, seed: int) -> data.Record:
    """Returns a record whose targets are lists of all its different answers.

    There are as many lists as answers: the rotations of a random order, so that each answer is once at every place.
    """
    texts = [*dict.fromkeys(target.text for target in record.targets)]
    rng = np.random.default_rng((seed, zlib.crc32(record.id.encode())))
    texts = [texts[i] for i in rng.permutation(len(texts))]
    rotations = (joined(texts[i:] + texts[:i]) for i in range(len(texts)))
    return dataclasses.replace(record, targets=tuple(map(data.Target, rotations)))


def listed_corpus(corpus: data.Corpus, seed: int) -> tuple[data.Corpus, int]:
    """Returns the corpus with lists as targets, and the number of answers in the longest list."""
    records = tuple(listed(record, seed) for record in corpus.records)
    return dataclasses.replace(corpus, records=records), max(len(record.targets) for record in records)
