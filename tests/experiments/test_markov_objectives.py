"""The sweep of objectives over mixtures of Markov chains: counts, scores worked by hand, and one small run."""

import json

import jax
import numpy as np

from experiments.markov import candidates, objectives, tables
from mcl_jax.objectives import annealed


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


LOG_P = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)


def posterior(log_p, temperature):
    weights = np.exp(log_p / temperature)
    return weights / weights.sum(0)


def test_drawn_winners_have_the_frequencies_of_the_posterior():
    drawn = candidates.Drawn(lambda step: 0.7)
    q = np.asarray(jax.vmap(lambda key: drawn.weights(LOG_P, rng=key))(jax.random.split(jax.random.key(0), 4000)))
    assert set(np.unique(q)) == {0.0, 1.0} and (q.sum(1) == 1).all()
    np.testing.assert_allclose(q.mean(0), posterior(LOG_P, 0.7), atol=0.03)


def test_a_learned_prior_weighs_the_posterior_and_follows_the_win_rates():
    prior, r = candidates.AnnealedPrior(lambda step: 0.7, newest=0.2), np.array([0.5, 0.3, 0.2], np.float32)
    expected = posterior(LOG_P, 0.7) * r[:, None]
    np.testing.assert_allclose(prior.weights(LOG_P, state=r), expected / expected.sum(0), rtol=1e-5)
    np.testing.assert_allclose(prior.weights(LOG_P, state=prior.init(3)), posterior(LOG_P, 0.7), rtol=1e-5)
    np.testing.assert_allclose(prior.next_state(r, np.array([1.0, 0, 0]), 0), 0.8 * r + [0.2, 0, 0], rtol=1e-6)


def test_an_annealed_balance_is_annealed_with_the_bias_of_balance():
    bias, rate = np.array([0.5, -0.2, 0.0], np.float32), np.array([0.6, 0.4, 0.0], np.float32)
    balance = candidates.AnnealedBalance(rate=0.1, soft=annealed(lambda step: 0.7))
    np.testing.assert_allclose(balance.weights(LOG_P, state=bias), posterior(LOG_P + bias[:, None], 0.7), rtol=1e-5)
    np.testing.assert_allclose(balance.next_state(bias, rate, 5), bias + 0.1 * (1 / 3 - rate), rtol=1e-5)


def test_a_fading_balance_keeps_the_bias_that_it_has_at_the_end():
    balance, rate = candidates.FadingBalance(rate=0.1, steps=10), np.array([0.6, 0.4, 0.0], np.float32)
    for step, share in [(0, 0.9), (4, 0.5), (9, 0.0), (20, 0.0)]:
        moved = balance.next_state(np.zeros(3, np.float32), rate, step)
        np.testing.assert_allclose(moved, share * 0.1 * (1 / 3 - rate), atol=1e-7)
