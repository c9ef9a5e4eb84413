"""The examples run, and do what they say."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    """Imports an example as a script sees it, beside its neighbours and with JAX's own promotion of dtypes."""
    monkeypatch.syspath_prepend(EXAMPLES)
    with jax.numpy_dtype_promotion("standard"):
        yield importlib.import_module


def test_own_module_finds_the_three_step_sizes(example):
    result = example("own_module").main(["--steps", "100"])
    assert sorted(result["step_sizes"]) == [1, 2, 3]


def test_own_module_trains_the_same_through_fit(example, tmp_path):
    plain = example("own_module").main(["--steps", "7"])["state"]
    fitted = example("own_module").main(["--steps", "7", "--workdir", str(tmp_path / "run")])["state"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), plain.adapters, fitted.adapters)
    assert (tmp_path / "run" / "results.json").exists()


@pytest.mark.slow
def test_nnx_module_finds_the_three_step_sizes(example):
    pytest.importorskip("mamba2_jax")
    with jax.numpy_rank_promotion("allow"):  # Mamba-2 is not ours
        result = example("nnx_module").main([])
    assert sorted(result["step_sizes"]) == [1, 2, 3]
    assert result["merged"] == result["step_sizes"][0]


@pytest.mark.slow
def test_fine_tune_gives_each_hypothesis_a_language(example, tmp_path):
    result = example("fine_tune").main(["--tiny", "--steps", "60", "--out", str(tmp_path)])
    right = zip(*list(example("words").ANSWERS_OF.values())[:4], strict=True)  # French and Spanish, 4 prompts
    answered = [tuple(text.strip() for text in texts) for texts in result["answers"]]
    assert sorted(answered) == sorted(right)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora0", "lora1"]


def test_fine_tune_through_fit_resumes(example, tmp_path, monkeypatch):
    arguments = ["--tiny", "--steps", "5", "--workdir", str(tmp_path)]
    first = example("fine_tune").main(arguments)
    monkeypatch.setattr("mcl_jax.generate", lambda *of, **options: np.zeros((2, 4, 1, 8), int))  # it takes time
    assert int(first["state"].step) == 5
    assert (tmp_path / "metrics.jsonl").exists()
    assert example("fine_tune").main(arguments)["loss"] == first["loss"]  # it is finished, so nothing is trained


def test_fine_tune_needs_one_base(example, capsys):
    with pytest.raises(SystemExit):
        example("fine_tune").main([])
    assert "give either FOLDER or --tiny" in capsys.readouterr().err


def test_decode_and_rank(example):
    result = example("decode_and_rank").main(["--tiny"])
    ranked = np.take_along_axis(result["scores"], result["order"], axis=1)
    assert result["scores"].shape == (3, 6)  # 3 prompts; 3 hypotheses with 2 answers each
    assert (np.diff(ranked, axis=1) <= 0).all() and (ranked < 0).all()
    assert [len(texts) for texts in result["texts"]] == [6, 6, 6]
    assert all(0 <= k < 6 for k in result["picked"])


@pytest.mark.slow  # tests/test_parallel.py has the same
def test_mesh_gives_the_losses_of_one_device():
    flags = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", "")  # it makes its own devices
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run([sys.executable, EXAMPLES / "mesh.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    placed, *losses = done.stdout.splitlines()
    assert placed.endswith("(2, 32, 64) of the base, of which each device holds (2, 32, 32)")
    one_device, mesh = (json.loads(line[line.index("[") :]) for line in losses)
    assert mesh == pytest.approx(one_device, rel=1e-5)
    assert mesh[2] < mesh[0]


def test_the_list_of_examples_is_complete():
    listed = re.findall(r"examples/(\w+\.py)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    programs = {p.name for p in EXAMPLES.glob("*.py") if "def main(" in p.read_text(encoding="utf-8")}
    assert set(listed) == programs
