"""Win matrix, purity and normalised mutual information: worked examples and scikit-learn's values."""

import json
from math import log
from pathlib import Path

import numpy as np
import pytest

from mcl_jax.metrics import normalized_mutual_information, purity, win_matrix

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "metrics.json").read_text())["clusterings"]

# 3 modes, 4 hypotheses (the last never wins), 11 items.
MODE = ["de", "de", "de", "en", "en", "en", "en", "fr", "fr", "fr", "fr"]
WINNER = [0, 0, 1, 2, 2, 2, 2, 1, 1, 1, 0]


def test_win_matrix_by_hand():
    matrix = win_matrix(WINNER, MODE, 4)
    assert matrix.modes == ("de", "en", "fr")
    np.testing.assert_array_equal(matrix.counts, [[2, 1, 0, 0], [0, 0, 4, 0], [1, 3, 0, 0]])
    np.testing.assert_allclose(matrix.win_rate, [3 / 11, 4 / 11, 4 / 11, 0])
    assert win_matrix(WINNER, MODE).counts.shape == (3, 3)


def test_purity_by_hand():
    score = purity(WINNER, MODE, 4)
    assert score.mean == pytest.approx((2 + 3 + 4) / 11)
    np.testing.assert_array_equal(score.per_item, [1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0])
    assert score.low < score.mean <= score.high


def test_purity_of_the_measured_win_matrix():
    """The one of section 7 of the paper notes: [[29, 0], [1, 66]] has 0.99."""
    mode, winner = [0] * 29 + [1] * 67, [0] * 29 + [0] + [1] * 66
    assert purity(winner, mode).mean == pytest.approx(95 / 96)


def test_nmi_by_hand():
    """Modes 1/2, 1/2; winners 3/4, 1/4: I = H(mode) + H(winner) − H(joint), all from the table of 4 items."""
    mode, winner = [0, 0, 1, 1], [0, 0, 0, 1]
    h_mode, h_winner, h_joint = log(2), -(0.75 * log(0.75) + 0.25 * log(0.25)), 1.5 * log(2)
    expected = (h_mode + h_winner - h_joint) / ((h_mode + h_winner) / 2)
    score = normalized_mutual_information(winner, mode)
    assert score.mean == pytest.approx(expected)
    assert score.per_item.mean() == pytest.approx(expected)
    assert score.per_item[2] < 0 < score.per_item[3]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_nmi_and_purity_are_scikit_learns(case):
    assert normalized_mutual_information(case["winner"], case["mode"]).mean == pytest.approx(case["nmi"], abs=1e-12)
    assert purity(case["winner"], case["mode"]).mean == pytest.approx(case["purity"])


def test_intervals_hold_the_value_even_where_there_is_nothing_to_find():
    """Majorities taken anew in each resample would put 3 modes and 7 independent winners at 0.37 to 0.42, not 0.34."""
    winner, mode = np.arange(500) % 7, np.arange(500) % 3
    for metric in (purity, normalized_mutual_information):
        score = metric(winner, mode)
        assert score.low < score.mean < score.high
        assert score.mean == pytest.approx(score.per_item.mean())
    assert purity(WINNER, MODE).low < purity(WINNER, MODE).mean < purity(WINNER, MODE).high


def test_the_interval_of_a_perfect_score_is_perfect_however_unequal_the_modes():
    score = normalized_mutual_information([2, 2, 2, 2, 2, 0, 0, 1], list("aaaaabbc"))
    assert score.per_item.max() > 1.5 > 1.0 > score.per_item.min()
    np.testing.assert_allclose([score.low, score.mean, score.high], 1.0)


def test_names_of_hypotheses_and_modes_do_not_matter():
    other = {"de": 7, "en": "x", "fr": -1}
    swapped = [[2, 0, 1][k] for k in WINNER]
    for metric in (purity, normalized_mutual_information):
        assert metric(swapped, [other[m] for m in MODE]).mean == pytest.approx(metric(WINNER, MODE).mean)


def test_collapse():
    """One hypothesis wins everything: purity is the share of the largest mode, and the winner says nothing."""
    assert purity([1] * 11, MODE).mean == pytest.approx(4 / 11)
    assert normalized_mutual_information([1] * 11, MODE).mean == pytest.approx(0.0)
    assert normalized_mutual_information([1, 1], ["a", "a"]).mean == 1.0


def test_number_1_and_text_1_are_two_modes():
    assert win_matrix([0, 0, 0], [1, "1", 1]).modes == (1, "1")


@pytest.mark.parametrize(
    ("winner", "mode", "message"),
    [
        ([], [], "at least 1"),
        ([0, 1], ["a"], r"same items.*\(2,\) winners and 1 modes"),
        ([0, -1], ["a", "b"], "from 0, got int64 values like -1"),
        ([0.0, 1.0], ["a", "b"], "indices of hypotheses from 0, got float64"),
        ([0, 3], ["a", "b"], "below num_hypotheses=3, got 3"),
    ],
)
def test_bad_arguments_are_refused(winner, mode, message):
    for metric in (win_matrix, purity, normalized_mutual_information):
        with pytest.raises(ValueError, match=message):
            metric(winner, mode, 3)
