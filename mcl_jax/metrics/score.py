"""What every metric returns: a value for each item, their mean, and a bootstrap interval of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 4_000_000  # numbers that resampling holds at a time


@dataclass(frozen=True)
class Score:
    """A metric on N items.

    Attributes:
        per_item: [N]; NaN where the metric is not defined, such as the diversity of one answer.
        mean: of `per_item` where it is defined, NaN if nowhere. Of a `corpus_` metric: the value of all items pooled.
        low: lower end of the bootstrap interval of `mean`; NaN if fewer than 2 items count.
        high: its upper end.
    """

    per_item: np.ndarray
    mean: float
    low: float
    high: float

    @property
    def num_defined(self) -> int:
        """Items that `mean` is over."""
        return int(np.sum(~np.isnan(self.per_item)))


@dataclass(frozen=True)
class Bootstrap:
    """Percentile bootstrap over items: the same seed draws the same items, whatever the metric.

    Args:
        resamples: how often N items are drawn with replacement.
        level: share of the resampled means that lies in the interval.
        seed: of the draws.

    Raises:
        ValueError: resamples < 1, or a level outside (0, 1).

    Source: Efron (1979); for BLEU, Koehn (2004), "Statistical significance tests for machine translation evaluation".
    """

    resamples: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self):
        if self.resamples < 1:
            raise ValueError(f"resamples must be at least 1, got {self.resamples}")
        if not 0.0 < self.level < 1.0:
            raise ValueError(f"level must lie between 0 and 1, such as 0.95, got {self.level}")

    def mean(self, per_item: Sequence[float] | np.ndarray) -> Score:
        """Mean over the items where the metric is defined, and its interval.

        Args:
            per_item: [N] values, NaN where not defined.

        Raises:
            ValueError: for no items, or values that are not a vector.
        """
        per_item = _vector(per_item)
        defined = per_item[~np.isnan(per_item)]
        return self.pooled(per_item, defined, lambda total, count: total / count)

    def pooled(
        self, per_item: Sequence[float] | np.ndarray, statistics: np.ndarray, value: Callable[..., np.ndarray]
    ) -> Score:
        """A value of the sums of per-item statistics, f(Σ_n s_n, N), with the interval of resampled sums.

        Args:
            per_item: [N] values, kept as they are.
            statistics: [M, ...] of the M items that count.
            value: from sums [..., any], with a leading axis of resamples or without, and their number of items.

        Raises:
            ValueError: for no items, or values that are not a vector.
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
        """How often each item is drawn in each resample, in blocks [resamples of the block, N]."""
        rng = np.random.default_rng(self.seed)
        block = max(1, BLOCK // num_items)
        for done in range(0, self.resamples, block):
            rows = min(block, self.resamples - done)
            draws = rng.integers(num_items, size=(rows, num_items)) + num_items * np.arange(rows)[:, None]
            yield np.bincount(draws.ravel(), minlength=rows * num_items).reshape(rows, num_items).astype(np.float64)


def oracle(per_answer: Sequence[np.ndarray], bootstrap: Bootstrap | None = None) -> Score:
    """The best answer of each item: (1/N) Σ_n max_k s_nk.

    Args:
        per_answer: N vectors [K] of values, higher is better; K may differ between items.
        bootstrap: of the interval; 1000 resamples at 95 % if None.

    Raises:
        ValueError: for no items, or an item without answers.
    """
    return (bootstrap or Bootstrap()).mean([values.max() for values in _per_answer(per_answer)])


def average(per_answer: Sequence[np.ndarray], bootstrap: Bootstrap | None = None) -> Score:
    """The answers of each item on average: (1/N) Σ_n (1/K_n) Σ_k s_nk; arguments and errors as in `oracle`."""
    return (bootstrap or Bootstrap()).mean([values.mean() for values in _per_answer(per_answer)])


def _vector(per_item: Sequence[float] | np.ndarray) -> np.ndarray:
    per_item = np.asarray(per_item, np.float64)
    if per_item.ndim != 1 or per_item.size == 0:
        raise ValueError(f"a metric needs one value for each of at least 1 item, got shape {per_item.shape}")
    return per_item


def _per_answer(per_answer: Sequence[np.ndarray]) -> list[np.ndarray]:
    vectors = [np.asarray(values, np.float64) for values in per_answer]
    for n, values in enumerate(vectors):
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"item {n} needs one value for each of at least 1 answer, got shape {values.shape}")
    return vectors
