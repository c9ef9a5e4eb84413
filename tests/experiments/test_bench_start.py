"""The benchmark of the first step, on the tiny Llama. No clock is judged."""

import json
from pathlib import Path

import pytest

from experiments.bench_start import __main__ as bench
from experiments.common.options import parse

LLAMA = Path(__file__).parents[1] / "golden" / "models" / "llama"


@pytest.mark.slow
def test_every_part_with_every_cache(tmp_path, capsys):
    sizes = "--num-hypotheses 3 --batch 2 --length 5 --rank 2 --repeats 2"
    bench.main(parse(bench.Config, ["--base", str(LLAMA), *sizes.split(), "--json", str(tmp_path / "rows.json")]))
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    parts = [*bench.PARTS, "to the first step"]
    assert [(row["cache"], row["part"]) for row in rows] == [(c, p) for c in bench.CACHES for p in parts]
    assert all(0 < row["least"] <= row["median"] <= row["most"] for row in rows)
    assert "cache: filled" in capsys.readouterr().out


def test_the_time_to_the_first_step_is_that_of_all_parts_before_the_second():
    starts = [{part: n + i for n, part in enumerate(bench.PARTS)} for i in (0.0, 1.0, 5.0)]
    of = {row["part"]: row for row in bench.rows({"none": starts})}
    assert of["to the first step"] == {
        "cache": "none",
        "part": "to the first step",
        "median": 10,
        "least": 6,
        "most": 26,
    }
    assert of["second step"]["median"] == 5


def test_a_start_that_fails_is_reported(tmp_path):
    with pytest.raises(RuntimeError, match=r"a start failed: .*nowhere"):
        bench.started(bench.Config(base=tmp_path / "nowhere"), None)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--json must be a file in an existing folder"):
        bench.Config(json=tmp_path / "nowhere" / "rows.json")
