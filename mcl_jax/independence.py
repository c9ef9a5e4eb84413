"""The examples of a batch: which arrays hold them, and whether a function treats them independently of each other."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

# On the scale of the largest output. Two programs round differently, in bfloat16 by some percent.
BETWEEN_PROGRAMS, WITHIN_ONE = 0.1, 1e-5


def is_batched(leaf: Any) -> bool:
    """True for arrays with at least one axis."""
    return hasattr(leaf, "ndim") and leaf.ndim > 0


def batch_size(tree: PyTree) -> int:
    """B, the leading axis that all arrays of `tree` share.

    Raises:
      ValueError: if there is no array, or their leading axes differ.
    """
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(tree) if is_batched(leaf)}
    if len(sizes) != 1:
        raise ValueError(f"inputs need one leading batch axis shared by all arrays, got sizes {sorted(sizes)}")
    return sizes.pop()


def split(tree: PyTree) -> tuple[list[Array], Callable[[Sequence[Array]], PyTree]]:
    """The arrays of `tree` that hold examples, and a function that puts others in their place."""
    leaves, treedef = jax.tree.flatten(tree)
    batched = [i for i, leaf in enumerate(leaves) if is_batched(leaf)]

    def rebuild(arrays: Sequence[Array]) -> PyTree:
        replaced = dict(zip(batched, arrays, strict=True))
        return jax.tree.unflatten(treedef, [replaced.get(i, leaf) for i, leaf in enumerate(leaves)])

    return [leaves[i] for i in batched], rebuild


def only_example(keys: tuple[Any, ...], leaf: Array) -> Array:
    """An output of a batch of one, without its batch axis.

    Raises:
      ValueError: if there is no such axis.
    """
    _has_batch_axis(keys, jnp.shape(leaf), 1)
    return leaf[0]


def of_pair(outs: PyTree[Array], k_of_example: Int[np.ndarray, "2"]) -> PyTree[Array]:
    """Outputs [K, 2, ...] of two examples, each under its hypothesis: [2, ...].

    Raises:
      ValueError: names an output without an axis of examples.
    """

    def picked(keys, leaf):
        _has_batch_axis(keys, leaf.shape[1:], 2)
        return leaf[k_of_example, np.arange(2)]

    return jax.tree_util.tree_map_with_path(picked, outs)


def _has_batch_axis(keys: tuple[Any, ...], shape: tuple[int, ...], size: int) -> None:
    if shape[:1] != (size,):
        raise ValueError(
            f"output{jax.tree_util.keystr(keys)} of the module needs a leading batch axis; its shape is {shape} for a "
            f"batch of {size}"
        )


def check(together: Callable, alone: Callable, operands: PyTree, arrays: Sequence[Array]) -> None:
    """Raises unless `together(operands, pair)` treats the examples of `pair` independently, and as `alone` does.

    Each example has to give the same beside the other as beside a copy of itself, which is one program run on three
    pairs, and the same up to rounding in `alone`.

    Args:
      together, alone: (operands, arrays of two examples) -> outputs with a leading axis of two; compiled here.
      operands: what the functions need beside the examples.
      arrays: with a leading batch axis of at least two. If a leaf of these or of the operands is a
        `jax.ShapeDtypeStruct`, only shapes are compared.
    Raises:
      ValueError: for examples that depend on each other, and for fewer than two that differ.
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
        raise ValueError("check needs two examples that differ; the first two of this batch are equal")
    with jax.default_matmul_precision("highest"):
        together = jax.jit(together)
        by_one, outs = jax.jit(alone)(operands, pair), together(operands, pair)
        copies = [together(operands, [array[np.array([b, b])] for array in pair]) for b in range(2)]
    _same_shapes(outs, by_one)
    beside_itself = jax.tree.map(lambda first, second: jnp.stack([first[0], second[1]]), *copies)
    _agree(outs, beside_itself, WITHIN_ONE, "depends on the other examples of the batch")
    _agree(outs, by_one, BETWEEN_PROGRAMS, "differs between a batch of two and two batches of one")


def _same_shapes(outs: PyTree, by_one: PyTree) -> None:
    def same(keys, leaf, other):
        if leaf.shape != other.shape:
            raise ValueError(
                f"output{jax.tree_util.keystr(keys)} of the module has shape {leaf.shape} for a batch of two, and "
                f"{other.shape} for two batches of one: the batch axis must be the first of its inputs and outputs"
            )

    jax.tree_util.tree_map_with_path(same, outs, by_one)


def _agree(outs: PyTree, others: PyTree, tolerance: float, what: str) -> None:
    def same(keys, leaf, other):
        leaf, other = np.asarray(leaf, np.float64), np.asarray(other, np.float64)
        scale = np.abs(other, where=np.isfinite(other), out=np.zeros_like(other)).max(initial=0.0)
        apart = ~np.isclose(leaf, other, rtol=0.0, atol=tolerance * scale, equal_nan=True)
        if apart.any():
            most = np.nanmax(np.abs(leaf - other)[apart], initial=0.0)
            raise ValueError(
                f"output{jax.tree_util.keystr(keys)} of the module {what}, by up to {most:.3g} where the largest value "
                f"is {scale:.3g}: hypotheses need a module that treats the examples of a batch independently"
            )

    jax.tree_util.tree_map_with_path(same, outs, others)
