"""Use of the K hypotheses on held-out answers: what each is worth, and how many of them a run recommends."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from experiments.common.config import Method
from experiments.common.held_out import Likelihoods, likelihoods_under, with_interval
from experiments.common.task import Items, Task
from mcl_jax import metrics
from mcl_jax.averaging import average

Pair = tuple[int, int]


def merged_pairs(task: Task, method: Method, state: Any, items: Items) -> dict[Pair, np.ndarray]:
    """Returns log p [N] of held-out answers under the mean of each pair of hypotheses; {} without --merge-costs.

    Args:
      task: the task.
      method: the method; only mcl has hypotheses to merge.
      state: its trained state.
      items: the answers.
    """
    if method != "mcl" or not task.config.evaluation.merge_costs:
        return {}
    merged = {}
    for pair in combinations(range(task.config.num_hypotheses), 2):
        model, adapters = average(task.model(method), state.params, state.adapters, pair)
        merged[pair] = likelihoods_under(task, model, state.params, adapters, items).log_p[0]
    return merged


def hypotheses(likelihoods: Likelihoods, merged: Mapping[Pair, np.ndarray]) -> dict[str, Any]:
    """Returns the effective number of hypotheses, what dropping each costs, and a recommendation.

    `drop_cost` [K] is in nats per token, as `test_loss` is, and `answer_drop_cost` in nats per answer; each is a mean
    with its 95 % interval, which resamples sources. `merge_cost` and `answer_merge_cost` are those of `merged_pairs`.

    Args:
      likelihoods: likelihoods of several hypotheses.
      merged: log p [N] of the same answers under the mean of each pair; may be empty.
    """
    log_p, K = likelihoods.log_p, len(likelihoods.log_p)
    cost = lambda *of: metrics.removal_cost(*of, source=likelihoods.record)
    wins = np.bincount(likelihoods.winner, minlength=K)
    dropped = metrics.droppable(log_p, source=likelihoods.record)
    drops = [cost(log_p, [k]) for k in range(K)]
    merges = {pair: cost(log_p, pair, together) for pair, together in merged.items()}
    scores = {
        "effective": metrics.effective_number(wins / wins.sum()),
        "drop_cost": [with_interval(cost(log_p / likelihoods.tokens, [k])) for k in range(K)],
        "answer_drop_cost": [with_interval(score) for score in drops],
        "droppable": dropped,
    }
    if merged:
        of_token = lambda pair: cost(log_p / likelihoods.tokens, pair, merged[pair] / likelihoods.tokens)
        scores |= {
            "merged_pairs": list(merged),
            "merge_cost": [with_interval(of_token(pair)) for pair in merged],
            "answer_merge_cost": [with_interval(score) for score in merges.values()],
        }
    return scores | {
        "recommendation": _recommendation(drops, cost(log_p, dropped) if dropped else None, dropped, merges)
    }


def _recommendation(
    drops: list[metrics.Score],
    of_dropped: metrics.Score | None,
    dropped: list[int],
    merges: Mapping[Pair, metrics.Score],
) -> str:
    """Says in a sentence how many hypotheses to take.

    Args:
      drops: cost of dropping each hypothesis, in nats per answer.
      of_dropped: cost of dropping all that are not worth their place together, if there are any.
      dropped: these hypotheses.
      merges: cost of merging pairs.
    """
    K = len(drops)
    if of_dropped is not None:
        return f"{_named(dropped)} could be dropped: this costs {_nats(of_dropped)}; {_try(K - len(dropped))}."
    if merges:
        pair = min(merges, key=lambda pair: merges[pair].mean)
        if metrics.worthless(merges[pair], K):
            return f"{_named(pair)} could be merged: this costs {_nats(merges[pair])}; {_try(K - 1)}."
    least = int(np.argmin([score.mean for score in drops]))
    if metrics.worthless(drops[least], K) is None:
        costs = _nats(drops[least])
        return f"It is unclear whether hypothesis {least} is needed: dropping it costs {costs}; test on more sources."
    return f"All {K} hypotheses are used: dropping the least useful, {least}, costs {_nats(drops[least])}."


def _named(ks: list[int] | Pair) -> str:
    *others, last = sorted(ks)
    return f"Hypotheses {', '.join(map(str, others))} and {last}" if others else f"Hypothesis {last}"


def _nats(cost: metrics.Score) -> str:
    interval = f" ({cost.low:.2g} to {cost.high:.2g})" if np.isfinite(cost.low) else ""
    return f"{cost.mean:.2g} nats per answer{interval}"


def _try(num_hypotheses: int) -> str:
    return f"try --num-hypotheses {num_hypotheses}" if num_hypotheses > 1 else "try one model, --methods mle_r"
