"""Use of hypotheses: how many of them the items use, and what the loss would be without some of them.

The loss is that of winner takes all, mean_n −max_k l_kn, with the log-likelihoods l of items under hypotheses.
"""

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float, Int

from mcl_jax.metrics.score import Bootstrap, Score


def effective_number(win_rate: Sequence[float] | np.ndarray) -> float:
    """Computes exp(H(win rate)), the effective number of hypotheses.

    It is K if all hypotheses win equally often, and 1 if one of them wins everything.

    Args:
      win_rate: share of the items that each hypothesis wins, [K].
    Raises:
      ValueError: if the shares are negative or do not sum to 1.

    Source: Hill (1973), "Diversity and evenness", the number of order 1.
    """
    shares = np.asarray(win_rate, np.float64)
    if shares.ndim != 1 or not (shares >= 0.0).all() or abs(shares.sum() - 1.0) > 1e-5:
        raise ValueError(f"win rates must be a vector of shares that sum to 1, got {shares.tolist()}")
    won = shares[shares > 0.0]
    return float(np.exp(-(won * np.log(won)).sum()))


def removal_cost(
    log_likelihood: Float[np.ndarray, "K N"],
    removed: Collection[int],
    added: Float[np.ndarray, " N"] | None = None,
    *,
    source: Int[np.ndarray, " N"] | None = None,
    bootstrap: Bootstrap | None = None,
) -> Score:
    """Computes how much the loss rises without some hypotheses: mean_n (max_k l_kn − max(max_{k ∉ R} l_kn, a_n)).

    For one removed hypothesis this is the cost of dropping it. For a pair, with the log-likelihoods a under the mean of
    the two, it is the cost of merging them, which may be negative. The other hypotheses are not trained again; a
    training with fewer of them from the start should lose less.

    Args:
      log_likelihood: log p of each item under each hypothesis, in nats per item or per token.
      removed: R, indices of the hypotheses that are taken away.
      added: a, log p under the hypothesis that replaces them; None if there is none.
      source: source of each item. The interval resamples sources, since items of one are not independent. None means
        that each item has its own.
      bootstrap: computes the interval; None means 1000 resamples at 95 %.
    Returns:
      Score of N items, whose mean is over items.
    Raises:
      ValueError: if an index is not a hypothesis or is given twice, no hypothesis is left, or shapes do not fit.
    """
    log_likelihood = np.asarray(log_likelihood, np.float64)
    left = np.delete(log_likelihood, _checked(log_likelihood, removed, added, source), axis=0)
    if added is not None:
        left = np.concatenate([left, np.asarray(added, np.float64)[None]])
    cost = log_likelihood.max(axis=0) - left.max(axis=0)
    place = np.arange(len(cost)) if source is None else np.unique(source, return_inverse=True)[1]
    of_source = [np.bincount(place, weights=values) for values in (cost, np.ones_like(cost))]
    mean = lambda sums, _: sums[..., 0] / sums[..., 1]
    return (bootstrap or Bootstrap()).pooled(cost, np.stack(of_source, axis=1), mean)


def droppable(
    log_likelihood: Float[np.ndarray, "K N"],
    *,
    source: Int[np.ndarray, " N"] | None = None,
    bootstrap: Bootstrap | None = None,
) -> list[int]:
    """Returns the hypotheses that are not worth their place, the least useful first.

    Of n hypotheses, the one whose removal costs least is dropped if it costs at most log(n / (n − 1)) nats per item,
    and so on with the others; the upper end of the interval of the cost counts. To name one of n hypotheses takes that
    much more than to name one of n − 1, so the bound L_WTA + log n on the loss of their uniform mixture does not rise.

    Args:
      log_likelihood: log p of each item under each hypothesis, in nats per item.
      source, bootstrap: as in `removal_cost`.
    Returns:
      At most K − 1 indices.
    """
    log_likelihood = np.asarray(log_likelihood, np.float64)
    left, dropped = list(range(len(log_likelihood))), []
    best_without = lambda k: log_likelihood[[j for j in left if j != k]].max(axis=0).mean()
    while len(left) > 1:
        k = max(left, key=best_without)
        cost = removal_cost(log_likelihood[left], [left.index(k)], source=source, bootstrap=bootstrap)
        if not worthless(cost, len(left)):
            break
        left.remove(k)
        dropped.append(k)
    return dropped


def worthless(cost: Score, num_hypotheses: int) -> bool | None:
    """Whether one of n hypotheses may go: its removal costs at most log(n / (n − 1)) nats per item, see `droppable`.

    None means that it is unclear: the mean is below the bound, and the upper end of the interval is not.
    """
    bound = np.log(num_hypotheses / (num_hypotheses - 1))
    if cost.mean > bound:
        return False
    return None if cost.high > bound else True


def _checked(log_likelihood: np.ndarray, removed: Collection[int], added: object, source: object) -> list[int]:
    """Returns the indices to remove, after checking all arguments of `removal_cost`."""
    K, N = log_likelihood.shape if log_likelihood.ndim == 2 else (0, 0)
    if not N:
        raise ValueError(f"log_likelihood must have shape [K, N] with at least 1 item, got {log_likelihood.shape}")
    removed = list(removed)
    if not removed or len(set(removed)) < len(removed) or not set(removed) <= set(range(K)):
        raise ValueError(f"the removed hypotheses must be different indices from 0 to {K - 1}, got {removed}")
    if len(removed) == K and added is None:
        raise ValueError(f"at least one hypothesis must be left, but all {K} are removed and none is added")
    for name, values in (("added", added), ("source", source)):
        if values is not None and np.shape(values) != (N,):
            raise ValueError(f"{name} must have one value for each of {N} items, got shape {np.shape(values)}")
    return removed
