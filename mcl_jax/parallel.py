"""The train step of `mcl_jax.training` on several devices, with the same results as on one device.

    pmap_step   data parallelism; every device holds the base
    mesh_step   data parallelism with a base that is sharded over devices, if it does not fit on one of them

The state has the same shapes on any number of devices, so checkpoints, evaluation and `state.adapters` need no
unreplicating. It is replicated, except on a mesh with an axis "model", where adapters and their copies in the optimizer
are sharded like their kernels. Sums of gradients, weights, wins and tokens are added over devices before anything is
divided, and random keys depend on an example's index in the global batch.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from mcl_jax import training
from mcl_jax.mesh import RULES, base_sharding, table
from mcl_jax.sharding import DATA_AXIS, MODEL_AXIS, Replicas, replicate, shard_batch
from mcl_jax.update import Update

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
    """Makes the step of `make_train_step` run on several local devices by `jax.pmap`, with the same results.

    `step(state, batch)` takes a batch [B, ...] and the state from `TrainState.create` or from an earlier step.

    Args:
      *arguments, **options: those of `make_train_step`, except mesh.
      devices: devices of this process; all local devices by default.
      donate: as in `make_train_step`.
    Raises:
      ValueError: as `make_train_step` does. The step raises it if the number of devices does not divide B.
    """
    return training.TrainStep(Update(*arguments, **options), Replicas(devices), donate=donate)


def mesh_step(*arguments: Any, mesh: Mesh, **options: Any) -> training.TrainStep:
    """Makes the step of `make_train_step` run on a mesh, whose "data" axis divides the batch.

        mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
        module, params, _ = mcl.models.from_pretrained(path, sharding=mcl.parallel.base_sharding(mesh))

    Leaves of `state.params` keep their sharding; those that are not on the mesh are copied to all its devices.

    Args:
      *arguments, **options: those of `make_train_step`.
      mesh: devices to run on, with an axis "data".
    Raises:
      ValueError: as `make_train_step` does, and for a mesh without the axis "data". The step raises it if the size of
        that axis does not divide B.
    """
    return training.make_train_step(*arguments, mesh=mesh, **options)
