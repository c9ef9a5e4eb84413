"""Conversion between the stored part of a `TrainState` and host arrays by path.

Paths are those of the tree, such as "adapters/layers_0/q_proj/a" or "opt_state/0/mu/layers_0/q_proj/a".
"""

import zlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mcl_jax.mesh import placed
from mcl_jax.train_state import TrainState

STORED = ("adapters", "opt_state", "objective_state", "rng", "step", "winners")
SHOWN_MISMATCHES = 5


def stored(state: TrainState) -> dict[str, Any]:
    """Returns the fields of the state that a checkpoint stores: all but the base."""
    return {name: getattr(state, name) for name in STORED}


def flatten(tree: Any) -> dict[str, Any]:
    """Returns the leaves by path. None and empty containers have no leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def to_host(leaf: Any) -> np.ndarray:
    """Copies a leaf to the host; a random key becomes its data. (On CPU, `np.asarray` would only be a view.)"""
    leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        replicated = leaf.is_fully_replicated
        leaf = leaf.addressable_data(0) if replicated else multihost_utils.process_allgather(leaf, tiled=True)
    return np.array(leaf, copy=True)


def describe(leaf: Any, array: np.ndarray) -> dict[str, Any]:
    """Returns the record entry (shape, dtype, checksum) of a leaf whose host copy is `array`."""
    key = {"key_impl": str(jax.random.key_impl(leaf))} if _is_key(leaf) else {}
    leaf = leaf if hasattr(leaf, "dtype") else array
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "crc32": checksum(array), **key}


def checksum(array: np.ndarray) -> int:
    """Returns the CRC-32 of the values."""
    return zlib.crc32(array.tobytes())


def objective_kind(objective_state: Any) -> str:
    """Returns the kind of an objective's state: "none", "empty", "array" or "tree"."""
    if objective_state is None:
        return "none"
    paths = list(flatten(objective_state))
    return "empty" if not paths else "array" if paths == [""] else "tree"


def expected(template: TrainState, record: dict[str, Any]) -> dict[str, Any]:
    """Returns the tree to fill: the template's, with the stored objective state if the template has none.

    Raises:
      ValueError: if the stored objective state is a tree and the template has none to give its structure.
    """
    tree, kind = stored(template), record["objective_state"]
    if kind == "none":
        tree["objective_state"] = None
    elif template.objective_state is None and kind == "empty":
        tree["objective_state"] = ()
    elif template.objective_state is None and kind == "array":
        leaf = record["leaves"]["objective_state"]
        tree["objective_state"] = jax.ShapeDtypeStruct(tuple(leaf["shape"]), leaf["dtype"])
    elif template.objective_state is None:
        raise ValueError(
            "the checkpoint stores objective_state as a tree; pass a template with objective_state=objective.init(K)"
        )
    return tree


def check_fits(tree: Any, leaves: dict[str, Any], name: str) -> None:
    """Compares a tree with the record of its leaves.

    Args:
      tree: the tree to fill.
      leaves: record entries by path.
      name: name of the checkpoint, for the error.
    Raises:
      ValueError: if paths, shapes or dtypes differ; names the first differences with both sides.
    """
    has = {path: f"{leaf['dtype']}{leaf['shape']}" for path, leaf in leaves.items()}
    needs = {path: _kind(leaf) for path, leaf in flatten(tree).items()}
    differ = [path for path in sorted(has | needs) if has.get(path) != needs.get(path)]
    if not differ:
        return
    lines = [
        f"\n  {path}: the checkpoint has {has.get(path, 'nothing')}, the state needs {needs.get(path, 'nothing')}"
        for path in differ[:SHOWN_MISMATCHES]
    ]
    raise ValueError(
        f"{name} does not fit the state: {len(differ)} arrays differ. Check that K, rank, targets, optimizer and "
        f"objective are the same:{''.join(lines)}"
    )


def _kind(leaf: Any) -> str:
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)  # a Python number in a state made by hand
    return f"{leaf.dtype}{list(leaf.shape)}"


def fill(tree: Any, arrays: dict[str, np.ndarray], leaves: dict[str, Any]) -> Any:
    """Fills the tree with the arrays, each on the devices of the leaf that it replaces."""
    values = [_placed(arrays[path], leaf, leaves[path]) for path, leaf in flatten(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), values)


def _placed(array: np.ndarray, like: Any, description: dict[str, Any]) -> Any:
    """Puts the array on the devices of `like` if those were chosen, else on JAX's default; key data become a key."""
    put = not isinstance(like, jax.Array) or like.committed
    sharding = getattr(like, "sharding", None) if put else None
    if sharding is not None and not sharding.is_fully_addressable:
        key = _is_key(like)
        return placed(jax.random.wrap_key_data(array, impl=description["key_impl"]) if key else array, sharding)
    if _is_key(like):
        return jax.device_put(jax.random.wrap_key_data(array, impl=description["key_impl"]), sharding)
    return jax.device_put(array, sharding, may_alias=False)  # a train step will donate it


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
