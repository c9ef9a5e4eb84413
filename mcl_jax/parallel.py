"""The train step of `mcl_jax.training` on several devices, with the numbers of one.

    pmap_step   data parallelism: every device holds the base
    mesh_step   data parallelism and a base cut over devices, for one that does not fit on a single device

The state has the same shapes on any number of devices: both take and return it as a replicated value, so that
checkpoints, evaluation and `state.adapters` need no unreplicating. Sums of gradients, weights, wins and tokens are
added over devices before anything is divided, and random keys depend on an example's index in the global batch.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from mcl_jax import training
from mcl_jax.mesh import RULES, base_sharding, table
from mcl_jax.sharding import DATA_AXIS, MODEL_AXIS, Replicas, replicate, shard_batch

__all__ = [
    "DATA_AXIS",
    "MODEL_AXIS",
    "RULES",
    "base_sharding",
    "mesh_step",
    "pmap_step",
    "replicate",
    "shard_batch",
    "table",
]


def pmap_step(
    *arguments: Any, devices: Sequence[jax.Device] | None = None, donate: bool = True, **options: Any
) -> training.TrainStep:
    """`make_train_step` on all local devices (or `devices`) by `jax.pmap`: the same call, the same results.

    `step(state, batch)` takes a batch [B, ...] and a state as `TrainState.create` or an earlier step left it.

    Args:
      *arguments, **options: those of `make_train_step`, all but its mesh.
      devices: of this process; all of its local ones by default.
      donate: as in `make_train_step`.
    Raises:
      ValueError: as `make_train_step`; when called, for a B that does not divide by the number of devices.
    """
    return training.TrainStep(training.Update(*arguments, **options), Replicas(devices), donate=donate)


def mesh_step(*arguments: Any, mesh: Mesh, **options: Any) -> training.TrainStep:
    """`make_train_step(..., mesh=mesh)`: batches cut over its "data" axis, the base as `base_sharding` cut it.

        mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
        module, params, _ = mcl.models.from_pretrained(path, sharding=mcl.parallel.base_sharding(mesh))

    Leaves of `state.params` keep their sharding; those that are not on the mesh are copied to all of it.

    Raises:
      ValueError: as `make_train_step`; for a mesh without the axis "data"; when called, for a B it does not divide.
    """
    return training.make_train_step(*arguments, mesh=mesh, **options)
