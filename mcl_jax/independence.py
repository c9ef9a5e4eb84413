"""Checks of the batch axis: which arrays have one, and whether a function treats the examples independently."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

# Tolerances relative to the largest output. Two programs round differently, by a few percent in bfloat16.
BETWEEN_PROGRAMS, WITHIN_ONE = 0.1, 1e-5


def is_batched(leaf: Any) -> bool:
    """Whether a leaf is an array with at least one axis."""
    return hasattr(leaf, "ndim") and leaf.ndim > 0


def batch_size(tree: PyTree) -> int:
    """Returns B, the size of the leading axis that all arrays of `tree` share.

    Raises:
      ValueError: if there is no array, or the leading axes differ.
    """
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(tree) if is_batched(leaf)}
    if len(sizes) != 1:
        raise ValueError(f"all input arrays must share one leading batch axis, got sizes {sorted(sizes)}")
    return sizes.pop()


def split(tree: PyTree) -> tuple[list[Array], Callable[[Sequence[Array]], PyTree]]:
    """Returns the batched arrays of `tree`, and a function that rebuilds the tree with other arrays in their place."""
    leaves, treedef = jax.tree.flatten(tree)
    batched = [i for i, leaf in enumerate(leaves) if is_batched(leaf)]

    def rebuild(arrays: Sequence[Array]) -> PyTree:
        replaced = dict(zip(batched, arrays, strict=True))
        return jax.tree.unflatten(treedef, [replaced.get(i, leaf) for i, leaf in enumerate(leaves)])

    return [leaves[i] for i in batched], rebuild


def only_example(keys: tuple[Any, ...], leaf: Array) -> Array:
    """Removes the batch axis from an output of a batch of one.

    Args:
      keys: path of the output, for the error.
      leaf: the output [1, ...].
    Raises:
      ValueError: if the output has no such axis.
    """
    _has_batch_axis(keys, jnp.shape(leaf), 1)
    return leaf[0]


def of_pair(outs: PyTree[Array], k_of_example: Int[np.ndarray, "2"]) -> PyTree[Array]:
    """Selects the output of each of two examples under its own hypothesis.

    Args:
      outs: outputs [K, 2, ...].
      k_of_example: hypothesis of each example.
    Returns:
      Outputs [2, ...].
    Raises:
      ValueError: if an output has no axis of examples; names it.
    """

    def picked(keys, leaf):
        _has_batch_axis(keys, leaf.shape[1:], 2)
        return leaf[k_of_example, np.arange(2)]

    return jax.tree_util.tree_map_with_path(picked, outs)


def _has_batch_axis(keys: tuple[Any, ...], shape: tuple[int, ...], size: int) -> None:
    if shape[:1] != (size,):
        raise ValueError(
            f"output{jax.tree_util.keystr(keys)} of the module needs a leading batch axis, got shape {shape} for a "
            f"batch of {size}"
        )


def check(together: Callable, alone: Callable, operands: PyTree, arrays: Sequence[Array]) -> None:
    """Checks that `together(operands, pair)` treats two examples independently, and gives the same as `alone`.

    Each example must give the same output beside the other example as beside a copy of itself (one program run on three
    pairs), and the same as in `alone` up to rounding.

    Args:
      together, alone: functions (operands, arrays of two examples) -> outputs with a leading axis of two. They are
        compiled here.
      operands: further arguments of the functions.
      arrays: the examples, with a leading batch axis of at least two. If a leaf here or in `operands` is a
        `jax.ShapeDtypeStruct`, only shapes are compared.
    Raises:
      ValueError: if the examples depend on each other, or there are fewer than two different examples.
    """
    if batch_size(arrays) < 2:
        raise ValueError("check needs at least two examples, got a batch of one")
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((operands, arrays))):
        pair = [jax.ShapeDtypeStruct((2, *array.shape[1:]), array.dtype) for array in arrays]
        by_one, outs = jax.eval_shape(alone, operands, pair), jax.eval_shape(together, operands, pair)
        _same_shapes(outs, by_one)
        return
    pair = [jnp.asarray(array)[:2] for array in arrays]
    if all(np.array_equal(array[0], array[1]) for array in pair):
        raise ValueError("check needs two different examples, but the first two of this batch are equal")
    with jax.default_matmul_precision("highest"):
        together = jax.jit(together)
        by_one, outs = jax.jit(alone)(operands, pair), together(operands, pair)
        copies = [together(operands, [array[np.array([b, b])] for array in pair]) for b in range(2)]
    _same_shapes(outs, by_one)
    beside_itself = jax.tree.map(lambda first, second: jnp.stack([first[0], second[1]]), *copies)
    _agree(outs, beside_itself, WITHIN_ONE, fault="depends on the other examples of the batch")
    _agree(outs, by_one, BETWEEN_PROGRAMS, fault="differs between a batch of two and two batches of one")


def _same_shapes(outs: PyTree, by_one: PyTree) -> None:
    def same(keys, leaf, other):
        if leaf.shape != other.shape:
            raise ValueError(
                f"output{jax.tree_util.keystr(keys)} of the module has shape {leaf.shape} for a batch of two but "
                f"{other.shape} for two batches of one; the batch axis must be the first axis of all inputs and outputs"
            )

    jax.tree_util.tree_map_with_path(same, outs, by_one)


def _agree(outs: PyTree, others: PyTree, tolerance: float, fault: str) -> None:
    def same(keys, leaf, other):
        leaf, other = np.asarray(leaf, np.float64), np.asarray(other, np.float64)
        scale = np.abs(other, where=np.isfinite(other), out=np.zeros_like(other)).max(initial=0.0)
        apart = ~np.isclose(leaf, other, rtol=0.0, atol=tolerance * scale, equal_nan=True)
        if apart.any():
            most = np.nanmax(np.abs(leaf - other)[apart], initial=0.0)
            raise ValueError(
                f"output{jax.tree_util.keystr(keys)} of the module {fault}, by up to {most:.3g} where the largest "
                f"value is {scale:.3g}; hypotheses need a module that treats the examples of a batch independently"
            )

    jax.tree_util.tree_map_with_path(same, outs, others)
