"""The sweep of objectives over mixtures of Markov chains: counts, scores worked by hand, and one small run."""

import json

import numpy as np

from experiments.markov import objectives, tables


def test_transition_counts():
    counts = tables.transition_counts(np.array([[0, 1, 1, 2, 0, 1]]), 3)
    np.testing.assert_allclose(counts, np.array([[[0, 2, 0], [0, 1, 1], [1, 0, 0]]]) / 5)


def test_the_true_chains_have_no_excess_and_a_dead_hypothesis_is_counted():
    chains = np.log(objectives.mixtures()["nine"].chains)
    of_truth = objectives.scores("nine", chains[::-1])
    assert abs(of_truth["excess"]) < 1e-12 and of_truth["purity"] > 0.99 and of_truth["dead"] == 0
    collapsed = objectives.scores("nine", np.stack([chains[0], np.full((2, 2), -9.0) + [[0, 18]] * 2]))
    assert collapsed["dead"] == 1 and collapsed["purity"] < 0.6 and collapsed["excess"] > 0.01


def test_a_run_learns_and_leaves_its_results(tmp_path):
    config = objectives.SweepConfig(
        workdir=tmp_path, objectives=("relaxed-fading",), mixtures=("equal",), seeds=2, steps=60, learning_rate=0.2
    )
    objectives.main(config)
    runs = json.loads((tmp_path / "results.json").read_text())["objectives"]["relaxed-fading"]["equal"]
    assert len(runs) == 2
    assert all(run["purity"] > 0.95 and run["excess"] < 0.02 for run in runs)
