"""The mean of hypotheses, as one hypothesis: it tells what merging them would cost."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from mcl_jax import hypotheses, lora
from mcl_jax.hypotheses import Adapters, Hypotheses, Params


def average(model: Hypotheses, params: Params, adapters: Adapters, ks: Sequence[int]) -> tuple[Hypotheses, Adapters]:
    """Returns one hypothesis with the mean of the deltas of some: ΔW = (1/n) Σ_k ΔW_k.

    It is exact: the mean of n deltas of rank r has rank n·r, with the A and B of all n side by side. A part that all
    hypotheses share stays as it is.

    Args:
      model: the hypotheses.
      params: parameters of the base, or their shapes.
      adapters: adapters with leading axis K.
      ks: indices of the n hypotheses.
    Returns:
      The same model with adapters of rank n·r, and its adapters with leading axis 1.
    Raises:
      ValueError: if no index is given, one is given twice or is no hypothesis, or the config has a `shared_rank` beside
        a `rank_pattern`, the config has `dora`, or
        the adapters hold copies of parameters.
    """
    num_hypotheses, n = hypotheses.count(adapters), len(ks)
    if not n or len(set(ks)) < n or not set(ks) <= set(range(num_hypotheses)):
        raise ValueError(f"average needs different hypotheses from 0 to {num_hypotheses - 1}, got {list(ks)}")
    config = _of_rank(n, model.config)
    joined = flatten_dict(hypotheses.select(adapters, np.array(ks)))
    if model.config.dora:
        raise ValueError("average takes adapters without dora: the mean of such deltas has no low rank")
    if copies := lora.split_copies(adapters)[1]:
        raise ValueError(f"average takes low-rank adapters alone, got a trained copy of {'/'.join(min(copies))}")
    for *layer, name in list(joined):
        if name != "a":
            continue
        a, b = joined[*layer, "a"], joined[*layer, "b"]
        kernel = model.base.kernel(params, "/".join(layer))
        joined[*layer, "a"] = _side_by_side(a, a.ndim - 2)
        joined[*layer, "b"] = _side_by_side(b, _rank_axis(kernel, a[0], b[0])) / n
    return dataclasses.replace(model, config=config), unflatten_dict(joined)


def _of_rank(n: int, config: lora.LoraConfig) -> lora.LoraConfig:
    """Returns the config with n times the rank of what each hypothesis has of its own, and the same scales."""
    if config.shared_rank and config.rank_pattern:
        raise ValueError("average needs one rank for all layers if hypotheses share a part, got a rank_pattern")
    growth = (n * config.rank + config.shared_rank) / (config.rank + config.shared_rank)
    growth = growth**0.5 if config.rank_stabilized else growth
    times = lambda factor, value: tuple(factor * v for v in value) if isinstance(value, Sequence) else factor * value
    return dataclasses.replace(
        config,
        rank=n * config.rank,
        rank_pattern={pattern: times(n, ranks) for pattern, ranks in config.rank_pattern.items()},
        alpha=growth * config.alpha,
        alpha_pattern={pattern: times(growth, alphas) for pattern, alphas in config.alpha_pattern.items()},
    )


def _rank_axis(kernel: Any, a: Array, b: Array) -> int:
    """Returns the axis of B that is the rank. Only kernels of `nn.Dense`, where it is known, can be quantized."""
    return lora.rank_axes(kernel.shape, a.shape, b.shape)[0] if hasattr(kernel, "shape") else b.ndim - 2


def _side_by_side(leaves: Array, axis: int) -> Array:
    """Joins leaves [n, ...] along their rank axis, which gets n times as long; returns [1, ...].

    Component i of each comes before component i + 1 of any, so that the padding of stacked layers stays at the end.
    """
    beside = jnp.moveaxis(leaves, 0, axis + 1)
    return beside.reshape(1, *beside.shape[:axis], -1, *beside.shape[axis + 2 :])
