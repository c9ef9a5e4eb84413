"""Relevance by likelihood: how much the picture or clip of a caption matters to the model.

    groups = [...]                              # N labels; equal for records that one caption may describe
    other = derangement(groups)                 # [N], the record that each is compared with
    grounding(own, swapped)                     # nats per answer; 0 means that nothing was seen
    candidates = with_distractors(groups, 20)   # [N, 20]; the record itself comes first
    retrieval(log_p)                            # share of 1; chance is 1/20

Both take the likeliest of K hypotheses for each pair of a caption and a picture (winner-takes-all), as the loss does.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float, Int

from mcl_jax.metrics.score import Bootstrap, Score


def derangement(groups: Sequence[Hashable], seed: int = 0) -> Int[np.ndarray, " N"]:
    """Pairs each record with one of another group, so that every record is the partner of exactly one.

    The records are shuffled with their groups kept together, and each is paired with the one that comes G places later,
    where G is the size of the largest group.

    Args:
      groups: one label per record. Records of a group may share a caption, so they are never paired.
      seed: random seed; the same seed gives the same pairs.
    Returns:
      Index of the partner of each record.
    Raises:
      ValueError: if there are no records, or a group has more than half of them; then there is no such pairing.
    """
    label, size = _numbered(groups)
    if (largest := int(size.max())) * 2 > len(label):
        raise ValueError(
            f"every record needs a partner from another group, so a group may have at most half of the records, but "
            f"one has {largest} of {len(label)}"
        )
    rng = np.random.default_rng(seed)
    place, shuffled = rng.permutation(len(size)), rng.permutation(len(label))
    order = shuffled[np.argsort(place[label[shuffled]], kind="stable")]
    partner = np.empty(len(label), np.int64)
    partner[order] = np.roll(order, -largest)
    return partner


def num_candidates(groups: Sequence[Hashable], most: int = 20) -> int:
    """Returns the largest C up to `most` for which `with_distractors` can draw; 1 if all records are in one group."""
    label, size = _numbered(groups)
    return min(most, 1 + len(label) - int(size.max()))


def with_distractors(groups: Sequence[Hashable], num: int = 20, seed: int = 0) -> Int[np.ndarray, "N C"]:
    """Draws C candidates for each record: itself first, then C − 1 records of other groups without replacement.

    Args:
      groups: one label per record, as in `derangement`.
      num: C, number of candidates.
      seed: random seed; the same seed gives the same draw.
    Returns:
      Indices of the candidates.
    Raises:
      ValueError: if there are no records, num < 2, or a record has fewer than C − 1 records of other groups.
    """
    label, _ = _numbered(groups)
    enough = num_candidates(groups, len(label))
    if not 2 <= num <= enough:
        raise ValueError(f"the number of candidates must be from 2 to {enough} for these records, got {num}")
    rng = np.random.default_rng(seed)
    others = (rng.choice(np.flatnonzero(label != own), num - 1, replace=False) for own in label)
    return np.array([[n, *drawn] for n, drawn in enumerate(others)])


def _numbered(groups: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the number of the group of each record [N], and the size of each group [G]."""
    if not len(groups):
        raise ValueError("groups must have a label for at least 1 record, got none")
    number = {group: n for n, group in enumerate(dict.fromkeys(groups))}
    label = np.array([number[group] for group in groups])
    return label, np.bincount(label)


def grounding(
    own: Float[np.ndarray, "K N"],
    swapped: Float[np.ndarray, "K N"],
    record: Sequence[int] | None = None,
    bootstrap: Bootstrap | None = None,
) -> Score:
    """Computes how much more a caption costs with another picture: −max_k log p(y|x') − (−max_k log p(y|x)).

    Positive values mean that the model uses the picture; 0 means that it saw nothing. The unit is nats per answer.

    Args:
      own: log-likelihood of each caption given its own picture or clip, in nats; NaN where it is unknown.
      swapped: the same given another record's, such as that of `derangement`.
      record: index of the record of each caption. Captions of a record are averaged first, since they are not
        independent. None means one caption per record.
      bootstrap: computes the interval over records; None means 1000 resamples at 95 %.
    Returns:
      The score, with one value per record in the order of `record`.
    Raises:
      ValueError: if the shapes do not fit together.
    """
    own, swapped = np.asarray(own, np.float64), np.asarray(swapped, np.float64)
    if own.ndim != 2 or own.shape != swapped.shape:
        raise ValueError(f"own and swapped must have the same shape [K, N], got {own.shape} and {swapped.shape}")
    gain = own.max(0) - swapped.max(0)
    if record is not None:
        gain = _mean_per_record(gain, np.asarray(record))
    return (bootstrap or Bootstrap()).mean(gain)


def _mean_per_record(values: np.ndarray, record: np.ndarray) -> np.ndarray:
    """Returns the mean of the known values [N] of each record; NaN if none is known."""
    if record.shape != values.shape:
        raise ValueError(f"record must have one index for each of {len(values)} captions, got shape {record.shape}")
    known = [values[(record == r) & ~np.isnan(values)] for r in np.unique(record)]
    return np.array([one.mean() if len(one) else np.nan for one in known])


def retrieval(log_likelihood: Float[np.ndarray, "K N C"], bootstrap: Bootstrap | None = None) -> Score:
    """Computes how often the own picture is the likeliest of C candidates for a caption; chance is 1/C.

    A record counts 1 if argmax_c max_k log p_k(caption | candidate c) is its own picture. If m candidates are equally
    likely and the own is among them it counts 1/m, so a model that sees nothing has exactly 1/C.

    Args:
      log_likelihood: log-likelihood of each caption given each candidate, in nats; the own picture or clip is
        candidate 0, as in `with_distractors`. A record with a NaN does not count.
      bootstrap: computes the interval over records; None means 1000 resamples at 95 %.
    Raises:
      ValueError: if the shape is not [K, N, C].
    """
    log_likelihood = np.asarray(log_likelihood, np.float64)
    if log_likelihood.ndim != 3:
        raise ValueError(f"log_likelihood must have the shape [K, N, C], got {log_likelihood.shape}")
    best = log_likelihood.max(0)  # [N, C]
    likeliest = best == best.max(1, keepdims=True)
    found = likeliest[:, 0] / np.maximum(likeliest.sum(1), 1)
    return (bootstrap or Bootstrap()).mean(np.where(np.isnan(best).any(1), np.nan, found))
