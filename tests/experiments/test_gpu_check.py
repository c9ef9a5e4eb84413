"""`make gpu-check` at tiny sizes on a CPU: its sections run, and one that fails costs itself alone."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.gpu_check import __main__ as gpu_check
from experiments.gpu_check import costs, equal, models
from experiments.gpu_check import tests as gpu_tests

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
    line = ["--quick", "--json", str(tmp_path / "found.json"), "--sections", "no_such_section", "decode"]
    assert gpu_check.main(gpu_check.parse(line)) == 1
    results = json.loads((tmp_path / "found.json").read_text())
    assert list(results) == ["no_such_section", "decode"]
    assert "no_such_section" in results["no_such_section"]["error"]
    assert [row["k"] for row in results["decode"]["rows"]] == [1, 3, 1] and "error" not in results["decode"]
    assert "failed: no_such_section" in capsys.readouterr().out


def test_the_hardware(capsys):
    gpu_check.section("hardware", quick=True)
    found = json.loads(capsys.readouterr().out.splitlines()[-1].removeprefix(gpu_check.RESULT))
    assert found["platform"] == "cpu" and found["copy_gb_per_second"] >= 0


def test_sections_that_no_longer_fit_are_named(capsys):
    assert gpu_check.main(gpu_check.parse(["--quick", "--sections", "decode", "--seconds", "1"])) == 0
    assert "no time left" in capsys.readouterr().out


def test_results_go_to_a_new_folder_and_nan_is_null(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "run", lambda *_: {"difference": float("nan"), "error": "AssertionError"})
    file = tmp_path / "runs" / "found.json"
    assert gpu_check.main(gpu_check.parse(["--json", str(file), "--sections", "equal"])) == 1
    assert json.loads(file.read_text())["equal"] == {"difference": None, "error": "AssertionError"}


def test_skipped_sections_are_not_called_passed(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "run", lambda *_: {})
    times = iter([0, 0, 1000])
    monkeypatch.setattr(gpu_check.time, "monotonic", lambda: next(times))
    assert gpu_check.main(gpu_check.parse(["--sections", "equal", "resume"])) == 0
    printed = capsys.readouterr().out
    assert "skipped, no time left: resume" in printed and "all sections passed" not in printed


def test_a_late_section_ends_with_all_that_it_started(tmp_path, monkeypatch):
    script = tmp_path / "python"
    lines = ["#!/bin/sh", f"sleep 300 & echo $! > {tmp_path}/child", f"echo '{gpu_check.RESULT}" + """{"rows": 3}'"""]
    script.write_text("\n".join([*lines, f"printf '{gpu_check.RESULT}{{\"rows\": '", "wait"]))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    result = gpu_check.run("equal", gpu_check.parse(["--quick"]), 2)
    assert result["rows"] == 3 and result["error"] == "stopped after 2 s"
    status = Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/stat")
    until = time.monotonic() + 20  # a killed process ends when it next runs
    while alive(status) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(status)


def alive(status):
    try:
        return status.read_text().split(")")[-1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_machine_without_a_gpu_is_refused():
    with pytest.raises(SystemExit, match="needs a GPU, and jax found none"):
        gpu_check.section("hardware", quick=False)


@pytest.mark.parametrize("xdist", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_failed_test_fails_its_section(tmp_path, monkeypatch, xdist):
    if not xdist:
        monkeypatch.setattr(gpu_tests.importlib.util, "find_spec", lambda name: None)
    file = tmp_path / "test_two.py"
    file.write_text("def test_right():\n    pass\n\n\ndef test_wrong():\n    assert 2 == 3\n")
    monkeypatch.setattr(gpu_tests, "FILES", (str(file),))
    steps = gpu_tests.steps(quick=True)
    result = next(steps)
    with pytest.raises(AssertionError, match="'not memory': 'pytest ended with status 1'"):
        next(steps)
    assert "test_two.py::test_wrong" in result["failed"][0] and len(result["failed"]) == 1
    assert result["passed"] == 1


@pytest.mark.slow
def test_tests_that_have_no_time_are_not_lost(tmp_path, monkeypatch):
    file = tmp_path / "test_two.py"
    file.write_text("import time\n\n\ndef test_right():\n    pass\n\n\ndef test_endless():\n    time.sleep(99)\n")
    monkeypatch.setattr(gpu_tests, "FILES", (str(file),))
    monkeypatch.setattr(gpu_tests.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(gpu_tests, "SECONDS", 20)
    steps = gpu_tests.steps(quick=True)
    stopped = {"not memory": "pytest was stopped after 20 s"}
    assert next(steps) == {"passed": 1, "failed": [], "ended": stopped}
    with pytest.raises(AssertionError, match="stopped after 20 s"):
        next(steps)


@pytest.mark.parametrize("leaf", [0, 1, 2])
def test_nan_in_any_leaf_is_a_difference(leaf):
    expected = [np.ones(3), np.full(5, 2.0), np.ones(2)]
    actual = [x.copy() for x in expected]
    actual[leaf][1] = np.nan
    assert np.isnan(equal.difference(actual, expected))
    assert equal.difference(expected, expected) == 0


OUT_OF_MEMORY = """
import json, jax
from experiments.gpu_check import costs, models
timed, errors = costs.timed, iter([jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")])
def short(*arguments):
    for error in errors:
        raise error
    return timed(*arguments)
costs.timed = short
rows = [(1, "winner"), (3, "winner")]
*_, result = costs.steps(models.TINY, rows, size=2, length=16, remat=False, repeats=2)
print(json.dumps(result))
"""


@pytest.mark.slow
def test_a_first_row_without_memory_costs_itself_alone():
    command = [sys.executable, "-c", OUT_OF_MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)["rows"]
    assert "out of memory" in first["error"] and second["seconds"] > 0 and second["relative_to_k1"] is None


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
