"""The Markov experiment, end to end at a tiny size. Chains of other sizes, several seeds and devices, and going on."""

import json

import jax
import numpy as np
import pytest

from experiments.markov import report, theory
from experiments.markov.__main__ import main
from experiments.markov.config import Config
from experiments.markov.training import Problem, sample_mixture

THREE = [[[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]], [[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]]]


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam is not written for strict promotion
        yield


def tiny(workdir, tmp_path, **changes):
    chains = tmp_path / "chains.json"
    chains.write_text(json.dumps(THREE))
    sizes = dict(steps=5, batch_size=6, seq_len=7, eval_every=3, eval_sequences=11, final_sequences=11)
    return Config.from_options(workdir=tmp_path / workdir, transitions=chains, num_hypotheses=3, **(sizes | changes))


@pytest.mark.parametrize(
    ("seeds", "shared_rank"), [((2,), 96), pytest.param((1, 2), 0, marks=pytest.mark.slow, id="seeds")]
)
def test_run_leaves_what_the_contract_names(tmp_path, capsys, monkeypatch, seeds, shared_rank):
    monkeypatch.setattr("experiments.markov.config.NUM_LAYERS", 1)  # half as much to compile
    config = tiny("run", tmp_path, seed=seeds, shared_rank=shared_rank)
    main(config)
    results = json.loads((config.workdir / "results.json").read_text())
    assert {"mle", "wta_lower", "wta_upper"} <= results["bounds"].keys()
    assert np.shape(results["mle"]["transition_matrix"]) == (3, 3)
    assert np.shape(results["targets"]["first_transition"]) == (3, 3)
    assert np.shape(results["mcl"]["transition_matrices"]) == (3, 3, 3)
    assert np.shape(results["mcl"]["total_variation"]) == (2,)
    assert np.sum(results["mcl"]["win_rate"]) == pytest.approx(1.0)
    assert results["seconds"] > 0 and [run["seed"] for run in results["seeds"]] == list(seeds)
    assert {path.name for path in (config.workdir / "figures").iterdir()} == {"loss.png", "transitions.png"}
    steps = [json.loads(line)["step"] for line in (config.workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 3, 5] * 2 * len(seeds)
    capsys.readouterr()
    main(config)
    assert "is finished" in capsys.readouterr().out


def test_several_seeds_are_averaged(tmp_path):
    """Means, standard deviations over n - 1, and each seed alone; hypotheses are in the order of their chains."""
    config, chains = tiny("run", tmp_path, seed=(1, 2)), np.array(THREE)

    def trained(loss, learned):
        wins = np.array([[0.5, 0.0, 0.0], [0.0, 0.25, 0.25]])
        return dict(eval_loss=loss, standard_error=loss / 10, win_matrix=wins, transition_matrices=learned, seconds=7.0)

    runs = [trained(loss, chains[[1, 0, 0]]) for loss in (1.0, 3.0)]
    bounds = theory.bounds(config.chains, config.data.seq_len, num_hypotheses=config.k)
    found = report.summarise(config, bounds, {"mle": runs, "mcl": runs})
    for method in ("mle", "mcl"):
        assert found[method]["eval_loss"] == 2.0
        assert found[method]["spread"]["eval_loss"] == pytest.approx(np.sqrt(2))
        assert [(one["seed"], one[method]["eval_loss"]) for one in found["seeds"]] == [(1, 1.0), (2, 3.0)]
    np.testing.assert_allclose(found["mcl"]["transition_matrices"][:2], chains)
    assert found["mcl"]["win_rate"][1] == 0.5 and found["mcl"]["covered"] is True
    assert found["seconds"] == 28.0 and found["standard_error"] == pytest.approx(0.3)


def test_a_shared_part_keeps_the_rank_of_all_hypotheses_together(tmp_path):
    config = tiny("run", tmp_path, shared_rank=96)
    mcl, mle = (Problem(config, seed=0, shared=shared).hypotheses.config for shared in (True, False))
    assert (mcl.rank, mcl.shared_rank, mcl.alpha) == (32, 96, 128) and (mle.rank, mle.shared_rank, mle.alpha) == (
        64,
        0,
        64,
    )
    with pytest.raises(ValueError, match="--shared-rank must be 0 or a multiple of --num-hypotheses 3 .* got 97"):
        tiny("run", tmp_path, shared_rank=97)


@pytest.mark.slow  # tests/test_parallel.py has the same of the step alone
def test_devices_change_nothing(tmp_path):
    losses = []
    for devices in (1, 2):
        config = tiny(f"run{devices}", tmp_path, devices=devices)
        main(config)
        losses.append(json.loads((config.workdir / "results.json").read_text())["mcl"]["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_dropout_and_how_winners_are_chosen_reach_the_step(tmp_path):
    after = {}
    for options in ({}, {"assign": "noisy"}, {"dropout": 0.5}, {"dropout": 0.5, "assign": "noisy"}):
        config = tiny("run", tmp_path, objective="relaxed", **options)
        problem, loss, optimizer = Problem(config, seed=0), config.objective.make(), config.training.optimizer()
        state = problem.initial_state(3, optimizer, loss)
        after[tuple(options)] = problem.train_chunk(loss, optimizer, "all")(state, 4)[0].adapters
    plain, other, clean_scores, noisy = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(a)]) for a in after.values()
    )
    np.testing.assert_array_equal(plain, other)
    for one, other in ((plain, noisy), (noisy, clean_scores), (plain, clean_scores)):
        assert np.abs(one - other).max() > 1e-6


def test_samples_follow_the_chains(key):
    with jax.numpy_rank_promotion("allow"):
        tokens, z = map(np.asarray, sample_mixture(key, jax.numpy.asarray(THREE), 20_000, 5))
    for n, chain in enumerate(THREE):
        pairs = np.stack([tokens[z == n, :-1].ravel(), tokens[z == n, 1:].ravel()])
        counts = np.zeros((3, 3))
        np.add.at(counts, tuple(pairs), 1)
        np.testing.assert_allclose(counts / counts.sum(1, keepdims=True), chain, atol=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(batch_size=5, devices=2), "--batch-size must be a multiple of --devices, got 5 for 2"),
        (dict(seq_len=1), "--seq-len must be at least 2"),
        (dict(steps=0), "--steps must be at least 1"),
        (dict(dropout=1.0), "dropout must be in"),
    ],
)
def test_refuses(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny("run", tmp_path, **changes)
