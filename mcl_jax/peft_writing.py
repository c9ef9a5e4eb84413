"""What is written into the PEFT folder of one hypothesis: settings, the tensors of its layers, and trained copies."""

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
from mcl_jax.lora import LoraConfig, split_copies
from mcl_jax.models import names
from mcl_jax.models.families import Family
from mcl_jax.models.tensors import rename
from mcl_jax.peft_adapter import PREFIX, Layer


@dataclasses.dataclass(frozen=True)
class Written:
    """What is written of one layer of one hypothesis.

    Attributes:
      table: whether it is a table of embeddings.
      rank, alpha: r and α.
      matrices: A [in, r], B [r, out] and perhaps m [out].
    """

    table: bool
    rank: int
    alpha: float
    matrices: Layer


def layers_of(
    config: LoraConfig, family: Family, abstract: Any, adapters_k: PyTree[Array]
) -> Iterator[tuple[str, Written]]:
    """Yields the name that PEFT gives each layer, and what is written of it."""
    flat, parameters = _joined(flatten_dict(adapters_k)), flatten_dict(abstract)
    for *path, leaf_name in flat:
        if leaf_name != "a":
            continue
        leaves = {part: flat[*path, part] for part in ("a", "b", "magnitude") if (*path, part) in flat}
        for layer, (name, index) in enumerate(names.hf_layers((*path, "a"), leaves["a"].shape, family)):
            name, matrices = rename(name, family.in_memory), {part: np.asarray(x[index]) for part, x in leaves.items()}
            for half in ("a", "b"):
                if matrices[half].ndim != 2:
                    raise ValueError(
                        f"PEFT stores only adapters of kernels with two axes, but {half} of {name} has shape "
                        f"{matrices[half].shape}"
                    )
            rank, alpha = _rank_and_alpha(config, "/".join(path), layer)
            matrices |= {"a": matrices["a"][:, :rank], "b": matrices["b"][:rank]}
            yield name, Written((*path, "embedding") in parameters, rank, alpha, matrices)


def without_padding(config: LoraConfig, written: Sequence[Mapping[str, Written]]) -> list[dict[str, Written]]:
    """Returns the layers of each hypothesis without the last components that it lacks and another one has."""
    used = [{name: peft_adapter.used_rank(layer.matrices) for name, layer in layers.items()} for layers in written]
    padded = {name for name, layer in written[0].items() if max(ranks[name] for ranks in used) == layer.rank}

    def own(name: str, layer: Written, rank: int) -> Written:
        return _of_rank(rank, layer, config.rank_stabilized) if name in padded else layer

    each = zip(written, used, strict=True)
    return [{name: own(name, layer, ranks[name]) for name, layer in layers.items()} for layers, ranks in each]


def _of_rank(rank: int, layer: Written, stabilized: bool) -> Written:
    """Returns a layer with this rank and the α that keeps the scale α/r, or α/√r."""
    growth = rank / layer.rank
    alpha = layer.alpha * (growth**0.5 if stabilized else growth)
    return dataclasses.replace(layer, rank=rank, alpha=alpha, matrices=peft_adapter.of_rank(layer.matrices, rank))


def with_one_rank(config: LoraConfig, written: Sequence[Mapping[str, Written]]) -> list[dict[str, Written]]:
    """Returns the layers of each hypothesis with the largest rank, and with one α: B is scaled where it differs."""
    rank = max(layer.rank for layers in written for layer in layers.values())
    same = [{name: _of_rank(rank, one, config.rank_stabilized) for name, one in layers.items()} for layers in written]
    alpha = _commonest(layer.alpha for layers in same for layer in layers.values())

    def scaled(layer: Written) -> Written:
        factor = 1.0 if layer.alpha == alpha else layer.alpha / alpha
        return dataclasses.replace(layer, alpha=alpha, matrices=peft_adapter.scaled(layer.matrices, factor))

    return [{name: scaled(layer) for name, layer in layers.items()} for layers in same]


def _commonest(values: Iterable[Any]) -> Any:
    """Returns the value that occurs most often, 0 only if there is no other."""
    values = list(values)
    return statistics.mode([value for value in values if value] or values)


def copies_of(family: Family, abstract: Any, adapters_k: PyTree[Array]) -> dict[str, np.ndarray]:
    """Returns the trained copies of one hypothesis, under the names and with the axes that PEFT gives them."""
    places, tensors = names.places(abstract, family), {}
    for path, copy in split_copies(adapters_k)[1].items():
        if path not in places:
            raise ValueError(f"the adapters hold a copy of {'/'.join(path)}, but the module has no such parameter")
        leaves = [copy] if isinstance(places[path].names, str) else copy
        for name, leaf in zip(places[path].all_names, leaves, strict=True):
            axes = np.argsort(places[path].axes)
            tensors[rename(name, family.in_memory)] = np.ascontiguousarray(np.asarray(leaf).transpose(axes))
    return tensors


def contents(
    config: LoraConfig,
    family: Family,
    layers: Mapping[str, Written],
    copies: Mapping[str, np.ndarray],
    base: str,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the entries of adapter_config.json, and the tensors of adapter_model.safetensors."""
    tensors = {f"{PREFIX}{name}.{part}": tensor for name, one in layers.items() for part, tensor in _parts(one).items()}
    detached = set()
    for name, copy in copies.items():
        module, leaf = name.rsplit(".", 1)
        beneath = ".base_layer" if module in layers else ""
        detached |= set() if beneath else {module}
        tensors[f"{PREFIX}{module}{beneath}.{leaf}"] = copy
    return _settings_of(config, family, layers, sorted(detached), base), tensors


def _parts(layer: Written) -> dict[str, np.ndarray]:
    """Returns the tensors of a layer by the ends of their names."""
    name = "lora_embedding_{}" if layer.table else "lora_{}.weight"
    parts = {name.format(half.upper()): np.ascontiguousarray(layer.matrices[half].T) for half in ("a", "b")}
    magnitude = layer.matrices.get("magnitude")
    return parts if magnitude is None else parts | {"lora_magnitude_vector": magnitude}


def _joined(adapters_k: dict[tuple[str, ...], Array]) -> dict[tuple[str, ...], Array]:
    """Puts the shared components before those of the hypothesis, in a flat tree of one hypothesis."""
    joined = {}
    for path, leaf in adapters_k.items():
        shared = adapters_k.get((*path[:-1], f"shared_{path[-1]}"))
        if path[-1] == "magnitude":
            joined[path] = leaf
        elif path[-1] in ("a", "b"):
            rank_axis = -1 if path[-1] == "a" else -2
            joined[path] = leaf if shared is None else jnp.concatenate([shared, leaf], rank_axis)
    return joined


def _rank_and_alpha(config: LoraConfig, place: str, layer: int) -> tuple[int, float]:
    """Returns r, with the shared rank, and α of a layer at `place`; the config has one value per layer or for all."""
    ranks, alphas = config.ranks_of(place), config.alphas_of(place)
    rank, alpha = ranks[layer if len(ranks) > 1 else 0], alphas[layer if len(alphas) > 1 else 0]
    return rank + config.shared_rank, alpha


def _settings_of(
    config: LoraConfig, family: Family, layers: Mapping[str, Written], detached: Sequence[str], base: str
) -> dict[str, Any]:
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
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rank_stabilized,
        "use_dora": config.dora,
        "target_modules": sorted(layers),
        **numbered,
        **({"modules_to_save": detached} if detached else {}),
        "rank_pattern": differing(ranks, rank),
        "alpha_pattern": differing(alphas, alpha),
        "fan_in_fan_out": not family.transposed,
        "bias": "none",
        "inference_mode": True,
    }
