"""The comparison with torch and PEFT; stand-ins play both sides. No clock is judged."""

import importlib.util
import json
import sys

import numpy as np
import pytest

from experiments.bench_peers import __main__ as bench
from experiments.bench_peers import ours, report, sides
from experiments.bench_peers.config import OURS, PEER

STAND_IN = """
import json, sys
side, mode = sys.argv[1:3]
for line in sys.stdin:
    asked = json.loads(line)
    assert asked.get("way", "winner") in {"ours": ("winner", "all"), "peer": ("graphs", "winners")}[side] + ("winner",)
    off = mode == "loss" and side == "peer"
    tokens = [[[mode == "tokens" and side == "peer"] * 10] * asked.get("hypotheses", 1)]
    if mode == "dead" and side == "peer" and asked["do"] == "step":
        raise SystemExit(3)
    answer = {
        "begin": {"losses": [7.0, 6.0 + 0.01 * off]},
        "step": {"seconds": {"ours": 2.0, "peer": 3.0}[side], "loss": 6.0},
        "decode": {"seconds": {"ours": 1.0, "peer": 4.0}[side], "tokens": tokens},
        "about": {"versions": {side: "1"}, "threads": 2},
    }[asked["do"]]
    print(json.dumps(answer), flush=True)
"""
SIZES = tuple("--ks 1 3 --lengths 5 7 --batch 2 --prompt 4 --new-tokens 2 --repeats 2 --vocab 31".split(" "))  # noqa: SIM905


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Returns a function that chooses what the stand-ins do wrong."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    base = {"family": "Llama", "parameters": 10**6, "vocab": 31, "targets": ("q_proj",)}
    monkeypatch.setattr(ours, "make", lambda config, folder: base)

    def choose(mode="well"):
        names = {OURS: "ours", PEER: "peer"}
        command = lambda side, config: [sys.executable, str(tmp_path / "stand_in.py"), names[side], mode]
        monkeypatch.setattr(sides, "command_of", command)

    choose()
    return choose


def test_rows_ratios_and_files(stand_in, tmp_path, capsys):
    bench.cli([*SIZES, "--json", str(tmp_path / "peers.json"), "--figure", str(tmp_path / "peers.png")])
    found = json.loads((tmp_path / "peers.json").read_text())
    train = [(r["t"], r["k"], r["way"]) for r in found["rows"] if r["part"] == "train"]
    of_three = ("winner", "all", "graphs", "winners")
    assert train == [
        (t, k, way) for t in (5, 7) for k in (1, 3) for way in (("winner", "graphs") if k == 1 else of_three)
    ]
    rows = {(r["part"], r["k"], r["way"], r.get("t")): r for r in found["rows"]}
    assert rows["train", 3, "all", 7]["faster_than"]["winners"] == {"median": 1.5, "least": 1.5, "most": 1.5}
    assert rows["train", 3, "graphs", 7]["faster_than"] == {}
    assert rows["decode", 3, OURS, None]["faster_than"][PEER]["median"] == 4.0
    assert rows["decode", 3, OURS, None]["cost"]["median"] == 1.0
    assert len(rows["decode", 1, PEER, None]["times"]) == 2
    assert rows["train", 3, "winners", 7]["peak_bytes"] > 2**20 and rows["train", 3, "winners", 5]["peak_bytes"] is None
    assert {"cores", "load_before", "load_after"} <= found["machine"].keys()
    assert (tmp_path / "peers.png").stat().st_size > 1000
    shown = capsys.readouterr().out
    assert "winners 1.50× (1.50 to 1.50)" in shown and "torch + PEFT, graphs" in shown and "load" in shown


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("loss", "losses of graphs and winner at K=1 T=5"),
        ("tokens", "of the tokens"),
        ("dead", "torch . PEFT stopped with 3"),
    ],
)
def test_what_is_not_equal_or_dies_is_an_error(stand_in, mode, message):
    stand_in(mode)
    with pytest.raises((ValueError, RuntimeError), match=message):
        bench.main(bench.parse(SIZES))


def test_ratios_are_of_rounds():
    found = report.ratio({"times": [1.0, 2.0, 4.0]}, {"times": [3.0, 3.0, 4.0]})
    assert found == {"median": 1.5, "least": 1.0, "most": 3.0}


def test_refusals(capsys):
    for wrong, message in [
        (("--repeats", "0"), "--repeats must be at least 1"),
        (("--ks", "0"), "every value of --ks must be at least 1"),
        (("--d-model", "7", "--num-heads", "2"), "--d-model must be a multiple of --num-heads"),
        (("--json", "no/such/folder.json"), "--json must be a file in an existing folder"),
    ]:
        with pytest.raises((SystemExit, ValueError), match=message):
            bench.parse([*wrong])


@pytest.mark.slow
def test_our_side_and_torch_where_it_is_installed(tmp_path):
    parts = ("train", "decode", "memory") if importlib.util.find_spec("peft") else ()
    config = bench.parse(["--quick", "--repeats", "1"])
    if parts:
        assert len(bench.main(config)["rows"]) == 8
        return
    ours.make(config, tmp_path)
    with sides.Side(OURS, config, tmp_path) as side:
        request = {"hypotheses": 3, "tokens": np.arange(10).reshape(2, 5).tolist(), "learning_rate": 1e-3}
        losses = [side.ask(do="begin", cell=way, way=way, **request)["losses"] for way in ("winner", "all")]
        assert losses[0][1] < losses[0][0]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
        asked = {"tokens": [[1, 2]], "mask": [[1, 1]], "new_tokens": 3, "num_beams": 1, "hypotheses": 3}
        assert np.shape(side.ask(do="decode", **asked)["tokens"]) == (3, 1, 3)
