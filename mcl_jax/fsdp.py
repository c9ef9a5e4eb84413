"""Fully sharded data parallelism: the layers of a frozen base are sharded over "data" too, and gathered one at a time.

Each device of the data axis stores its part of every kernel (ZeRO-3, arXiv 1910.02054). The stack of layers gathers the
kernels of a layer when it runs, and again in the backward pass if layers are computed again (`remat`). Nothing else
changes: the base has no gradients that would have to be scattered.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from mcl_jax.sharding import DATA_AXIS, path_of

# (path of a parameter, its axis that is sharded over "data", counted from the end)
Gathered = tuple[tuple[str, int], ...]

_GATHERED: contextvars.ContextVar[Gathered] = contextvars.ContextVar("gathered", default=())


def gathered_of(tree: PyTree) -> Gathered:
    """Returns the leaves that are sharded over "data": arrays, or `jax.ShapeDtypeStruct`s with a sharding."""
    return tuple(
        (path_of(keys), axis - leaf.ndim)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
        for axis, names in enumerate(getattr(getattr(leaf, "sharding", None), "spec", ()))
        if DATA_AXIS in (names if isinstance(names, tuple) else (names,))
    )


def specs(tree: PyTree, gathered: Gathered) -> PyTree[PartitionSpec]:
    """Returns how each leaf is divided over "data" alone, for `jax.shard_map`."""
    axes = dict(gathered)

    def spec(keys, leaf):
        axis = axes.get(path_of(keys))
        return PartitionSpec() if axis is None else PartitionSpec(*[None] * (leaf.ndim + axis), DATA_AXIS)

    return jax.tree_util.tree_map_with_path(spec, tree)


@contextlib.contextmanager
def gathering(gathered: Gathered) -> Iterator[None]:
    """Lets the stacks of layers that are traced in the body gather these parameters."""
    token = _GATHERED.set(gathered)
    try:
        yield
    finally:
        _GATHERED.reset(token)


def gathers_any() -> bool:
    """Whether some parameters are sharded over "data" where this is traced."""
    return bool(_GATHERED.get())


def gathers(layer: type[nn.Module]) -> type[nn.Module]:
    """Returns a layer that gathers its parameters first; the layer itself if none of them are sharded over "data"."""
    if not (gathered := _GATHERED.get()):
        return layer

    def whole(keys: Any, leaf: jax.Array) -> jax.Array:
        ending = "/" + path_of(keys[1:])  # without the name of the collection
        axis = next((axis for path, axis in gathered if path.endswith(ending)), None)
        return leaf if axis is None else jax.lax.all_gather(leaf, DATA_AXIS, axis=leaf.ndim + axis, tiled=True)

    return nn.map_variables(layer, "params", lambda params: jax.tree_util.tree_map_with_path(whole, params))
