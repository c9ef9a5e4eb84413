"""The devices of a run: `--mesh data=4,model=2`, of one process or of several (`--distributed`)."""

import dataclasses
import math
import re
from typing import Self

import jax
import numpy as np
from jax.sharding import Mesh

from mcl_jax import hosts
from mcl_jax.parallel import DATA_AXIS, MODEL_AXIS

SYNTAX = re.compile(rf"({DATA_AXIS}|{MODEL_AXIS})=(\d+)")


@dataclasses.dataclass(frozen=True)
class Axes:
    """Sizes of the axes of a mesh.

    Attributes:
      data: number of parts of each batch.
      model: number of parts of the base.
    """

    data: int = 1
    model: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads "data=4,model=2"; an axis that is left out has size 1.

        Raises:
          ValueError: if the text is something else.
        """
        matches = [SYNTAX.fullmatch(part.strip()) for part in text.split(",")]
        sizes = {match[1]: int(match[2]) for match in matches if match}
        if not all(matches) or len(sizes) < len(matches) or min(sizes.values()) < 1:
            raise ValueError(f'--mesh must be like "data=4,model=2" with sizes of at least 1, got {text!r}')
        return cls(**sizes)

    @property
    def size(self) -> int:
        """Number of devices."""
        return self.data * self.model


def default_axes(micro_batch: int) -> Axes:
    """Returns a data axis of all accelerators, as many as divide a micro-batch; on a CPU, of one device.

    Several processes use all their devices, whatever they are.
    """
    devices = jax.devices()
    if hosts.several():
        return Axes(data=len(devices))
    if devices[0].platform == "cpu":
        return Axes()
    return Axes(data=math.gcd(len(devices), micro_batch))


def check_axes(axes: Axes, micro_batch: int) -> None:
    """Raises a ValueError if there are fewer devices than the axes need, or if several processes cannot share them."""
    if hosts.several():
        _check_shared(axes, micro_batch)
    if axes.size > 1 and axes.size > (available := len(jax.devices())):
        raise ValueError(f"--mesh needs {axes.size} devices, but there are {available}")


def mesh_of(axes: Axes) -> Mesh | None:
    """Returns the mesh on the first devices; None for one device."""
    if axes.size == 1:
        return None
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices[: axes.size]).reshape(axes.data, axes.model), (DATA_AXIS, MODEL_AXIS))


def _check_shared(axes: Axes, micro_batch: int) -> None:
    """Raises a ValueError unless each process gets the same number of whole rows of the mesh and of examples."""
    total, own = len(jax.devices()), jax.local_device_count()
    if axes.size != total or own % axes.model:
        raise ValueError(
            f"--mesh must use all {total} devices of the {jax.process_count()} processes, and model must divide the "
            f"{own} devices of each, got data={axes.data},model={axes.model}"
        )
    if micro_batch % axes.data:
        raise ValueError(
            f"with several processes, --batch-size divided by --accumulate must be a multiple of data={axes.data} in "
            f"--mesh, got {micro_batch}"
        )
