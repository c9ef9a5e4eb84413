"""The largest batch that fits, and the best mesh, by a few compilations."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from experiments.common.devices import Axes
from experiments.plan.chips import Topology
from experiments.plan.measure import Measured

MOST_ROWS = 4096


@dataclasses.dataclass(frozen=True)
class Largest:
    """The largest batch that fits.

    Attributes:
      rows: number of examples that each part of the data axis holds at a time.
      compiled: whether this number was compiled and fits, and one more was compiled and does not. Otherwise the number
        is on a straight line through the programs that were compiled.
    """

    rows: int
    compiled: bool


def largest_rows(first: tuple[int, int], memory: int, compile_rows: Callable[[int], int], most: int) -> Largest:
    """Finds the largest number of rows whose program fits; bytes grow nearly in proportion to rows.

    Args:
      first: a number of rows, and the bytes of its program.
      memory: bytes of the chip.
      compile_rows: returns the bytes of a program by its number of rows.
      most: number of further compilations.
    """
    known = dict([first])
    for _ in range(most):
        low, high = _bracket(known, memory)
        if high - low <= 1:
            break
        guess = min(max(_crossing(known, memory), low + 1), high - 1)
        known[guess] = compile_rows(guess)
    low, high = _bracket(known, memory)
    return Largest(min(max(_crossing(known, memory), low), high - 1), high - low <= 1)


def _bracket(known: Mapping[int, int], memory: int) -> tuple[int, int]:
    """Returns the largest number of rows that fits, and the smallest one that does not."""
    return (
        max((rows for rows, size in known.items() if size <= memory), default=0),
        min((rows for rows, size in known.items() if size > memory), default=MOST_ROWS + 1),
    )


def _crossing(known: Mapping[int, int], memory: int) -> int:
    """Returns where the line through the two programs nearest to the memory crosses it; a factor of 2 for one."""
    nearest = sorted(known.items(), key=lambda point: abs(point[1] - memory))[:2]
    if len(nearest) == 1:
        ((rows, size),) = nearest
        return 2 * rows if size <= memory else rows // 2
    (a, size_a), (b, size_b) = sorted(nearest)
    return int(a + (memory - size_a) / max((size_b - size_a) / (b - a), 1.0))


def meshes(devices: int) -> list[Axes]:
    """Returns all ways to divide devices into data and model."""
    return [Axes(data=devices // model, model=model) for model in range(1, devices + 1) if devices % model == 0]


def default_mesh(devices: int, base_bytes: int, memory: int, size: int) -> Axes:
    """Returns the mesh with the largest data axis that divides a micro-batch and leaves half of each chip free.

    Args:
      devices: number of chips.
      base_bytes: bytes of the whole base.
      memory: bytes of a chip.
      size: number of examples of a micro-batch.
    """
    roomy = (axes for axes in meshes(devices) if size % axes.data == 0 and base_bytes / axes.model < memory / 2)
    return next(roomy, meshes(devices)[-1])


def best(tried: Sequence[tuple[Axes, Measured]], chips: Topology) -> Axes:
    """Returns the mesh that fits and needs the least time; of equal ones (2 %), and if none fits, the smallest one.

    Args:
      tried: meshes and their train steps.
      chips: the topology.
    """
    seconds = {axes: max(one.seconds(chips).values()) for axes, one in tried}
    fitting = [(axes, one) for axes, one in tried if one.fits(chips.chip.memory)]
    quickest = min((seconds[axes] for axes, _ in fitting), default=0.0)
    equal = [(axes, one) for axes, one in fitting if seconds[axes] <= 1.02 * quickest]
    return min(equal or tried, key=lambda mesh: mesh[1].total)[0]
