"""The train step on a mesh: a placement of `mcl_jax.sharding`."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mcl_jax import fsdp
from mcl_jax.mesh import Layout, data_axis, manual_over_data, on_mesh, padded, placed, processes_of, state_shardings
from mcl_jax.sharding import DATA_AXIS, batch_size


class OverMesh:
    """A placement of the train step that is manual over "data" and leaves the other axes to GSPMD.

    Parameters that are on the mesh keep their sharding; others are copied to all its devices. A batch that is smaller
    than the data axis is padded with examples that have no weight. Each of several processes gives its part of the
    batch.

    Args:
      mesh: devices.
    Raises:
      ValueError: if the mesh has no axis "data", or processes share a part of it.
    """

    def __init__(self, mesh: Mesh):
        self.mesh, self.parts = mesh, data_axis(mesh)
        self.processes = processes_of(mesh)
        self.axis_name = DATA_AXIS if self.parts > 1 else None  # XLA refuses sums over an axis of one device
        self.whole = NamedSharding(mesh, PartitionSpec())
        self.by_example = NamedSharding(mesh, PartitionSpec(DATA_AXIS))

    def local_size(self, size: int) -> int:
        """Returns the number of examples per part of the data axis.

        Args:
          size: number of examples that this process gives.
        Raises:
          ValueError: if a batch larger than the axis, or one of several processes, does not divide; names the sizes
            that do.
        """
        size *= self.processes
        if 0 < size < self.parts and self.processes == 1:
            return 1
        if size % self.parts:
            less, more = size - size % self.parts, size + -size % self.parts
            fitting = max(parts for parts in range(1, self.parts) if size % parts == 0)
            raise ValueError(
                f"a batch of {size} examples does not divide over {self.parts} devices along axis {DATA_AXIS!r}; use "
                f"a batch of {f'{less} or ' if less else ''}{more}, or a mesh with {DATA_AXIS}={fitting}"
            )
        return size // self.parts

    def compile(self, function: Callable[..., Any], *, donate: bool) -> "OnMesh":
        """Compiles `function(params, state, batch, real)` on its first call."""
        return OnMesh(self, function, donate=donate)

    def place(self, params: Any, state: Any, batch: Any) -> tuple[Any, Any, Any, Any]:
        """Puts the arguments on the mesh; the last one distinguishes examples of the batch from padding."""
        params = on_mesh(params, self.mesh)
        state = jax.tree.map(placed, state, state_shardings(self.mesh, params, state))
        size = batch_size(batch)
        real: Any = np.arange(self.local_size(size) * self.parts) < size * self.processes
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(batch)):
            real = jax.ShapeDtypeStruct(real.shape, real.dtype)  # the devices of a topology hold no arrays
        batch = padded(batch, self.mesh) if self.processes == 1 else self._from_all(batch)
        return params, state, batch, placed(real, self.by_example)

    def _from_all(self, batch: Any) -> Any:
        """Returns the batch of which each process has a part."""

        def join(x):
            if isinstance(x, jax.ShapeDtypeStruct):
                return placed(
                    jax.ShapeDtypeStruct((x.shape[0] * self.processes, *x.shape[1:]), x.dtype), self.by_example
                )
            return jax.make_array_from_process_local_data(self.by_example, np.asarray(x))

        return jax.tree.map(join, batch)


class OnMesh:
    """A function `(params, state, batch, real) -> (state, metrics)` on a mesh. The state keeps its shardings.

    Args:
      placement: where it runs.
      function: the function; it runs once for each part of the batch, and adds its sums over the data axis.
      donate: whether the state gives up its buffers.
    """

    def __init__(self, placement: OverMesh, function: Callable[..., Any], *, donate: bool):
        self._placement, self._function, self._donate = placement, function, (1,) if donate else ()
        self._compiled: dict[Any, Any] = {}  # by structure of the state and layout of the parameters

    def __call__(self, params: Any, state: Any, batch: Any, real: Any) -> tuple[Any, Any]:
        return self._for(params, state)(params, state, batch, real)

    def lower(self, params: Any, state: Any, batch: Any, real: Any) -> Any:
        """Lowers the function for arrays or shapes."""
        return self._for(params, state).lower(params, state, batch, real)

    def _for(self, params: Any, state: Any) -> Any:
        layout = Layout(self._placement.mesh, fsdp.gathered_of(params))
        key = jax.tree.structure(state), layout.gathered
        if key not in self._compiled:
            whole, by_example = PartitionSpec(), PartitionSpec(DATA_AXIS)
            run = manual_over_data(self._function, layout, (params,), (whole, by_example, by_example), whole)
            out = jax.tree.map(lambda leaf: leaf.sharding, state), self._placement.whole
            self._compiled[key] = jax.jit(run, out_shardings=out, donate_argnums=self._donate)
        return self._compiled[key]
