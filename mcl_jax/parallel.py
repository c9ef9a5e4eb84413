"""The train step of `mcl_jax.training` on several devices, with the numbers of one.

    pmap_step   data parallelism: every device holds the base
    mesh_step   data parallelism and a base cut over devices, for one that does not fit on a single device

The state has the same shapes on any number of devices: both take and return it as a replicated value, so that
checkpoints, evaluation and `state.adapters` need no unreplicating. Sums of gradients, weights, wins and tokens are
added over devices before anything is divided, and random keys depend on an example's index in the global batch.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mcl_jax import objectives, training

DATA_AXIS, MODEL_AXIS = "data", "model"


def shard_batch(batch: training.Batch, num_devices: int) -> training.Batch:
    """[B, ...] as [devices, B/devices, ...].

    Raises:
      ValueError: if B does not divide by the number of devices; names both.
    """
    size = training.batch_size(batch)
    if size % num_devices:
        raise ValueError(f"a batch of {size} examples does not divide over {num_devices} devices")
    return jax.tree.map(lambda x: x.reshape(num_devices, size // num_devices, *x.shape[1:]), batch)


def replicate(tree: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """The tree with a copy of each array on every device (a no-op for those that are there already)."""
    mesh = Mesh(np.asarray(jax.local_devices() if devices is None else devices), (DATA_AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


class PmapStep(training.TrainStep):
    """A `TrainStep` whose batches are cut over devices."""

    def __init__(self, update: training.Update, devices: Sequence[jax.Device] | None, *, donate: bool = True):
        self.devices = list(jax.local_devices() if devices is None else devices)

        def pmap(fun, donate_argnums):
            return jax.pmap(
                fun,
                axis_name=update.axis_name,
                devices=self.devices,
                in_axes=(None, None, 0),
                out_axes=None,
                donate_argnums=donate_argnums,
            )

        super().__init__(update, jit=pmap, donate=donate)

    def prepare(self, state, batch):
        sharded = shard_batch(batch, len(self.devices))
        params, rest, _ = super().prepare(state, jax.tree.map(lambda x: x[0], sharded))
        params, rest = replicate((params, rest), self.devices)
        return params, rest, sharded


def pmap_step(
    log_likelihood_fn: training.LogLikelihoodFn,
    objective: objectives.Objective,
    optimizer: optax.GradientTransformation,
    backward: training.Backward = "winner",
    *,
    accumulate: int = 1,
    hypothesis_chunk: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    donate: bool = True,
) -> PmapStep:
    """`make_train_step` on all local devices (or `devices`) by `jax.pmap`: the same call, the same results.

    `step(state, batch)` takes a batch [B, ...] and a state as `TrainState.create` or an earlier step left it.

    Raises:
      ValueError: as `make_train_step`; when called, for a B that does not divide by the number of devices.
    """
    update = training.Update(
        log_likelihood_fn,
        objective,
        optimizer,
        backward,
        accumulate=accumulate,
        hypothesis_chunk=hypothesis_chunk,
        axis_name=DATA_AXIS,
    )
    return PmapStep(update, devices, donate=donate)


class MeshStep(training.TrainStep):
    """A `TrainStep` whose batches are cut over the data axis of a mesh, and whose base may be cut over its others."""

    def __init__(self, update: training.Update, mesh: Mesh, *, donate: bool = True):
        if DATA_AXIS not in mesh.axis_names:
            raise ValueError(f"the mesh needs an axis {DATA_AXIS!r} to cut batches over, it has {mesh.axis_names}")
        self.mesh, self.everywhere = mesh, NamedSharding(mesh, PartitionSpec())
        super().__init__(update, jit=functools.partial(jax.jit, out_shardings=self.everywhere), donate=donate)

    def prepare(self, state, batch):
        if (size := training.batch_size(batch)) % (cuts := self.mesh.shape[DATA_AXIS]):
            raise ValueError(f"a batch of {size} examples does not divide over {cuts} places of axis {DATA_AXIS!r}")
        params, rest, batch = super().prepare(state, batch)
        params, rest = jax.tree.map(self._placed, params), jax.device_put(rest, self.everywhere)
        return params, rest, jax.device_put(batch, NamedSharding(self.mesh, PartitionSpec(DATA_AXIS)))

    def _placed(self, leaf):
        """A leaf as it is if it is on the mesh, else a copy on every device."""
        here = isinstance(leaf, jax.Array) and leaf.sharding.device_set == set(self.mesh.devices.flat)
        return leaf if here else jax.device_put(leaf, self.everywhere)


def mesh_step(
    log_likelihood_fn: training.LogLikelihoodFn,
    objective: objectives.Objective,
    optimizer: optax.GradientTransformation,
    backward: training.Backward = "winner",
    *,
    mesh: Mesh,
    accumulate: int = 1,
    hypothesis_chunk: int | None = None,
    donate: bool = True,
) -> MeshStep:
    """`make_train_step` on a mesh: batches cut over its "data" axis, the base as `base_sharding` cut it.

        mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
        module, params, _ = mcl.models.from_pretrained(path, sharding=mcl.parallel.base_sharding(mesh))

    Leaves of `state.params` keep their sharding; those that are not on the mesh are copied to all of it.

    Raises:
      ValueError: as `make_train_step`; for a mesh without the axis "data"; when called, for a B it does not divide.
    """
    update = training.Update(
        log_likelihood_fn, objective, optimizer, backward, accumulate=accumulate, hypothesis_chunk=hypothesis_chunk
    )
    return MeshStep(update, mesh, donate=donate)


def base_sharding(mesh: Mesh) -> Callable[[Any, tuple[int, ...]], NamedSharding]:
    """`(path, shape) -> sharding` for `from_pretrained`: each matrix cut over the "model" axis.

    It is cut along the longer of its last two axes (those before are of stacked layers) that divides; what has no such
    axis, and vectors, are on every device.

    Raises:
      ValueError: for a mesh without the axis "model".
    """
    if MODEL_AXIS not in mesh.axis_names:
        raise ValueError(f"the mesh needs an axis {MODEL_AXIS!r} to cut the base over, it has {mesh.axis_names}")
    parts = mesh.shape[MODEL_AXIS]

    def sharding(path: Any, shape: tuple[int, ...]) -> NamedSharding:
        matrix = range(len(shape))[-2:] if len(shape) > 1 else ()
        able = [axis for axis in matrix if shape[axis] % parts == 0]
        longest = max(able, key=lambda axis: (shape[axis], axis), default=None)
        return NamedSharding(mesh, PartitionSpec(*(MODEL_AXIS if a == longest else None for a in range(len(shape)))))

    return sharding
