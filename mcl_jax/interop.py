"""Adapters to and from Hugging Face PEFT, and merged weights as a Hugging Face folder.

    adapters of one hypothesis here                PEFT, adapter_model.safetensors, below base_model.model
    model/layers/self_attn/q_proj/a  [L, in, r]    model.layers.{i}.self_attn.q_proj.lora_A.weight  [r, in]
    model/layers/self_attn/q_proj/b  [L, r, out]   model.layers.{i}.self_attn.q_proj.lora_B.weight  [out, r]

Layers of models that see or hear are written under the names that they have in transformers from 4.52 on, and read
under these or those of before.

K hypotheses are K folders, `lora0` … `lora{K-1}`. The released checkpoints of the paper's authors have either this
layout, or all K in one `lora0` as weights of grouped 1x1 convolutions, lora_A [K·r, in, 1] and lora_B [K·out, r, 1].
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, PyTree
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mcl_jax import hypotheses, options
from mcl_jax.hypotheses import Hypotheses
from mcl_jax.lora import LoraConfig
from mcl_jax.models import pretrained
from mcl_jax.models.tensors import rename

PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PEFT_DEFAULT = 8  # of r and of lora_alpha, where a config does not say


def _layers(path: tuple[str, ...], leaf: Array) -> list[tuple[str, Any]]:
    """(name of the layer in Hugging Face, index into the leaf of one hypothesis) for each layer that a leaf holds."""
    names = pretrained.hf_names((*path[:-1], "kernel"), leaf.shape)
    if isinstance(names, str):
        return [(names.removesuffix(".weight"), ...)]
    return [(name.removesuffix(".weight"), i) for i, name in enumerate(names)]


def save_peft(folder: str | Path, model: Hypotheses, adapters: PyTree[Array], *, base: str = "") -> list[Path]:
    """Writes one PEFT adapter folder for each hypothesis: `lora0` … `lora{K-1}`.

    Args:
      model: of a language model of `mcl_jax.models`.
      adapters: leading axis K.
      base: name or path of the base model, for PEFT's `base_model_name_or_path`.
    Returns:
      The folders.
    Raises:
      ValueError: for adapters of other than linear layers with two-axis kernels.
    """
    folders, family = [], pretrained.family_of(model.module.config.to_hf())
    for k in range(hypotheses.count(adapters)):
        tensors, ranks, scales = {}, {}, {}
        for path, leaf in flatten_dict(hypotheses.select(adapters, k)).items():
            for name, index in _layers(path, leaf):
                name, matrix = rename(name, family.in_memory), np.asarray(leaf[index])
                if matrix.ndim != 2:
                    raise ValueError(
                        f"PEFT holds adapters of two-axis kernels only; {name} has {path[-1]} {leaf.shape}"
                    )
                tensors[f"{PREFIX}{name}.lora_{path[-1].upper()}.weight"] = np.ascontiguousarray(matrix.T)
                place = "/".join(path[:-1])
                ranks[name], scales[name] = model.config.rank_of(place), _alpha_of(model.config, place)
        folders.append(_write(Path(folder) / f"lora{k}", model.config, family, tensors, ranks, scales, base))
    return folders


def _alpha_of(config: LoraConfig, place: str) -> float:
    rank = config.rank_of(place)
    return config.scale_of(place) * (rank**0.5 if config.rank_stabilized else rank)


def _write(folder, config: LoraConfig, family: pretrained.Family, tensors, ranks, alphas, base) -> Path:
    differing = lambda of, default: {re.escape(name): value for name, value in of.items() if value != default}
    written = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rank_stabilized,
        "target_modules": sorted(ranks),
        "rank_pattern": differing(ranks, config.rank),
        "alpha_pattern": differing(alphas, config.alpha),
        "fan_in_fan_out": not family.transposed,
        "bias": "none",
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(written, indent=2) + "\n")
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return folder


def load_peft(path: str | Path | Sequence[str | Path], module: Any) -> tuple[Hypotheses, PyTree[Array]]:
    """(hypotheses, adapters with a leading axis K) from PEFT adapters of a base that `module` is.

    Args:
      path: one adapter folder; a folder of `lora0` … `lora{K-1}`; or a sequence of adapter folders.
      module: the base, a language model of `mcl_jax.models`.
    Raises:
      ValueError: names a file that is missing or broken, adapters that differ in rank, alpha or layers, or a tensor
        that has no place in the module or is of a frozen tower.
    """
    folders = _adapter_folders(path)
    loaded = [one for folder in folders for one in _read(folder)]
    configs = [config for config, _ in loaded]
    for folder, config in zip(folders, configs, strict=False):
        if config != configs[0]:
            raise ValueError(f"{folder} has other settings than {folders[0]}: {config} and {configs[0]}")
    return _stack(module, configs[0], [tensors for _, tensors in loaded])


def _adapter_folders(path: str | Path | Sequence[str | Path]) -> list[Path]:
    if not isinstance(path, (str, Path)):
        return [Path(one) for one in path]
    path = Path(path)
    if (path / CONFIG).is_file():
        return [path]
    found = sorted((p for p in path.glob("lora*") if re.fullmatch(r"lora\d+", p.name)), key=lambda p: int(p.name[4:]))
    if not found:
        raise ValueError(f"{path} has neither {CONFIG} nor folders lora0, lora1, …")
    if [p.name for p in found] != [f"lora{k}" for k in range(len(found))]:
        raise ValueError(f"{path} needs lora0 … lora{len(found) - 1}, has {[p.name for p in found]}")
    return found


@dataclasses.dataclass(frozen=True)
class _Settings:
    rank: int
    alpha: float
    dropout: float
    rank_stabilized: bool
    alphas: tuple[tuple[str, float], ...]


def _read(folder: Path) -> list[tuple[_Settings, dict[str, dict[str, np.ndarray]]]]:
    """Settings and {layer: {"a": [in, r], "b": [r, out]}} of each hypothesis that a folder holds: one, or K grouped."""
    try:
        config = options.given(json.loads((folder / CONFIG).read_text()))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"{folder} is no whole PEFT adapter folder: {error}") from error
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])(?:\.\w+)?\.weight", name)
        if match is None:
            raise ValueError(f"{folder / WEIGHTS}: {name!r} is no weight of a LoRA layer")
        layers.setdefault(match[1], {})[match[2].lower()] = tensor
    if halves := sorted(name for name, ab in layers.items() if len(ab) < 2):
        raise ValueError(f"{folder / WEIGHTS} has only one of lora_A and lora_B of {halves[:8]}")
    rank = config.get("r", PEFT_DEFAULT)
    alphas = tuple(sorted(options.given(config.get("alpha_pattern")).items()))
    settings = _Settings(
        rank,
        float(config.get("lora_alpha", PEFT_DEFAULT)),
        config.get("lora_dropout", 0.0),
        config.get("use_rslora", False),
        alphas,
    )
    return [(settings, one) for one in _ungroup(layers, rank)]


def _ungroup(layers: dict[str, dict[str, np.ndarray]], rank: int) -> list[dict[str, dict[str, np.ndarray]]]:
    grouped = {name for name, ab in layers.items() if ab["a"].ndim == 3}
    K = {layers[name]["a"].shape[0] // rank for name in grouped} or {1}
    if len(K) > 1 or (grouped and len(grouped) < len(layers)):
        raise ValueError(f"grouped adapters need one K for all layers, got {sorted(K)}")
    split = lambda x, k: np.split(x[..., 0] if x.ndim == 3 else x, max(K))[k].T
    return [{name: {ab: split(x, k) for ab, x in of.items()} for name, of in layers.items()} for k in range(max(K))]


def _stack(module, settings: _Settings, hypotheses_: list[dict[str, dict[str, np.ndarray]]]):
    names = set(hypotheses_[0])
    for k, one in enumerate(hypotheses_):
        if set(one) != names:
            raise ValueError(f"hypothesis {k} adapts other layers than hypothesis 0: {sorted(set(one) ^ names)[:8]}")
    renames = pretrained.family_of(module.config.to_hf()).renames
    given = {rename(name, renames): name for name in names}  # under the name of the module tree
    flat, used, ranks, alphas = {}, set(), {}, {}
    for path, leaf in flatten_dict(pretrained.abstract_params(module)).items():
        adaptable = path[-1] == "kernel" and (path[0] == "language_model" or not hasattr(module, "encode"))  # no towers
        layers = _layers(path, leaf) if adaptable else []
        hit = [given[name] for name, _ in layers if name in given]
        if not hit:
            continue
        if len(hit) < len(layers):
            raise ValueError(
                f"{'/'.join(path[:-1])} is scanned: all of its {len(layers)} layers need adapters, or none"
            )
        used.update(hit)
        place = "/".join(path[:-1])
        for ab in ("a", "b"):
            stacked = [np.stack([one[name][ab] for name in hit]) for one in hypotheses_]
            scanned = layers[0][1] is not ...
            flat[(*path[:-1], ab)] = jnp.asarray(np.stack([s if scanned else s[0] for s in stacked]), jnp.float32)
        ranks[place] = flat[(*path[:-1], "a")].shape[-1]
        alphas[place] = next((a for p, a in settings.alphas if re.fullmatch(rf"(.*\.)?({p})", hit[0])), settings.alpha)
    if missing := sorted(names - used):
        raise ValueError(f"adapters of layers that {type(module).__name__} does not have or adapt: {missing[:8]}")
    config = LoraConfig(
        rank=settings.rank, alpha=settings.alpha, dropout=settings.dropout, rank_stabilized=settings.rank_stabilized,
        targets=tuple(ranks), rank_pattern={p: r for p, r in ranks.items() if r != settings.rank},
        alpha_pattern={p: a for p, a in alphas.items() if a != settings.alpha},
    )  # fmt: skip
    return Hypotheses(module, config), unflatten_dict(flat)


def save_merged(
    folder: str | Path, model: Hypotheses, params: PyTree[Array], adapters: PyTree[Array], k: int, tokenizer: Any = None
) -> None:
    """Writes the base with hypothesis k folded in as a Hugging Face folder, which `from_pretrained` loads again."""
    pretrained.save_pretrained(folder, model.module, model.merge(params, adapters, k), tokenizer)
