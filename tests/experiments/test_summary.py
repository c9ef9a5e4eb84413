"""What is said of held-out likelihoods: purity, win matrix, loss of each mode."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.common.experiment import on_test
from experiments.common.held_out import Likelihoods, gap, summary
from mcl_jax.data import NO_MODE

TASK = SimpleNamespace(corpus=SimpleNamespace(modes=("en", "es", "fr")))
# Winners 0, 0, 2, 2, 0; of French, French, English, no mode, no mode.
LOG_P = np.array([[-2.0, -3.0, -9.0, -8.0, -1.0], [-9.0] * 5, [-5.0, -9.0, -4.0, -6.0, -2.0]])
MODES = np.array([2, 2, 0, NO_MODE, NO_MODE])


def likelihoods(modes):
    return Likelihoods(LOG_P, np.array([1, 2, 2, 3, 1]), modes, np.arange(5))


def test_answers_of_no_mode_are_in_the_loss_and_the_win_rate_alone():
    found = summary(likelihoods(MODES), TASK)
    assert found["eval_loss"] == pytest.approx(np.mean([2, 1.5, 2, 2, 1]))
    np.testing.assert_allclose(found["win_rate"], [0.6, 0.0, 0.4])
    assert found["purity"] == 1.0 and found["modes"] == ("en", "fr")
    np.testing.assert_array_equal(found["win_matrix"], [[0, 0, 1], [2, 0, 0]])
    assert found["loss_of_mode"] == {"en": 2.0, "fr": 1.75}


def test_the_loss_of_each_source_is_kept():
    two_of_a_source = dataclasses.replace(likelihoods(MODES), record=np.array([3, 1, 3, 7, 1]))
    found = on_test(two_of_a_source, TASK)
    assert found["per_item"] == {"test_loss": pytest.approx([1.25, 2.0, 2.0])} and "eval_loss" not in found


def test_without_modes_there_is_no_purity():
    assert set(summary(likelihoods(np.full(5, NO_MODE)), TASK)) == {"eval_loss", "win_rate"}


def test_of_one_mode_there_is_a_win_matrix_and_no_purity():
    found = summary(likelihoods(np.full(5, 2)), TASK)
    assert set(found) == {"eval_loss", "win_rate", "win_matrix", "modes", "loss_of_mode"}
    np.testing.assert_array_equal(found["win_matrix"], [[3, 0, 2]])


def test_a_gap_on_a_single_source_has_no_interval():
    several = likelihoods(MODES)
    single = dataclasses.replace(several, record=np.zeros(5, int))
    above = lambda of: gap(
        SimpleNamespace(losses=of.losses + 0.5, tokens=of.tokens, mean_per_record=of.mean_per_record), of
    )
    assert above(several)["loss_above_mcl"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert above(single)["loss_above_mcl"] == 0.5
