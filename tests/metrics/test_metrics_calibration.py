"""Expected calibration error, by hand."""

import numpy as np
import pytest

from mcl_jax.metrics.calibration import calibration_error


def test_by_hand():
    """Bins (0.4, 0.6] with 0.5 and 0.6, of which one is right, and (0.8, 1.0] with 0.9, 0.9 and 1, all right."""
    confidence, correct = [0.5, 0.6, 0.9, 0.9, 1.0], [True, False, True, True, True]
    wanted = 2 / 5 * abs(0.5 - 0.55) + 3 / 5 * abs(1.0 - 2.8 / 3)
    assert calibration_error(confidence, correct, bins=5) == pytest.approx(wanted)
    assert calibration_error(confidence, correct, bins=1) == pytest.approx(abs(0.8 - 3.9 / 5))
    assert calibration_error([0.0, 1.0], [False, True]) == 0.0


def test_of_a_calibrated_guess_it_is_small():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 1.0, 20011)
    assert calibration_error(confidence, rng.uniform(size=20011) < confidence) < 0.02
    assert calibration_error(confidence, rng.uniform(size=20011) < confidence - 0.2) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        ([], [], r"must be \[N\] with N of at least 1, got \(0,\) and \(0,\)"),
        ([0.5], [True, False], "must be"),
        ([1.5], [True], r"confidence must be in \[0, 1\], got 1.5 to 1.5"),
    ],
)
def test_refusals(confidence, correct, message):
    with pytest.raises(ValueError, match=message):
        calibration_error(confidence, correct)
