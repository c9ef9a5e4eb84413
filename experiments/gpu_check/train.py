"""Train steps of a model of SmolLM2-135M's size, with the kernels of the winner step at K=5."""

from collections.abc import Iterator
from typing import Any

from experiments.gpu_check import costs, models

ROWS = [(1, "winner"), (2, "winner"), (3, "winner"), (5, "winner"), (8, "winner"), (5, "sampled"), (5, "all")]


def steps(quick: bool) -> Iterator[dict[str, Any]]:
    """Yields the rows measured so far."""
    if quick:
        rows = [(1, "winner"), (3, "winner"), (3, "all")]
        return costs.steps(models.TINY, rows, size=2, length=16, remat=False, repeats=2, trace=rows[1])
    return costs.steps(models.SMOLLM2_135M, ROWS, size=16, length=512, remat=False, repeats=10, trace=(5, "winner"))
