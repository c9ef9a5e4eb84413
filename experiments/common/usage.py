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
    wins = np.bincount(likelihoods.winner, minlength=len(likelihoods.log_p))
    drops, merges = _costs(likelihoods, merged, np.ones_like(likelihoods.tokens))
    of_token = [list(map(with_interval, costs)) for costs in _costs(likelihoods, merged, likelihoods.tokens)]
    dropped = metrics.droppable(likelihoods.log_p, source=likelihoods.record)
    scores = {
        "effective": metrics.effective_number(wins / wins.sum()),
        "drop_cost": of_token[0],
        "answer_drop_cost": list(map(with_interval, drops)),
        "droppable": dropped,
    }
    if merged:
        answer_merge_cost = list(map(with_interval, merges))
        scores |= {"merged_pairs": list(merged), "merge_cost": of_token[1], "answer_merge_cost": answer_merge_cost}
    if dropped:
        cost = metrics.removal_cost(likelihoods.log_p, dropped, source=likelihoods.record)
        return scores | {"recommendation": _to_drop(dropped, cost, len(drops))}
    return scores | {"recommendation": _to_keep(drops, dict(zip(merged, merges, strict=True)))}


def _costs(
    likelihoods: Likelihoods, merged: Mapping[Pair, np.ndarray], size: np.ndarray
) -> tuple[list[metrics.Score], list[metrics.Score]]:
    """Returns the costs of dropping each hypothesis and of merging each pair, with log p divided by `size` [N]."""
    log_p, source = likelihoods.log_p / size, likelihoods.record
    drops = [metrics.removal_cost(log_p, [k], source=source) for k in range(len(log_p))]
    merges = [metrics.removal_cost(log_p, pair, together / size, source=source) for pair, together in merged.items()]
    return drops, merges


def _to_drop(dropped: list[int], cost: metrics.Score, num_hypotheses: int) -> str:
    """Names the hypotheses that are not worth their place, and what dropping all of them costs per answer."""
    return f"{_named(dropped)} could be dropped: this costs {_nats(cost)}; {_try(num_hypotheses - len(dropped))}."


def _to_keep(drops: list[metrics.Score], merges: Mapping[Pair, metrics.Score]) -> str:
    """Says whether a pair could be merged, or else what the least useful hypothesis is worth, in nats per answer."""
    K, least = len(drops), int(np.argmin([cost.mean for cost in drops]))
    pair = min(merges, key=lambda pair: merges[pair].mean, default=None)
    if pair and metrics.worthless(merges[pair], K):
        return f"{_named(pair)} could be merged: this costs {_nats(merges[pair])}; {_try(K - 1)}."
    costs = _nats(drops[least])
    if metrics.worthless(drops[least], K) is None:
        return f"It is unclear whether hypothesis {least} is needed: dropping it costs {costs}; test on more sources."
    return f"All {K} hypotheses are used: dropping the least useful, {least}, costs {costs}."


def _named(ks: list[int] | Pair) -> str:
    *others, last = sorted(ks)
    return f"Hypotheses {', '.join(map(str, others))} and {last}" if others else f"Hypothesis {last}"


def _nats(cost: metrics.Score) -> str:
    interval = f" ({cost.low:.2g} to {cost.high:.2g})" if np.isfinite(cost.low) else ""
    return f"{cost.mean:.2g} nats per answer{interval}"


def _try(num_hypotheses: int) -> str:
    return f"try --num-hypotheses {num_hypotheses}" if num_hypotheses > 1 else "try one model, --methods mle_r"
