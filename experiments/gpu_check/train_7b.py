"""Train steps of a model of Llama-2-7B's size."""

from collections.abc import Iterator
from typing import Any

from experiments.gpu_check import costs, models

ROWS = [(1, "winner"), (3, "winner"), (5, "winner"), (3, "all")]


def steps(quick: bool) -> Iterator[dict[str, Any]]:
    """Yields the rows measured so far."""
    if quick:
        return costs.steps(models.TINY, ROWS[:2], size=2, length=16, remat=True, repeats=2)
    return costs.steps(models.LLAMA_7B, ROWS, size=8, length=512, remat=True, repeats=5, trace=(5, "winner"))
