"""Adapters of K hypotheses as one pytree; its leaves have a leading axis K, except those that all of them share."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree

from mcl_jax import lora, sharding

Adapters = PyTree[Array]


def count(adapters: Adapters) -> int:
    """Returns K, the size of the leading axis that all leaves of stacked adapters share, except the shared part.

    Raises:
      ValueError: if there are no leaves, or their leading axes differ.
    """
    leaves = jax.tree_util.tree_leaves_with_path(adapters)
    own = [leaf for keys, leaf in leaves if not is_shared(keys)]
    return sharding.leading_axis(own, "adapters need one leading axis K")


def select(adapters: Adapters, k: Int[Array, "..."] | slice | int) -> Adapters:
    """Returns the adapters of hypothesis k; if k has shape [B], one set per example with leading axis B.

    The shared part has no such axis and stays as it is.
    """
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: leaf if is_shared(keys) else jnp.asarray(leaf)[k], adapters
    )


def is_shared(keys: tuple[Any, ...]) -> bool:
    """Whether the leaf at this path belongs to what all hypotheses share (`LoraConfig.shared_rank`, or a copy)."""
    return str(getattr(keys[-1], "key", "")).startswith(lora.SHARED) if keys else False


def axes(adapters: Adapters) -> PyTree[int | None]:
    """Returns the `in_axes` with which `jax.vmap` runs over hypotheses: 0, and None for the shared part."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: None if is_shared(keys) else 0, adapters)


def labels(adapters: Adapters) -> PyTree[str]:
    """Returns "shared" or "own" for each leaf, such as `optax.multi_transform` takes to treat the two differently."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: "shared" if is_shared(keys) else "own", adapters)


def scale_parts(
    own: float | optax.Schedule = 1.0, shared: float | optax.Schedule = 1.0
) -> optax.GradientTransformation:
    """Scales the updates of what each hypothesis has of its own, and those of the part that all share.

    Put it last in `optax.chain`, where a factor is one on the learning rate: own=4 lets hypotheses move apart faster
    than the shared part learns. A schedule that starts with 0 lets one part learn alone at first: the shared one, as
    one model, or the own ones, so that hypotheses find their modes before they share. Adapters without a shared part
    (`LoraConfig.shared_rank`) are left alone.

    Args:
      own: the factor, or a schedule of it over steps.
      shared: the same for the shared part.
    """
    scales = {"own": own, "shared": shared}
    return optax.chain(*(_scale(kind, factor) for kind, factor in scales.items()))


def _scale(kind: str, factor: float | optax.Schedule) -> optax.GradientTransformation:
    def of(adapters: Adapters) -> PyTree[bool]:
        kinds = labels(adapters)
        shares = "shared" in jax.tree.leaves(kinds)
        return jax.tree.map(lambda found: shares and found == kind, kinds)

    scale = optax.scale_by_schedule(factor) if callable(factor) else optax.scale(factor)
    return optax.masked(scale, of)


def example_key(rng: Key[Array, ""], k: Int[Array, ""] | int, b: Int[Array, ""] | int) -> Key[Array, ""]:
    """Returns the random key of example b under hypothesis k, so that two passes draw the same dropout masks."""
    return jax.random.fold_in(jax.random.fold_in(rng, k), b)


def first_of_shared(adapters: Adapters) -> Adapters:
    """Returns adapters whose shared part, equal for all K so far or not, is that of the first hypothesis alone."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: leaf[0] if is_shared(keys) else leaf, adapters)
