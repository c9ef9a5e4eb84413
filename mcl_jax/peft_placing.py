"""The places that the matrices of PEFT adapters have in the tree of adapters of a model."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, PyTree

from mcl_jax import peft_adapter, peft_files
from mcl_jax.hypotheses import Hypotheses
from mcl_jax.lora import KERNELS, SHARED, LoraConfig
from mcl_jax.models import families, names
from mcl_jax.models.families import Family
from mcl_jax.models.names import Path, abstract_params
from mcl_jax.models.tensors import rename
from mcl_jax.peft_adapter import Adapter, Layer


class TiedMatrixError(ValueError):
    """Adapters change one use of a matrix that a model ties to another."""


def stack(module: Any, adapters: Sequence[Adapter]) -> tuple[Hypotheses, PyTree[Array]]:
    """Puts the matrices and copies of each hypothesis in their places, with a leading axis K."""
    family, abstract = families.of_module(module), abstract_params(module)
    _check_untied(family, abstract, module, adapters)
    factors, ranks, alphas = _factors(module, family, abstract, adapters)
    copies = _copies(module, family, abstract, adapters)
    return Hypotheses(module, _config_of(adapters, ranks, alphas)), unflatten_dict(factors | copies)


def _check_untied(family: Family, abstract: Any, module: Any, adapters: Sequence[Adapter]) -> None:
    """Refuses what would change both of two tied matrices, though it belongs to one of them.

    Raises:
      TiedMatrixError: if an adapter or copy of one alone meets a module that ties them.
      ValueError: if PEFT tied the two adapters or copies themselves.
    """
    head, table = family.tied
    tied = head not in {name for place in names.places(abstract, family).values() for name in place.all_names}
    for one in adapters:
        adapted = {rename(f"{name}.weight", family.renames) for name in one.layers}
        copied = {rename(name, family.renames) for name in one.copies}
        if one.settings.get("ensure_weight_tying") and {head, table} & (adapted | copied):
            raise ValueError(
                f"{one.folder} has ensure_weight_tying = true, which is not supported for {head} and {table}"
            )
        detached = {rename(f"{name}.weight", family.renames) for name in one.detached}
        if tied and (head in adapted | copied or table in detached):
            raise TiedMatrixError(
                f"{one.folder} changes one of {head} and {table} alone, but {type(module).__name__} has one matrix for "
                "both; load the base with tie_word_embeddings=False, where its class has an output layer of its own"
            )


def _given(names_: Iterable[str], family: Family) -> dict[str, str]:
    """Returns the names in an adapter by the published names of the same modules."""
    names_ = set(names_)
    given = {rename(name, family.renames): name for name in names_}
    if len(given) < len(names_):
        raise ValueError(
            "every layer must have one adapter, but some have two, under different names: "
            f"{sorted(names_ - set(given.values()))[:8]}"
        )
    return given


def _hit(path: Path, needed: Sequence[str], given: Mapping[str, str]) -> list[str]:
    """Returns the names in an adapter of what is stored at one path, if the adapter has them.

    Raises:
      ValueError: if it has some of the layers that are stacked there, and not all.
    """
    hit = [given[name] for name in needed if name in given]
    if 0 < len(hit) < len(needed):
        raise ValueError(
            f"{'/'.join(path[:-1])} stacks {len(needed)} layers by nn.scan, so either all or none of them need "
            f"adapters, got {len(hit)}; load the base with scan=False"
        )
    return hit


def _factors(module: Any, family: Family, abstract: Any, adapters: Sequence[Adapter]) -> tuple[dict, dict, dict]:
    """Returns the matrices by path, and the ranks and alphas by place."""
    given = _given(adapters[0].layers, family)
    flat, used, ranks, alphas = {}, set(), {}, {}
    for path, leaf in flatten_dict(abstract).items():
        adaptable = path[-1] in KERNELS and path[: len(family.language_model)] == family.language_model  # no towers
        layers = names.hf_layers(path, leaf.shape, family) if adaptable else []
        if not (hit := _hit(path, [name for name, _ in layers], given)):
            continue
        used.update(hit)
        for name in hit:
            for one in adapters:
                peft_files.check_fit(name, one.layers[name], leaf.shape[-2:])
        place, scanned = "/".join(path[:-1]), layers[0][1] is not ...
        ranks_of, alphas_of, of_layers = zip(*(peft_adapter.side_by_side(adapters, name) for name in hit), strict=True)
        for name, stacked in _stacked(of_layers, max(ranks_of), scanned).items():
            flat[(*path[:-1], name)] = stacked
        ranks[place], alphas[place] = _one_or_each(ranks_of), _one_or_each(alphas_of)
    if missing := sorted(set(given.values()) - used):
        raise ValueError(f"{type(module).__name__} does not have, or does not adapt, the layers {missing[:8]}")
    return flat, ranks, alphas


def _copies(module: Any, family: Family, abstract: Any, adapters: Sequence[Adapter]) -> dict[Path, Array]:
    """Returns the trained copies by path. Those that are the same in all K are one, which all hypotheses share."""
    given, flat, used = _given(adapters[0].copies, family), {}, set()
    for path, place in names.places(abstract, family).items():
        if not (hit := _hit(path, place.all_names, given)):
            continue
        used.update(hit)
        for name in hit:
            if shapes := {one.copies[name].shape for one in adapters} - {place.shape}:
                raise ValueError(
                    f"the copy of {name} must have shape {place.shape}, as in the base, got {shapes.pop()}"
                )
        each = [np.stack([one.copies[name].transpose(place.axes) for name in hit]) for one in adapters]  # [K][L, ...]
        each = [leaf[0] for leaf in each] if isinstance(place.names, str) else each
        alike = all(np.array_equal(leaf, each[0]) for leaf in each)
        *modules, name = path
        copy = each[0] if alike else np.stack(each)
        flat[(*modules, SHARED + name if alike else name)] = jnp.asarray(copy, jnp.float32)
    if missing := sorted(set(given.values()) - used):
        raise ValueError(f"{type(module).__name__} does not have the weights {missing[:8]}, of which there are copies")
    return flat


def _stacked(of_layers: Sequence[Sequence[Layer]], rank: int, scanned: bool) -> dict[str, Array]:
    """Stacks the matrices of L layers, K of each, to arrays [K, L, ...], or [K, ...] if layers are not scanned."""
    same = [[peft_adapter.of_rank(layer, rank) for layer in hypotheses_] for hypotheses_ in of_layers]
    arrays = {
        name: np.stack([[layer[name] for layer in of_k] for of_k in zip(*same, strict=True)]) for name in same[0][0]
    }
    return {name: jnp.asarray(array if scanned else array[:, 0], jnp.float32) for name, array in arrays.items()}


def _config_of(adapters: Sequence[Adapter], ranks: Mapping[str, Any], alphas: Mapping[str, Any]) -> LoraConfig:
    """Returns the config of adapters with these ranks and alphas, by the places of their layers."""
    widest = max((one.settings for one in adapters), key=lambda settings: settings["r"])
    rank, alpha = widest["r"], float(widest["lora_alpha"])
    return LoraConfig(
        rank=rank,
        alpha=alpha,
        dropout=adapters[0].setting("lora_dropout"),
        rank_stabilized=adapters[0].setting("use_rslora"),
        dora=adapters[0].setting("use_dora"),
        targets=tuple(ranks),
        rank_pattern={place: of_layers for place, of_layers in ranks.items() if of_layers != rank},
        alpha_pattern={place: of_layers for place, of_layers in alphas.items() if of_layers != alpha},
    )


def _one_or_each(values: Sequence[Any]) -> Any:
    """Returns a single value if all layers share it, else a tuple with one value per layer."""
    return values[0] if len(set(values)) == 1 else tuple(values)


def parted(model: Hypotheses, adapters: PyTree[Array], shared_rank: int) -> tuple[Hypotheses, PyTree[Array]]:
    """Takes the first components, which all hypotheses have in common, out of the adapters as their shared part."""
    config = model.config
    ranks = [config.rank, *(r for value in config.rank_pattern.values() for r in _as_tuple(value))]
    if not 0 < shared_rank < min(ranks):
        raise ValueError(
            f"shared_rank must be at least 1 and below every rank, got {shared_rank} for {sorted(set(ranks))}"
        )
    flat = {}
    for path, leaf in flatten_dict(adapters).items():
        if path[-1] not in ("a", "b"):
            flat[path] = leaf
            continue
        first, rest = jnp.split(leaf, [shared_rank], axis=-1 if path[-1] == "a" else -2)
        if not bool((first == first[:1]).all()):
            raise ValueError(
                f"the first {shared_rank} components of {'/'.join(path)} differ between hypotheses, so they cannot be "
                "a shared part"
            )
        flat[path], flat[(*path[:-1], f"shared_{path[-1]}")] = rest, first[0]
    own = lambda value: tuple(r - shared_rank for r in value) if isinstance(value, tuple) else value - shared_rank
    config = dataclasses.replace(
        config,
        rank=config.rank - shared_rank,
        rank_pattern={pattern: own(value) for pattern, value in config.rank_pattern.items()},
        shared_rank=shared_rank,
    )
    return Hypotheses(model.module, config), unflatten_dict(flat)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
