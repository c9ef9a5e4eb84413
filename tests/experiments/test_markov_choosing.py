"""Cheaper choices of winners on Markov chains: kept winners worked by hand, and a small run."""

import json

import numpy as np
import pytest

from experiments.markov import choosing


def test_winners_are_kept_until_they_are_old():
    """The weights of seed 0 prefer another hypothesis at each step, those of seed 1 always the same."""
    visits = np.array([[0, 2], [0, 2], [2, 0], [0, 2], [1, 2]])
    keep, used = choosing.Kept(visits, refresh=2, seeds=2), []
    for step, preferred in enumerate([0, 1, 1, 0, 2]):
        q = np.zeros((2, 3, 2))
        q[0, preferred], q[1, 2] = 1.0, 1.0
        weights = keep(step, q)
        assert (weights.sum(1) == 1).all() and (weights[1, 2] == 1).all()
        used.append(weights[0].argmax(0).tolist())
    # chosen, kept, chosen after two visits, kept, chosen because sequence 1 is new
    assert used == [[0, 0], [0, 0], [1, 1], [1, 1], [2, 2]]


def test_each_epoch_visits_the_sequences_in_a_new_order():
    visits = choosing.visits(70, 5)
    assert visits.shape == (5, 32)
    for epoch in (visits[:2], visits[2:4]):
        assert len(set(epoch.ravel().tolist())) == 64
    assert (visits[:2] != visits[2:4]).any() and visits.max() < 70


def test_a_run(tmp_path, capsys):
    sizes = dict(sequences=96, seeds=2, steps=60, learning_rate=0.2)
    sizes |= dict(tokens=(16, 1), dtypes=("int8",), refresh=(3,), prompts=(12,), candidates=(1, 2), warmup=20)
    config = choosing.ChoosingConfig(workdir=tmp_path, mixtures=("equal",), **sizes)
    choosing.main(config)
    ways = json.loads((tmp_path / "results.json").read_text())["ways"]
    told = ["prompt-12", "prompt-12-best-1", "prompt-12-best-2"]
    assert list(ways) == ["each-visit", "first-16", "first-1", "int8", "every-3-visits", *told]
    assert ways.pop("prompt-12-best-2") == {}  # that is all hypotheses
    purity = {way: np.mean([one["purity"] for one in by["equal"]]) for way, by in ways.items()}
    assert purity["each-visit"] > 0.95 and purity["every-3-visits"] > 0.9
    assert purity["first-1"] < purity["first-16"] and purity["prompt-12-best-1"] > 0.9
    assert purity["int8"] > 0.95
    whole = choosing.learned(config, choosing.mixtures()["equal"], tokens=31, refresh=1)
    np.testing.assert_array_equal(whole, choosing.learned(config, choosing.mixtures()["equal"]))
    before = capsys.readouterr().out
    choosing.main(config)
    assert before.split("Loss above")[1] == capsys.readouterr().out.split("Loss above")[1]


def test_logits_are_rounded_row_by_row():
    logits = np.array([[[1.0, -0.3], [0.01, 0.004]], [[100.0, 0.4], [-2.0, 1.0]]])
    assert choosing.rounded(logits, None) is logits
    of_bfloat16 = choosing.rounded(logits, "bfloat16")
    np.testing.assert_allclose(of_bfloat16, logits, rtol=2**-8)
    assert of_bfloat16.dtype == logits.dtype and not np.array_equal(of_bfloat16, logits)
    expected = [[[127, -38], [127, 51]], [[127, 1], [-127, 64]]] * np.array([[[1], [0.01]], [[100], [2]]]) / 127
    np.testing.assert_allclose(choosing.rounded(logits, "int8"), expected, rtol=1e-12)


def test_the_likeliest_compete_after_a_warmup():
    """The prompt tells the winner of all sequences but the last two, which it deceives."""
    M, K, rng = 24, 3, np.random.default_rng(0)
    kind = rng.permutation(M) % K
    features = np.eye(K, dtype=np.float32)[np.where(np.arange(M) < M - 2, kind, (kind + 1) % K)][None]
    visits = np.arange(M).reshape(6, 4).repeat(2, axis=0)[::-1].reshape(12, 4)
    admit = choosing.Likeliest(visits, features, number=1, warmup=12)
    for step in range(12):
        log_p = np.log(np.eye(K)[kind[visits[step]]].T[None] + 0.1)
        assert admit(step, log_p).all()
    admit.visits = np.arange(M)[None].repeat(13, 0)
    allowed = admit(12, np.zeros((1, K, M)))
    assert (allowed.sum(1) == 1).all()
    right = allowed[0].argmax(0) == kind
    assert right[:-2].all() and not right[-2:].any()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (dict(mixtures=("twelve",)), "--mixtures must be among equal, .*, got twelve"),
        (dict(tokens=(32,)), "--tokens must be from 1 to 31, .* got 32"),
        (dict(refresh=(0,)), "--refresh must be at least 1 visit, got 0"),
        (dict(prompts=(31,)), "--prompts must be from 1 to 30, .* got 31"),
        (dict(candidates=(0,)), "--candidates must be at least 1 hypothesis, got 0"),
        (dict(sequences=31), "--sequences must be at least 32, .* got 31"),
    ],
)
def test_refused(option, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        choosing.ChoosingConfig(workdir=tmp_path, **option)
