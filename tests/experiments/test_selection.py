"""Scores of a selector on the test split, by hand."""

import dataclasses

import numpy as np
import pytest

from experiments.common.decoding import Answers
from experiments.common.held_out import Likelihoods
from experiments.common.selection import Selection, scores_on
from mcl_jax.selector import Selector, prior

P = np.array([[0.6, 0.1, 0.1, 0.2, 0.1], [0.1, 0.5, 0.2, 0.1, 0.4], [0.1, 0.2, 0.4, 0.1, 0.2]])
LIKELIHOODS = Likelihoods(np.log(P), np.array([1, 2, 1, 3, 1]), np.zeros(5, int), np.array([0, 0, 1, 1, 2]))
GAMMA = np.array([[0.7, 0.1, 0.1], [0.2, 0.3, 0.8], [0.1, 0.6, 0.1]])  # of three records, whose features are one-hot


def selector():
    return Selector(np.log(GAMMA.T).astype(np.float32), np.zeros(3, np.float32))


def test_scores_by_hand():
    """The winners are 0, 1, 2, 0, 1. The selector says 0, 0, 2, 2, 1; the prior of 1, 1, 0 always says 1."""
    constant = prior(np.eye(3)[[1, 1, 0]].T, 3)
    found = scores_on(selector(), constant, np.eye(3, dtype=np.float32), LIKELIHOODS)
    assert (found["accuracy"], found["prior_accuracy"]) == (pytest.approx(0.6), pytest.approx(0.4))
    gamma, tokens = GAMMA[:, [0, 0, 1, 1, 2]], LIKELIHOODS.tokens
    mixture = lambda g: -(np.log((g * P).sum(0)) / tokens).mean()
    assert found["density_loss"] == pytest.approx(mixture(gamma), rel=1e-5)
    assert found["prior_density_loss"] == pytest.approx(mixture(np.array([[2], [3], [1]]) / 6), rel=1e-5)
    assert found["uniform_density_loss"] == pytest.approx(mixture(np.full((3, 1), 1 / 3)), rel=1e-5)
    assert found["accuracy_above_prior"]["mean"] == pytest.approx((0 + 1 / 2 + 0) / 3)  # over records
    # Confidences 0.7 (one of two right), 0.6 (one of two) and 0.8 (right).
    assert found["calibration_error"] == pytest.approx((2 * 0.2 + 2 * 0.1 + 0.2) / 5, rel=1e-5)
    assert found["calibration_bins"] == 10


def test_answers_that_were_selected():
    log_gamma = np.log(np.array([[0.7, 0.1], [0.2, 0.3], [0.1, 0.6]]))
    asked = dataclasses.replace(LIKELIHOODS, record=np.array([0, 0, 1, 1, 1]))
    selection = Selection({"accuracy": 0.5}, log_gamma, asked)
    texts = [[f"{k}{i}" for k in range(3) for i in range(2)] for _ in range(2)]  # two of each hypothesis, best first
    answers = Answers(texts, [[-3, -3, -1, -2, -4, -5], [-1, -2, -3, -4, -5, -6]], 1.0)
    marked = selection.marked(answers)
    assert marked.selected == [0, 4]
    assert [row[i] for row, i in zip(marked.texts, marked.selected, strict=True)] == ["00", "20"]
    # Winners 0, 1 of the first source and 2, 0, 1 of the second; chosen 0 and 2; by likelihood 1 and 0.
    wanted = {"accuracy": 0.5, "answered_accuracy": pytest.approx(0.4), "mixture_accuracy": pytest.approx(0.4)}
    assert selection.results(answers) == {"selector": wanted}
    assert Selection().marked(answers) is answers and Selection().results(answers) == {}
