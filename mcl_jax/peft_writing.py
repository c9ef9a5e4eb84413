"""What is written into the PEFT folder of one hypothesis: the settings, and the tensors of its layers."""

import dataclasses
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, PyTree

from mcl_jax import peft_adapter
from mcl_jax.lora import LoraConfig
from mcl_jax.models.families import Family
from mcl_jax.models.names import hf_layers
from mcl_jax.models.tensors import rename
from mcl_jax.peft_adapter import PREFIX, Layer


@dataclasses.dataclass(frozen=True)
class Written:
    """What is written of one layer of one hypothesis: r, α, and A [in, r] and B [r, out]."""

    rank: int
    alpha: float
    matrices: Layer


def layers_of(config: LoraConfig, family: Family, adapters_k: PyTree[Array]) -> Iterator[tuple[str, Written]]:
    """Yields the name that PEFT gives each layer, and what is written of it."""
    flat = _joined(flatten_dict(adapters_k))
    for *path, leaf_name in flat:
        if leaf_name != "a":
            continue
        a, b = flat[*path, "a"], flat[*path, "b"]
        for layer, (name, index) in enumerate(hf_layers((*path, "a"), a.shape)):
            name, matrices = rename(name, family.in_memory), {"a": np.asarray(a[index]), "b": np.asarray(b[index])}
            for half, matrix in matrices.items():
                if matrix.ndim != 2:
                    raise ValueError(
                        f"PEFT stores only adapters of kernels with two axes, but {half} of {name} has shape "
                        f"{matrix.shape}"
                    )
            rank, alpha = _rank_and_alpha(config, "/".join(path), layer)
            own = peft_adapter.trimmed({"a": matrices["a"][:, :rank], "b": matrices["b"][:rank]})
            yield name, _of_rank(own["a"].shape[1], Written(rank, alpha, own), config.rank_stabilized)


def _of_rank(rank: int, layer: Written, stabilized: bool) -> Written:
    """Returns a layer with this rank and the α that keeps the scale α/r, or α/√r."""
    growth = rank / layer.rank
    return Written(
        rank, layer.alpha * (growth**0.5 if stabilized else growth), peft_adapter.padded(layer.matrices, rank)
    )


def with_one_rank(config: LoraConfig, written: Sequence[Mapping[str, Written]]) -> list[dict[str, Written]]:
    """Returns the layers of each hypothesis with the largest rank, and with one α: B is scaled where it differs."""
    rank = max(layer.rank for layers in written for layer in layers.values())
    same = [{name: _of_rank(rank, one, config.rank_stabilized) for name, one in layers.items()} for layers in written]
    alpha = _commonest(layer.alpha for layers in same for layer in layers.values())

    def scaled(layer: Written) -> Written:
        return Written(
            rank, alpha, peft_adapter.scaled(layer.matrices, 1.0 if layer.alpha == alpha else layer.alpha / alpha)
        )

    return [{name: scaled(layer) for name, layer in layers.items()} for layers in same]


def _commonest(values: Iterable[Any]) -> Any:
    """Returns the value that occurs most often, 0 only if there is no other."""
    values = list(values)
    return statistics.mode([value for value in values if value] or values)


def contents(
    config: LoraConfig, family: Family, layers: Mapping[str, Written], base: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the entries of adapter_config.json, and the tensors of adapter_model.safetensors."""
    return _settings_of(config, family, layers, base), _tensors_of(layers)


def _tensors_of(layers: Mapping[str, Written]) -> dict[str, np.ndarray]:
    return {
        f"{PREFIX}{name}.lora_{half.upper()}.weight": np.ascontiguousarray(matrix.T)
        for name, layer in layers.items()
        for half, matrix in layer.matrices.items()
    }


def _joined(adapters_k: dict[tuple[str, ...], Array]) -> dict[tuple[str, ...], Array]:
    """Puts the shared components before those of the hypothesis, in a flat tree of one hypothesis."""
    joined = {}
    for path, leaf in adapters_k.items():
        shared = adapters_k.get((*path[:-1], f"shared_{path[-1]}"))
        if path[-1] in ("a", "b"):
            rank_axis = -1 if path[-1] == "a" else -2
            joined[path] = leaf if shared is None else jnp.concatenate([shared, leaf], rank_axis)
    return joined


def _rank_and_alpha(config: LoraConfig, place: str, layer: int) -> tuple[int, float]:
    """Returns r, with the shared rank, and α of a layer at `place`; the config has one value per layer or for all."""
    ranks, alphas = config.ranks_of(place), config.alphas_of(place)
    rank, alpha = ranks[layer if len(ranks) > 1 else 0], alphas[layer if len(alphas) > 1 else 0]
    return rank + config.shared_rank, alpha


def _settings_of(config: LoraConfig, family: Family, layers: Mapping[str, Written], base: str) -> dict[str, Any]:
    ranks, alphas = ({name: getattr(of, field) for name, of in layers.items()} for field in ("rank", "alpha"))
    rank, alpha = _commonest(ranks.values()), _commonest(alphas.values())

    def differing(values: dict[str, Any], default: Any) -> dict[str, Any]:
        return {re.escape(name): value for name, value in values.items() if value != default}

    numbered = {} if config.layers is None else {"layers_to_transform": sorted(config.layers)}
    return {
        "peft_type": "LORA",
        "task_type": family.task,
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rank_stabilized,
        "target_modules": sorted(layers),
        **numbered,
        "rank_pattern": differing(ranks, rank),
        "alpha_pattern": differing(alphas, alpha),
        "fan_in_fan_out": not family.transposed,
        "bias": "none",
        "inference_mode": True,
    }
