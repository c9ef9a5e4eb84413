"""The decoding benchmark on the tiny Llama. No clock is judged."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.bench_decode import __main__ as bench
from experiments.common.options import parse

LLAMA = Path(__file__).parents[1] / "golden" / "models" / "llama"


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


def test_refusals():
    with pytest.raises(ValueError, match="--repeats must be at least 1"):
        bench.Config(repeats=0)
