"""`make gpu-check` at tiny sizes on a CPU: its sections run, and one that fails costs itself alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.gpu_check import __main__ as gpu_check
from experiments.gpu_check import costs, models

SIZES = {
    "hidden_size": 4,
    "intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 7,
}


def test_sections_and_a_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
    monkeypatch.setitem(gpu_check.SECTIONS, "no_such_section", (30, {}))
    monkeypatch.chdir(Path(__file__).parents[2])
    line = ["--quick", "--json", str(tmp_path / "found.json"), "--sections", "hardware", "no_such_section", "decode"]
    assert gpu_check.main(gpu_check.parse(line)) == 1
    results = json.loads((tmp_path / "found.json").read_text())
    assert list(results) == ["hardware", "no_such_section", "decode"]
    assert results["hardware"]["platform"] == "cpu" and results["hardware"]["copy_gb_per_second"] >= 0
    assert "no_such_section" in results["no_such_section"]["error"]
    assert [row["k"] for row in results["decode"]["rows"]] == [1, 3, 1] and "error" not in results["decode"]
    assert "failed: no_such_section" in capsys.readouterr().out


def test_sections_that_no_longer_fit_are_named(capsys):
    assert gpu_check.main(gpu_check.parse(["--quick", "--sections", "decode", "--seconds", "1"])) == 0
    assert "no time left" in capsys.readouterr().out


@pytest.mark.parametrize("section", ["train", "equal", "attention"])
@pytest.mark.slow
def test_the_other_sections(section):
    command = [sys.executable, "-m", "experiments.gpu_check", "--section", section, "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0 and gpu_check.RESULT in done.stdout, done.stderr


def test_flops_of_a_forward_pass():
    """Counted by hand: 2 per weight and token, and two products of T x T for each layer."""
    layers, head = models.forward_flops(SIZES, 8)
    weights = 3 * (4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 12)
    assert layers == 8 * 2 * weights + 3 * 2 * (2 * 8 * 8 * 4)
    assert head == 2 * 4 * 7 * 6  # the last six of eight tokens are targets


def test_flops_of_a_step():
    forward = sum(models.forward_flops(SIZES, 8))
    one = costs.step_flops(SIZES, 8, 5, 1, "winner", remat=False)
    assert costs.step_flops(SIZES, 8, 5, 3, "all", remat=False) == 3 * one
    assert costs.step_flops(SIZES, 8, 5, 3, "winner", remat=False) == 5 * 3 * forward + one
    assert costs.step_flops(SIZES, 8, 5, 1, "all", remat=True) == one + 5 * models.forward_flops(SIZES, 8)[0]
    assert one > 2 * 5 * forward
