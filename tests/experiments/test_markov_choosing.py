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
    config = choosing.ChoosingConfig(workdir=tmp_path, mixtures=("equal",), tokens=(16, 1), refresh=(3,), **sizes)
    choosing.main(config)
    ways = json.loads((tmp_path / "results.json").read_text())["ways"]
    assert list(ways) == ["each-visit", "first-16", "first-1", "every-3-visits"]
    purity = {way: np.mean([one["purity"] for one in by["equal"]]) for way, by in ways.items()}
    assert purity["each-visit"] > 0.95 and purity["every-3-visits"] > 0.9
    assert purity["first-1"] < purity["first-16"]
    whole = choosing.learned(config, choosing.mixtures()["equal"], tokens=31, refresh=1)
    np.testing.assert_array_equal(whole, choosing.learned(config, choosing.mixtures()["equal"]))
    before = capsys.readouterr().out
    choosing.main(config)
    assert before.split("Loss above")[1] == capsys.readouterr().out.split("Loss above")[1]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (dict(mixtures=("twelve",)), "--mixtures must be among equal, .*, got twelve"),
        (dict(tokens=(32,)), "--tokens must be from 1 to 31, .* got 32"),
        (dict(refresh=(0,)), "--refresh must be at least 1 visit, got 0"),
        (dict(sequences=31), "--sequences must be at least 32, .* got 31"),
    ],
)
def test_refused(option, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        choosing.ChoosingConfig(workdir=tmp_path, **option)
