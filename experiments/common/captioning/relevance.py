"""Relevance by likelihood: the captions of test records with their own and with other records' pictures or clips.

A caption with the picture of another record is a record too: the other one, with this caption. So its prompt has as
many placeholders as that picture needs, and the features of each picture are computed once.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from experiments.common.held_out import Likelihoods, with_interval
from experiments.common.task import Items, Task, spread
from mcl_jax import data, hosts, metrics
from mcl_jax.run import Run

CANDIDATES = 20  # pictures or clips among which retrieval looks for the right one
Captions = Sequence[tuple[int, data.Target]]  # index of a record, and one of its captions
LogP = Callable[[Captions, np.ndarray, str], Float[np.ndarray, "P K N"]]  # see `_log_p`


def relevance(
    task: Task,
    run: Run,
    evaluate: Callable[[Items], Likelihoods],
    records: tuple[data.Record, ...],
    retrieval_items: int,
) -> dict[str, Any]:
    """Returns `grounding` and `retrieval` of a trained method with 95 % intervals, and the chance of `retrieval`.

    A value that these records do not allow is None, with the reason under `not_available`.

    Args:
      task: the task.
      run: the run. It shows the progress, and is stopped between two passes if it is asked to stop.
      evaluate: computes the likelihoods of the method in its trained state.
      records: test records; `grounding` takes all captions of each.
      retrieval_items: number of records for `retrieval`, evenly spread, with one caption each: the modes by turns.
    """
    groups, log_p = groups_of(records), partial(_log_p, task, run, evaluate, records)
    try:
        partner = metrics.derangement(groups)
    except ValueError as error:  # most records share a caption
        names = ("grounding", "retrieval")
        return dict.fromkeys(names) | {"not_available": dict.fromkeys(names, str(error))}
    num = metrics.num_candidates(groups, CANDIDATES)
    candidates = metrics.with_distractors(groups, num)
    chosen = spread(tuple(range(len(records))), retrieval_items)
    return {
        "grounding": with_interval(_grounding(log_p, records, partner)),
        "retrieval": with_interval(_retrieval(log_p, records, candidates[list(chosen)])),
        "retrieval_chance": 1 / num,
    }


def _grounding(log_p: LogP, records: tuple[data.Record, ...], partner: Int[np.ndarray, " N"]) -> metrics.Score:
    """Compares all captions of every record with those of its partner's picture."""
    captions = [(n, target) for n, record in enumerate(records) for target in record.targets]
    of_caption = np.array([n for n, _ in captions])
    own, swapped = log_p(captions, np.stack([of_caption, partner[of_caption]]), "grounding")
    return metrics.grounding(own, swapped, of_caption)


def _retrieval(log_p: LogP, records: tuple[data.Record, ...], candidates: Int[np.ndarray, "N C"]) -> metrics.Score:
    """Looks for the right one of the candidates of each record; the first of them is the record itself."""
    chosen = [(n, records[n].targets) for n, *_ in candidates]
    captions = [(n, targets[i % len(targets)]) for i, (n, targets) in enumerate(chosen)]
    return metrics.retrieval(np.moveaxis(log_p(captions, candidates.T, "retrieval"), 0, -1))


def _log_p(
    task: Task,
    run: Run,
    evaluate: Callable[[Items], Likelihoods],
    records: tuple[data.Record, ...],
    captions: Captions,
    shown: Int[np.ndarray, "P N"],
    title: str,
) -> Float[np.ndarray, "P K N"]:
    """Returns log p of N captions in nats in P passes; `shown` has the record whose picture each is paired with.

    The captions keep their order in every pass, so a model that does not see gives exactly the same numbers. A caption
    that is too long after a picture has NaN.
    """
    P, N = shown.shape
    pairs = task.encode(tuple(with_caption(records[n], captions[i % N][1]) for i, n in enumerate(shown.flat)))
    passes = []
    with run.progress(P, 0, title) as progress:
        for start in range(0, P * N, N):
            if hosts.any_of(run.stop_requested):
                run.stop()
            encoded = pairs.encoded.between(start, start + N)
            passes.append(_in_order(evaluate(pairs._replace(encoded=encoded)), start, N))
            progress.update(len(passes))
    return np.stack(passes)


def _in_order(likelihoods: Likelihoods, start: int, num: int) -> Float[np.ndarray, "K N"]:
    """Returns log p of the records from `start` on, in their order; NaN for those that were left out."""
    log_p = np.full((len(likelihoods.log_p), num), np.nan)
    log_p[:, likelihoods.record - start] = likelihoods.log_p
    return log_p


def with_caption(record: data.Record, target: data.Target) -> data.Record:
    """Returns a record with the picture or clip of `record`, and this caption alone."""
    return dataclasses.replace(record, targets=(target,), further_references=())


def groups_of(records: Sequence[data.Record]) -> list[int]:
    """Returns a label for each record, equal for two that share a caption, even if only by way of a third record.

    Case is ignored.
    """
    parent, first = list(range(len(records))), {}

    def root(n: int) -> int:
        while parent[n] != n:
            n = parent[n]
        return n

    for n, record in enumerate(records):
        for target in record.references:
            parent[root(n)] = root(first.setdefault(target.text.casefold(), n))
    return [root(n) for n in range(len(records))]
