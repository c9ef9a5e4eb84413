"""Specialisation of hypotheses, measured by a win matrix [mode, hypothesis].

Hypotheses are clusters of the items, and modes are their classes; purity and normalised mutual information are those of
clustering. Source: Manning et al. (2008), "Introduction to information retrieval", section 16.3.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from mcl_jax.metrics.score import Bootstrap, Score


@dataclass(frozen=True)
class WinMatrix:
    """Number of items of each mode that each hypothesis won.

    Attributes:
      counts: numbers of items, [M, K].
      modes: the M modes (rows), sorted by name.
    """

    counts: np.ndarray
    modes: tuple[Hashable, ...]

    @property
    def win_rate(self) -> np.ndarray:
        """Share of all items that each hypothesis won, [K]."""
        return self.counts.sum(axis=0) / self.counts.sum()


def win_matrix(winner: Sequence[int], mode: Sequence[Hashable], num_hypotheses: int | None = None) -> WinMatrix:
    """Counts W[m, k] = |{n : mode_n = m, winner_n = k}|.

    Args:
      winner: hypothesis that won each item, [N], 0 to K − 1.
      mode: true mode of each item, [N], names or numbers.
      num_hypotheses: K; None means the highest winner + 1. A hypothesis that won nothing has a column of zeros.
    Raises:
      ValueError: if there are no items, the lengths differ, or a winner is not a hypothesis.
    """
    winner, modes, row = _checked(winner, mode, num_hypotheses)
    num_hypotheses = int(winner.max()) + 1 if num_hypotheses is None else num_hypotheses
    counts = np.zeros((len(modes), num_hypotheses), np.int64)
    np.add.at(counts, (row, winner), 1)
    return WinMatrix(counts, modes)


def purity(
    winner: Sequence[int],
    mode: Sequence[Hashable],
    num_hypotheses: int | None = None,
    bootstrap: Bootstrap | None = None,
) -> Score:
    """Computes the share of items whose mode is the most frequent one of their winner: (1/N) Σ_k max_m W[m, k].

    It is 1 if each hypothesis wins items of one mode only, and the share of the largest mode if one hypothesis wins
    everything. The interval keeps the most frequent modes of all items: choosing them anew in each resample would
    overfit it and shift the interval up.

    Args:
      winner, mode, num_hypotheses: as in `win_matrix`.
      bootstrap: computes the interval; None means 1000 resamples at 95 %.
    Returns:
      Score of N values 0 or 1.
    Raises:
      ValueError: as `win_matrix` does.
    """
    winner, _, row = _checked(winner, mode, num_hypotheses)
    counts = win_matrix(winner, row).counts
    return (bootstrap or Bootstrap()).mean((counts.argmax(axis=0)[winner] == row).astype(np.float64))


def normalized_mutual_information(
    winner: Sequence[int],
    mode: Sequence[Hashable],
    num_hypotheses: int | None = None,
    bootstrap: Bootstrap | None = None,
) -> Score:
    """Computes I(mode; winner) / ((H(mode) + H(winner)) / 2), in [0, 1].

    The value of an item is its pointwise mutual information log p(m, k) / (p(m) p(k)) over the same mean entropy; it
    may be negative or exceed 1, and its mean is the metric. The interval resamples items both in the information and in
    the entropies, so it stays below 1, but keeps the probabilities of all items, for the reason given in `purity`. As
    in scikit-learn, the value is 1 if there is only one mode and one winner.

    Args:
      winner, mode, num_hypotheses: as in `win_matrix`.
      bootstrap: computes the interval; None means 1000 resamples at 95 %.
    Raises:
      ValueError: as `win_matrix` does.
    """
    winner, _, row = _checked(winner, mode, num_hypotheses)
    joint = win_matrix(winner, row).counts / len(row)
    p_joint, p_mode, p_winner = joint[row, winner], joint.sum(axis=1)[row], joint.sum(axis=0)[winner]
    information = np.log(p_joint / (p_mode * p_winner))
    entropy = -(np.log(p_mode) + np.log(p_winner)) / 2.0
    if not entropy.any():
        return (bootstrap or Bootstrap()).mean(np.ones(len(row)))
    ratio = lambda sums, _: sums[..., 0] / sums[..., 1]
    sums = np.stack([information, entropy], axis=1)
    return (bootstrap or Bootstrap()).pooled(information / entropy.mean(), sums, ratio)


def check_telling(mode: Sequence[Hashable], num_hypotheses: int) -> None:
    """Checks that purity and mutual information are informative.

    Raises:
      ValueError: if there is only one mode (then every hypothesis is pure), or only one hypothesis.
    """
    if len(set(mode)) < 2:
        raise ValueError(
            f"specialisation needs items of at least 2 modes, got {len(set(mode))}; purity is always 1 then"
        )
    if num_hypotheses < 2:
        raise ValueError("specialisation needs at least 2 hypotheses, got 1, which wins every item")


def _checked(
    winner: Sequence[int], mode: Sequence[Hashable], num_hypotheses: int | None
) -> tuple[np.ndarray, tuple[Hashable, ...], np.ndarray]:
    """Returns winner [N], the modes, and the row of each item's mode [N]."""
    winner, mode = np.asarray(winner), mode.tolist() if hasattr(mode, "tolist") else list(mode)
    if winner.ndim != 1 or len(winner) != len(mode) or len(mode) == 0:
        raise ValueError(
            f"winner and mode must have the same items, at least 1, got {winner.shape} winners and {len(mode)} modes"
        )
    if not np.issubdtype(winner.dtype, np.integer) or winner.min() < 0:
        raise ValueError(f"winner must be indices of hypotheses from 0, got {winner.dtype} values like {winner.min()}")
    if num_hypotheses is not None and winner.max() >= num_hypotheses:
        raise ValueError(f"winner must be below num_hypotheses={num_hypotheses}, got {winner.max()}")
    modes = tuple(sorted(set(mode), key=lambda m: (str(type(m)), m)))
    place = {m: i for i, m in enumerate(modes)}
    return winner, modes, np.array([place[m] for m in mode])
