"""Scores: one value per item, the mean, and a bootstrap interval."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 4_000_000  # numbers that resampling holds in memory at a time


@dataclass(frozen=True)
class Score:
    """A metric on N items.

    Attributes:
      per_item: one value per item, [N]; NaN where the metric is undefined, such as the diversity of one answer.
      mean: mean of the defined values, NaN if there are none. For a `corpus_` metric, the value of all items pooled.
      low: lower end of the bootstrap interval of `mean`; NaN if fewer than 2 items count.
      high: upper end of the interval.
    """

    per_item: np.ndarray
    mean: float
    low: float
    high: float

    @property
    def num_defined(self) -> int:
        """Number of items with a defined value."""
        return int(np.sum(~np.isnan(self.per_item)))


@dataclass(frozen=True)
class Bootstrap:
    """Percentile bootstrap over items. The same seed draws the same items for every metric.

    Args:
      resamples: number of resamples, each N items drawn with replacement.
      level: share of the resampled means inside the interval.
      seed: random seed of the draws.
    Raises:
      ValueError: if resamples < 1, or the level is outside (0, 1).

    Source: Efron (1979); for BLEU, Koehn (2004), "Statistical significance tests for machine translation evaluation".
    """

    resamples: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self):
        if self.resamples < 1:
            raise ValueError(f"resamples must be at least 1, got {self.resamples}")
        if not 0.0 < self.level < 1.0:
            raise ValueError(f"level must be between 0 and 1, such as 0.95, got {self.level}")

    def mean(self, per_item: Sequence[float] | np.ndarray) -> Score:
        """Computes the mean of the defined values, and its interval.

        Args:
          per_item: one value per item, [N]; NaN where undefined.
        Raises:
          ValueError: if there are no items, or the values are not a vector.
        """
        per_item = _vector(per_item)
        defined = per_item[~np.isnan(per_item)]
        return self.pooled(per_item, defined, lambda total, count: total / count)

    def pooled(
        self, per_item: Sequence[float] | np.ndarray, statistics: np.ndarray, value: Callable[..., np.ndarray]
    ) -> Score:
        """Computes a function of summed per-item statistics, f(Σ_n s_n, N), with the interval of resampled sums.

        Args:
          per_item: one value per item, [N], stored in the score.
          statistics: statistics of the M items that count, [M, ...].
          value: function (sums, number of items) -> value; sums may have a leading axis of resamples.
        Raises:
          ValueError: if there are no items, or the values are not a vector.
        """
        per_item = _vector(per_item)
        num_items = len(statistics)
        if num_items == 0:
            return Score(per_item, np.nan, np.nan, np.nan)
        mean = float(value(statistics.sum(axis=0), num_items))
        if num_items == 1:
            return Score(per_item, mean, np.nan, np.nan)
        resampled = [value(np.tensordot(c, statistics, axes=1), num_items) for c in self.counts(num_items)]
        tail = (1.0 - self.level) / 2.0
        low, high = np.quantile(np.concatenate(resampled), [tail, 1.0 - tail])
        return Score(per_item, mean, float(low), float(high))

    def counts(self, num_items: int) -> Iterator[np.ndarray]:
        """Yields the number of times that each item is drawn, in blocks [resamples of the block, N]."""
        rng = np.random.default_rng(self.seed)
        block = max(1, BLOCK // num_items)
        for done in range(0, self.resamples, block):
            rows = min(block, self.resamples - done)
            draws = rng.integers(num_items, size=(rows, num_items)) + num_items * np.arange(rows)[:, None]
            yield np.bincount(draws.ravel(), minlength=rows * num_items).reshape(rows, num_items).astype(np.float64)


def oracle(per_answer: Sequence[np.ndarray], bootstrap: Bootstrap | None = None) -> Score:
    """Averages the best answer of each item: (1/N) Σ_n max_k s_nk.

    Args:
      per_answer: N vectors [K] of values, where higher is better; K may differ between items.
      bootstrap: computes the interval; None means 1000 resamples at 95 %.
    Raises:
      ValueError: if there are no items, or an item has no answers.
    """
    return (bootstrap or Bootstrap()).mean([values.max() for values in _per_answer(per_answer)])


def average(per_answer: Sequence[np.ndarray], bootstrap: Bootstrap | None = None) -> Score:
    """Averages the answers of each item: (1/N) Σ_n (1/K_n) Σ_k s_nk. Arguments and errors are as in `oracle`."""
    return (bootstrap or Bootstrap()).mean([values.mean() for values in _per_answer(per_answer)])


def difference(a: Score, b: Score, bootstrap: Bootstrap | None = None) -> Score:
    """Subtracts two scores of the same items: (1/N) Σ_n (a_n − b_n), over items where both are defined.

    The interval resamples pairs, so it is narrower than the two intervals suggest where hard items are hard for both.

    Args:
      a, b: scores, each with the same N items in the same order; not `corpus_` metrics, which pool the items.
      bootstrap: computes the interval; None means 1000 resamples at 95 %.
    Raises:
      ValueError: if the numbers of items differ.
    """
    if len(a.per_item) != len(b.per_item):
        raise ValueError(f"two scores must have the same items, got {len(a.per_item)} and {len(b.per_item)}")
    return (bootstrap or Bootstrap()).mean(a.per_item - b.per_item)


def _vector(per_item: Sequence[float] | np.ndarray) -> np.ndarray:
    per_item = np.asarray(per_item, np.float64)
    if per_item.ndim != 1 or per_item.size == 0:
        raise ValueError(f"a metric needs a vector with one value per item and at least 1 item, got {per_item.shape}")
    return per_item


def _per_answer(per_answer: Sequence[np.ndarray]) -> list[np.ndarray]:
    vectors = [np.asarray(values, np.float64) for values in per_answer]
    for n, values in enumerate(vectors):
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"item {n} needs a vector with one value per answer, at least 1, got shape {values.shape}")
    return vectors
