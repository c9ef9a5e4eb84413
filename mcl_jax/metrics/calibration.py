"""Calibration: whether what is said to be likely at 0.8 is true 8 times in 10."""

from collections.abc import Sequence

import numpy as np

BINS = 10


def calibration_error(confidence: Sequence[float], correct: Sequence[bool], bins: int = BINS) -> float:
    """Computes the expected calibration error, Σ_b (n_b / N) |mean correct − mean confidence| over bins of confidence.

    Bins have equal widths, (0, 1/bins], (1/bins, 2/bins] and so on. Source: Guo et al. (arXiv 1706.04599), equation 3.

    Args:
      confidence: probability that each prediction is said to have, [N].
      correct: whether it was right, [N].
      bins: number of bins.
    Returns:
      The error, from 0 to 1.
    Raises:
      ValueError: if there are no predictions, the lengths differ, or a confidence is outside [0, 1].
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise ValueError(
            f"confidence and correct must be [N] with N of at least 1, got {confidence.shape} and {correct.shape}"
        )
    if not ((confidence >= 0.0) & (confidence <= 1.0 + 1e-6)).all():
        raise ValueError(f"confidence must be in [0, 1], got {confidence.min()} to {confidence.max()}")
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(place, correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))
