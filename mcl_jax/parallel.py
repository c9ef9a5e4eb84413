"""Data parallelism: the train step of `mcl_jax.training` on several devices, with the numbers of one.

The state has the same shapes on any number of devices: `pmap` takes and returns it as a replicated value, so that
checkpoints, evaluation and `state.adapters` need no unreplicating. Sums of gradients, weights, wins and tokens are
added over devices before anything is divided, and random keys depend on an example's index in the global batch.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mcl_jax import objectives, training

DATA_AXIS = "data"


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
