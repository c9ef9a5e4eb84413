"""The decoding benchmark on the tiny Llama, Hugging Face played by a stand-in. No clock is judged."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.bench_decode import __main__ as bench
from experiments.common.options import parse

LLAMA = Path(__file__).parents[1] / "golden" / "models" / "llama"
STAND_IN = """
import json, pathlib, sys
base, adapters = map(pathlib.Path, sys.argv[1:])
assert (base / "config.json").is_file() and len(list(adapters.iterdir())) == 3, list(adapters.iterdir())
for line in sys.stdin:
    asked = json.loads(line)
    tokens = [[[-1] * asked["new_tokens"] for _ in asked["tokens"]] for _ in range(asked["hypotheses"])]
    print(json.dumps({"seconds": 7.0, "tokens": tokens}), flush=True)
"""


def config_of(*more):
    sizes = "--ks 1 2 --lengths 3 --num-hypotheses 3 --new-tokens 2 --batch 2 --prompt 5 --rank 2 --repeats 2"
    return parse(bench.Config, ["--base", str(LLAMA), *sizes.split(), *more])


@pytest.mark.slow
def test_rows_of_every_k_and_length(tmp_path, capsys):
    bench.main(config_of("--json", str(tmp_path / "rows.json")))
    found = json.loads((tmp_path / "rows.json").read_text())
    assert [(r["k"], r["new_tokens"]) for r in found["rows"]] == [(3, 2), (1, 2), (2, 2), (3, 3)]
    for r in found["rows"]:
        assert r["least"] <= r["seconds"] <= r["most"]
        np.testing.assert_allclose(r["tokens_per_second"], r["k"] * 2 * r["new_tokens"] / r["seconds"])
    assert "tokens/s" in capsys.readouterr().out


def test_beside_another_side(tmp_path, monkeypatch, capsys):
    (tmp_path / "side.py").write_text(STAND_IN)
    monkeypatch.setattr(bench, "SCRIPT", tmp_path / "side.py")
    found = bench.measure(config_of("--torch", sys.executable))
    ours, theirs = found["rows"][:2]
    assert [ours["side"], theirs["side"], theirs["seconds"]] == ["mcl_jax", "transformers + peft", 7.0]
    np.testing.assert_allclose(found["speedup"], 7.0 / ours["seconds"])
    assert found["same_tokens"] == 0.0


def test_a_side_that_dies_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "side.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(bench, "SCRIPT", tmp_path / "side.py")
    with pytest.raises(RuntimeError, match="side.py stopped with 3"):
        bench.measure(config_of("--torch", sys.executable))


def test_refusals():
    with pytest.raises(ValueError, match="--repeats must be at least 1"):
        bench.Config(repeats=0)
