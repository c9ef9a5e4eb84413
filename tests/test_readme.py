"""The README's examples run as they stand."""

import importlib
import re
from pathlib import Path

import jax
import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_loss_on_a_module_of_your_own():
    names = {}
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam is not written for strict promotion
        exec(EXAMPLES[0], names)
    assert names["metrics"]["win_rate"].shape == (5,)
    assert np.isfinite(names["metrics"]["loss"])
    assert int(names["state"].step) == 1


def test_a_language_model_from_hugging_face(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(README.parent / "examples")
    texts = re.findall(r'"( ?[^"]* [^"]*)"', EXAMPLES[1].split("module, params")[0])
    folder = importlib.import_module("tiny_llama").make(tmp_path / "base", texts)
    names = {"folder": folder, "out": tmp_path / "out"}
    with jax.numpy_dtype_promotion("standard"):
        exec(EXAMPLES[1], names)
    assert names["tokens"].shape == (2, 1, 1, 8)
    assert set(capsys.readouterr().out.splitlines()) == {"c'est un chat", "es un gato"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["lora0", "lora1"]


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_short(example):
    assert len(example.splitlines()) <= 30


def test_readme_is_short():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert max(len(line) for line in lines if line.startswith("|")) <= 100
