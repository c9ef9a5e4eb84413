"""The README's examples run as they stand."""

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


def test_a_language_model_from_hugging_face(tmp_path):
    folder = Path(__file__).parent / "golden" / "models" / "llama"
    names = {"folder": folder, "out": tmp_path, "prompts": np.array([[7, 8, 9], [10, 11, 12]])}
    exec(EXAMPLES[1], names)
    assert names["answers"].shape == (3, 2, 1, 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora0", "lora1", "lora2"]


@pytest.mark.parametrize("name", re.findall(r"\]\(([\w./-]+)\)", README.read_text(encoding="utf-8")))
def test_files_that_it_links_exist(name):
    assert (README.parent / name).exists()
