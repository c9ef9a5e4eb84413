"""How arrays are placed on several devices, and where a train step runs.

OneDevice   jit on the default device
Replicas    pmap: devices share the batch, and each of them holds the base
OverMesh    a mesh: its "data" axis divides the batch, and its "model" axis shards the base; see `mcl_jax.over_mesh`
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

DATA_AXIS, MODEL_AXIS = "data", "model"


def path_of(keys: Any) -> str:
    """Joins a path of `jax.tree_util`, or a tuple of names, with slashes; the value of an nnx.Variable has its path."""
    if keys and keys[-1] == jax.tree_util.GetAttrKey("value"):
        keys = keys[:-1]
    names = (getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))) for key in keys)
    return "/".join(map(str, names))


def leading_axis(tree: PyTree[Array], what: str) -> int:
    """Returns the size of the first axis, which all leaves must share.

    Args:
      tree: at least one array.
      what: beginning of the error message, such as "a batch needs one leading axis B".
    Raises:
      ValueError: if there are no leaves, or their leading axes differ.
    """
    sizes = {(leaf.shape if hasattr(leaf, "shape") else np.shape(leaf))[:1] for leaf in jax.tree.leaves(tree)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(f"{what} shared by all leaves, got leading axes {sorted(sizes)}")
    return sizes.pop()[0]


def batch_size(batch: PyTree[Array]) -> int:
    """Returns B, the leading axis of a batch. Raises as `leading_axis` does."""
    return leading_axis(batch, "a batch needs one leading axis B")


def divided(size: int, parts: int, what: str) -> int:
    """Returns the number of examples for each of several parts of a batch.

    Args:
      size: number of examples in the batch.
      parts: number of parts.
      what: name of the parts for the error message, such as "devices".
    Raises:
      ValueError: if `parts` does not divide `size`; names both.
    """
    if size % parts:
        raise ValueError(f"a batch of {size} examples does not divide over {parts} {what}")
    return size // parts


def shard_batch(batch: PyTree[Array], num_devices: int) -> PyTree[Array]:
    """Reshapes a batch [B, ...] to [devices, B/devices, ...].

    Raises:
      ValueError: if the number of devices does not divide B; names both.
    """
    size = divided(batch_size(batch), num_devices, "devices")
    return jax.tree.map(lambda x: x.reshape(num_devices, size, *x.shape[1:]), batch)


def replicate(tree: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """Copies each array to every device; arrays that are there already are not copied."""
    mesh = Mesh(np.asarray(jax.local_devices() if devices is None else devices), (DATA_AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def beside(state: Any, *others: Any) -> Any:
    """Commits the arrays of a state to the one device to which any of its arrays, or of the others, are committed.

    What a compiled function returns is committed as soon as one of its arguments is. Its second call would compile anew
    if the state had not been. A state beside arrays on several devices, or without such arrays, is returned as it is.

    Args:
      state: a pytree; its arrays share their buffers with those of the result.
      others: what the function takes besides, such as parameters and batch.
    """
    concrete = lambda leaf: isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    arrays = filter(concrete, jax.tree.leaves((state, others)))
    devices = {device for leaf in arrays if leaf.committed for device in leaf.sharding.device_set}
    if len(devices) != 1:
        return state
    (device,) = devices
    free = lambda leaf: concrete(leaf) and not leaf.committed
    return jax.tree.map(lambda leaf: jax.device_put(leaf, device) if free(leaf) else leaf, state)


class Placement(Protocol):
    """Where a function `(params, state, batch) -> (state, metrics)` runs, and how its arguments get there.

    Attributes:
      axis_name: the mapped axis over which the function must add its sums, or None.
    """

    axis_name: str | None

    def local_size(self, size: int) -> int:
        """Returns how many examples of a batch one call of the function sees.

        Raises:
          ValueError: if the devices cannot share the batch evenly; names both numbers.
        """

    def compile(self, function: Callable[..., Any], *, donate: bool) -> Any:
        """Returns the function, compiled on its first call; with `donate` the state gives up its buffers."""

    def place(self, params: Any, state: Any, batch: Any) -> tuple[Any, ...]:
        """Returns the arguments, placed where the compiled function needs them, and any further ones it takes."""


class OneDevice:
    """Plain jit, on the device of the parameters."""

    axis_name = None

    def local_size(self, size):
        return size

    def compile(self, function, *, donate):
        return jax.jit(function, donate_argnums=(1,) if donate else ())

    def place(self, params, state, batch):
        return params, beside(state, params, batch), batch


class Replicas:
    """pmap over devices of this process, by default all local devices."""

    axis_name = DATA_AXIS

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        self.devices = list(jax.local_devices() if devices is None else devices)

    def local_size(self, size):
        return divided(size, len(self.devices), "devices")

    def compile(self, function, *, donate):
        return jax.pmap(
            function,
            axis_name=self.axis_name,
            devices=self.devices,
            in_axes=(None, None, 0),
            out_axes=None,
            donate_argnums=(1,) if donate else (),
        )

    def place(self, params, state, batch):
        params, state = replicate((params, state), self.devices)
        by_device = NamedSharding(Mesh(np.asarray(self.devices), (DATA_AXIS,)), PartitionSpec(DATA_AXIS))
        move = lambda leaf: jax.device_put(leaf, by_device) if isinstance(leaf, jax.Array) else leaf
        return params, state, jax.tree.map(move, shard_batch(batch, len(self.devices)))
