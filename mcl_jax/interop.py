"""Exchange with Hugging Face: PEFT adapter folders, and folders of merged weights.

    adapters of one hypothesis here                PEFT, adapter_model.safetensors, below base_model.model
    model/layers/self_attn/q_proj/a  [L, in, r]    model.layers.{i}.self_attn.q_proj.lora_A.weight  [r, in]
    model/layers/self_attn/q_proj/b  [L, r, out]   model.layers.{i}.self_attn.q_proj.lora_B.weight  [out, r]

Layers of vision and audio models are written under their names in transformers from 4.52 on, and read under these or
the earlier names.

K hypotheses are K folders, `lora0` … `lora{K-1}`. The checkpoints that the paper's authors released have this layout,
or hold all K in one `lora0` as weights of grouped 1x1 convolutions, lora_A [K·r, in, 1] and lora_B [K·out, r, 1].
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, PyTree

from mcl_jax import hypotheses, peft_files
from mcl_jax.hypotheses import Hypotheses
from mcl_jax.lora import LoraConfig
from mcl_jax.models import families
from mcl_jax.models.names import abstract_params, hf_layers
from mcl_jax.models.pretrained import save_pretrained
from mcl_jax.models.tensors import rename

PREFIX = "base_model.model."


def save_peft(folder: str | Path, model: Hypotheses, adapters: PyTree[Array], *, base: str = "") -> list[Path]:
    """Writes one PEFT adapter folder per hypothesis: `lora0` … `lora{K-1}`.

    All adapters with such names in `folder` are replaced; other files stay. A shared part becomes the first components
    of every adapter, whose rank is then the sum of both.

    Args:
      folder: where to create the adapter folders.
      model: hypotheses of a language model from `mcl_jax.models`.
      adapters: adapters with leading axis K.
      base: name or path of the base model, for PEFT's `base_model_name_or_path`.
    Returns:
      The folders.
    Raises:
      ValueError: if an adapted kernel does not have two axes, or `folder` is itself an adapter.
    """
    saved, family = [], families.of_module(model.module)
    for k in range(hypotheses.count(adapters)):
        tensors, ranks, alphas = {}, {}, {}
        for path, leaf in _joined(flatten_dict(hypotheses.select(adapters, k))).items():
            place = "/".join(path[:-1])
            for layer, (name, index) in enumerate(hf_layers(path, leaf.shape, family)):
                name, matrix = rename(name, family.in_memory), np.asarray(leaf[index])
                if matrix.ndim != 2:
                    raise ValueError(
                        f"PEFT stores only adapters of kernels with two axes, but {path[-1]} of {name} has shape "
                        f"{leaf.shape}"
                    )
                ranks[name], alphas[name] = _rank_and_alpha(model.config, place, layer)
                unpadded = matrix[:, : ranks[name]] if path[-1] == "a" else matrix[: ranks[name]]
                tensors[f"{PREFIX}{name}.lora_{path[-1].upper()}.weight"] = np.ascontiguousarray(unpadded.T)
        saved.append((_settings_of(model.config, family, ranks, alphas, base), tensors))
    return peft_files.save_set(Path(folder), saved)


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


def _settings_of(config: LoraConfig, family: families.Family, ranks, alphas, base) -> dict[str, Any]:
    def differing(values: dict[str, Any], default: Any) -> dict[str, Any]:
        return {re.escape(name): value for name, value in values.items() if value != default}

    layers = {} if config.layers is None else {"layers_to_transform": sorted(config.layers)}
    return {
        "peft_type": "LORA",
        "task_type": family.task,
        "base_model_name_or_path": base,
        "r": config.rank + config.shared_rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rank_stabilized,
        "target_modules": sorted(ranks),
        **layers,
        "rank_pattern": differing(ranks, config.rank + config.shared_rank),
        "alpha_pattern": differing(alphas, config.alpha),
        "fan_in_fan_out": not family.transposed,
        "bias": "none",
        "inference_mode": True,
    }


def load_peft(
    path: str | Path | Sequence[str | Path], module: Any, *, shared_rank: int = 0
) -> tuple[Hypotheses, PyTree[Array]]:
    """Loads PEFT adapters.

    Args:
      path: one adapter folder; a folder of `lora0` … `lora{K-1}` that were saved together; or a sequence of adapter
        folders.
      module: the base, a language model from `mcl_jax.models`.
      shared_rank: number of first components that all adapters have in common, as `save_peft` writes a shared part;
        they are loaded as `LoraConfig.shared_rank`.
    Returns:
      The hypotheses, and the adapters with leading axis K.
    Raises:
      ValueError: if a file is missing or broken, a setting is not supported, the adapters differ in rank, alpha or
        layers, the folders belong to two sets, or a tensor is not finite, does not fit the module, or belongs to a
        frozen tower. The message names it.
    """
    one_set = isinstance(path, (str, Path))
    folders = peft_files.find(Path(path)) if one_set else [Path(one) for one in path]
    if not folders:
        raise ValueError("load_peft needs at least one adapter folder, got an empty list")
    loaded = [(folder, *one) for folder in folders for one in _read(folder)]
    if one_set and folders != [Path(path)]:
        peft_files.check_one_set(folders)
    first = loaded[0][1]
    for folder, config, _ in loaded:
        if config != first:
            raise ValueError(
                f"all adapters must have the same settings, but {folder} has {config}, {folders[0]} has {first}"
            )
    model, adapters = _stack(module, first, [tensors for *_, tensors in loaded])
    return _parted(model, adapters, shared_rank) if shared_rank else (model, adapters)


def _parted(model: Hypotheses, adapters: PyTree[Array], shared_rank: int) -> tuple[Hypotheses, PyTree[Array]]:
    """Takes the first components, which all hypotheses have in common, out of the adapters as their shared part."""
    config = model.config
    ranks = [config.rank, *(r for value in config.rank_pattern.values() for r in _as_tuple(value))]
    if not 0 < shared_rank < min(ranks):
        raise ValueError(
            f"shared_rank must be at least 1 and below every rank, got {shared_rank} for {sorted(set(ranks))}"
        )
    flat = {}
    for path, leaf in flatten_dict(adapters).items():
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


@dataclasses.dataclass(frozen=True)
class _Settings:
    rank: int
    alpha: float
    dropout: float
    rank_stabilized: bool
    ranks: tuple[tuple[str, int], ...]
    alphas: tuple[tuple[str, float], ...]

    def rank_of(self, name: str) -> int:
        """Returns r of a layer, given its Hugging Face name."""
        return _matching(self.ranks, name, self.rank)

    def alpha_of(self, name: str) -> float:
        """Returns α of a layer, given its Hugging Face name."""
        return _matching(self.alphas, name, self.alpha)


def _matching(patterns: tuple[tuple[str, Any], ...], name: str, default: Any) -> Any:
    """Returns the value of the first pattern that matches the end of a layer's name, as PEFT reads patterns."""
    return next((value for pattern, value in patterns if re.fullmatch(rf"(.*\.)?({pattern})", name)), default)


def _read(folder: Path) -> list[tuple[_Settings, dict[str, dict[str, np.ndarray]]]]:
    """Reads settings and {layer: {"a": [in, r], "b": [r, out]}} of each hypothesis in a folder: one, or K grouped."""
    config, tensors = peft_files.read(folder)
    layers, file = {}, folder / peft_files.WEIGHTS
    for name, tensor in tensors.items():
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])(?:\.\w+)?\.weight", name)
        if match is None:
            raise ValueError(f"{file}: {name!r} is not a weight of a LoRA layer")
        halves = layers.setdefault(match[1], {})
        if match[2].lower() in halves:
            raise ValueError(f"{file} must hold one adapter, but it has lora_{match[2]} of {match[1]} twice")
        halves[match[2].lower()] = tensor
    if halves := sorted(name for name, ab in layers.items() if len(ab) < 2):
        raise ValueError(f"{file} must hold lora_A and lora_B of each layer, got only one of them for {halves[:8]}")
    if not layers:
        raise ValueError(f"{file} holds no adapters")
    peft_files.check_tensors(config, layers, file)
    rank = config["r"]
    ranks, alphas = (tuple(config.get(name, {}).items()) for name in ("rank_pattern", "alpha_pattern"))
    settings = _Settings(
        rank,
        float(config["lora_alpha"]),
        config.get("lora_dropout", 0.0),
        config.get("use_rslora", False),
        ranks,
        alphas,
    )
    return [(settings, one) for one in _ungroup(layers, rank)]


def _ungroup(layers: dict[str, dict[str, np.ndarray]], rank: int) -> list[dict[str, dict[str, np.ndarray]]]:
    grouped = {name for name, ab in layers.items() if ab["a"].ndim == 3}
    K = {layers[name]["a"].shape[0] // rank for name in grouped} or {1}
    if len(K) > 1 or (grouped and len(grouped) < len(layers)):
        raise ValueError(f"grouped adapters need the same K in all layers, got {sorted(K)}")

    def hypothesis(tensor: np.ndarray, k: int) -> np.ndarray:
        return np.split(tensor[..., 0] if tensor.ndim == 3 else tensor, max(K))[k].T

    return [
        {name: {ab: hypothesis(tensor, k) for ab, tensor in halves.items()} for name, halves in layers.items()}
        for k in range(max(K))
    ]


def _stack(module, settings: _Settings, hypotheses_: list[dict[str, dict[str, np.ndarray]]]):
    names = set(hypotheses_[0])
    for k, one in enumerate(hypotheses_):
        if set(one) != names:
            raise ValueError(
                f"all hypotheses must adapt the same layers; hypotheses {k} and 0 differ in "
                f"{sorted(set(one) ^ names)[:8]}"
            )
    family = families.of_module(module)
    given = {rename(name, family.renames): name for name in names}  # keys are published names
    if len(given) < len(names):
        raise ValueError(
            "every layer must have one adapter, but some have two, under different names: "
            f"{sorted(names - set(given.values()))[:8]}"
        )
    flat, used, ranks, alphas = {}, set(), {}, {}
    for path, leaf in flatten_dict(abstract_params(module)).items():
        adaptable = path[-1] == "kernel" and path[: len(family.language_model)] == family.language_model  # no towers
        layers = hf_layers(path, leaf.shape, family) if adaptable else []
        hit = [given[name] for name, _ in layers if name in given]
        if not hit:
            continue
        if len(hit) < len(layers):
            raise ValueError(
                f"{'/'.join(path[:-1])} stacks {len(layers)} layers by nn.scan, so either all or none of them need "
                f"adapters, got {len(hit)}"
            )
        used.update(hit)
        for name, one in itertools.product(hit, hypotheses_):
            peft_files.check_fit(name, one[name], leaf.shape[-2:])
        place = "/".join(path[:-1])
        ranks_of, alphas_of = [settings.rank_of(name) for name in hit], [settings.alpha_of(name) for name in hit]
        padded = [[_padded(one[name], max(ranks_of)) for name in hit] for one in hypotheses_]
        for ab in ("a", "b"):
            stacked = [np.stack([layer[ab] for layer in one]) for one in padded]
            scanned = layers[0][1] is not ...
            flat[(*path[:-1], ab)] = jnp.asarray(np.stack([s if scanned else s[0] for s in stacked]), jnp.float32)
        ranks[place], alphas[place] = _one_or_each(ranks_of), _one_or_each(alphas_of)
    if missing := sorted(names - used):
        raise ValueError(f"{type(module).__name__} does not have, or does not adapt, the layers {missing[:8]}")
    config = LoraConfig(
        rank=settings.rank,
        alpha=settings.alpha,
        dropout=settings.dropout,
        rank_stabilized=settings.rank_stabilized,
        targets=tuple(ranks),
        rank_pattern={p: r for p, r in ranks.items() if r != settings.rank},
        alpha_pattern={p: a for p, a in alphas.items() if a != settings.alpha},
    )
    return Hypotheses(module, config), unflatten_dict(flat)


def _padded(layer: dict[str, np.ndarray], rank: int) -> dict[str, np.ndarray]:
    """Pads A and B of one layer with zeros up to this rank; B A stays the same."""
    missing = (0, rank - layer["b"].shape[0])
    return {"a": np.pad(layer["a"], ((0, 0), missing)), "b": np.pad(layer["b"], (missing, (0, 0)))}


def _one_or_each(values: list[Any]) -> Any:
    """Returns a single value if all layers share it, else a tuple with one value per layer."""
    return values[0] if len(set(values)) == 1 else tuple(values)


def save_merged(
    folder: str | Path, model: Hypotheses, params: PyTree[Array], adapters: PyTree[Array], k: int, tokenizer: Any = None
) -> None:
    """Writes the base with hypothesis k merged in as a Hugging Face folder, which `from_pretrained` can load.

    Args:
      folder: where to write.
      model: hypotheses of a language model from `mcl_jax.models`.
      params: parameters of the base.
      adapters: adapters with leading axis K.
      k: the hypothesis to merge.
      tokenizer: tokenizer or processor to write beside the weights, if any.
    """
    save_pretrained(folder, model.module, model.merge(params, adapters, k), tokenizer)
