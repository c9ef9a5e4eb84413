"""The README's example runs as it stands."""

import re
from pathlib import Path

import jax
import numpy as np

README = Path(__file__).parents[1] / "README.md"


def test_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam is not written for strict promotion
        exec(example, names)
    assert names["metrics"]["win_rate"].shape == (5,)
    assert np.isfinite(names["metrics"]["loss"])
    assert int(names["state"].step) == 1
