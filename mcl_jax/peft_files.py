"""PEFT adapter folders as files: which settings are read, which tensors fit, and which folders are one set.

K hypotheses are K folders. What `save_set` writes is marked in the metadata of the weight files, which PEFT does not
look at, so that folders of two runs are never taken for the hypotheses of one.
"""

import hashlib
import json
import math
import numbers
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (teaches NumPy the name "bfloat16", in which safetensors asks for it)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from mcl_jax import options
from mcl_jax.json_io import read_json_object

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
FOLDER = r"lora\d+"
# Settings of PEFT that are read here, or that change neither the forward pass nor the base.
READ = {
    "peft_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "init_lora_weights",
    "bias",
}
HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "merge_weights",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}
DEFAULTS = {"r": 8, "lora_alpha": 8}  # PEFT's, for what an adapter_config.json does not say
INITIALISATIONS = (None, True, False, "gaussian", "orthogonal", "eva")  # which leave the base as it is
KINDS = {
    "lora_dropout": (numbers.Real, "a number"),
    "use_rslora": (bool, "true or false"),
    "rank_pattern": (dict, "an object"),
    "alpha_pattern": (dict, "an object"),
}
MARK = "mcl_jax.set", "mcl_jax.hypothesis", "mcl_jax.num_hypotheses"
Layers = dict[str, dict[str, np.ndarray]]


# ----------------------------------------------------------------------------------------------------------- Reading


def find(path: Path) -> list[Path]:
    """The adapter folder at `path`, or the folders lora0 … lora{K-1} in it.

    Raises:
      ValueError: if there are none, one of them is missing, or `path` holds both.
    """
    holds = lambda folder: (folder / CONFIG).is_file() or (folder / WEIGHTS).is_file()
    found = sorted((p for p in path.glob("lora*") if re.fullmatch(FOLDER, p.name) and holds(p)), key=_number)
    names = [p.name for p in found]
    if (path / CONFIG).is_file():
        if found:
            raise ValueError(f"{path} holds an adapter and {names}: name the folders to load, as a list")
        return [path]
    if not found:
        raise ValueError(f"{path} has neither {CONFIG} nor folders lora0, lora1, …")
    if names != [f"lora{k}" for k in range(len(found))]:
        raise ValueError(f"{path} needs lora0 … lora{len(found) - 1}, has {names}")
    return found


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("lora"))


def read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(checked settings, tensors) of one adapter folder.

    Raises:
      ValueError: names a file that is missing or broken, or a setting that is not read.
    """
    try:
        config = DEFAULTS | options.given(read_json_object(folder / CONFIG))
        check_settings(config, folder / CONFIG)
        return config, load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        pickled = (folder / PICKLE).is_file() and not (folder / WEIGHTS).is_file()
        reason = f"it holds {PICKLE}, which must be converted to {WEIGHTS} first" if pickled else error
        raise ValueError(f"{folder} is no whole PEFT adapter folder: {reason}") from error


def check_settings(config: Mapping[str, Any], file: Path) -> None:
    """Raises a ValueError that names the first setting of an adapter_config.json that is not computed here."""
    if config.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{file}: peft_type must be LORA, got {config['peft_type']!r}")
    if (start := config.get("init_lora_weights")) not in INITIALISATIONS:
        raise ValueError(
            f"{file}: init_lora_weights is {start!r}, which changes the weights of the base too; save the adapter with "
            "PEFT's path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )
    if config.get("bias") not in (None, "none"):
        raise ValueError(f"{file}: bias must be 'none', got {config['bias']!r}: biases are not trained here")
    if unread := {name: of for name, of in config.items() if name not in READ | HARMLESS and of}:
        said = ", ".join(f"{name} = {of!r}" for name, of in sorted(unread.items()))
        raise ValueError(f"{file} has settings that are not read: {said}")
    for name, (kind, called) in KINDS.items():
        given = config.get(name)
        if given is not None and (not isinstance(given, kind) or (kind is not bool and isinstance(given, bool))):
            raise ValueError(f"{file}: {name} must be {called}, got {given!r}")
    ranks, alphas = config.get("rank_pattern", {}), config.get("alpha_pattern", {})
    for name, rank in [("r", config["r"]), *ranks.items()]:
        if not isinstance(rank, numbers.Integral) or rank < 1:
            raise ValueError(f"{file}: a rank must be an integer of at least 1, got {rank!r} for {name!r}")
    for name, alpha in [("lora_alpha", config["lora_alpha"]), *alphas.items()]:
        if not isinstance(alpha, numbers.Real) or not math.isfinite(alpha):
            raise ValueError(f"{file}: an alpha must be a finite number, got {alpha!r} for {name!r}")
    for pattern in (*ranks, *alphas):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{file}: {pattern!r} is not a valid regular expression: {error}") from error


def check_tensors(config: Mapping[str, Any], layers: Layers, file: Path) -> None:
    """Raises a ValueError that names the first tensor whose shape is not what the rank says, or that is not finite.

    Args:
      layers: {layer: {"a": [r, in], "b": [out, r]}}, or grouped, [K·r, in, 1] and [K·out, r, 1].
    """
    for name, ab in layers.items():
        a, b, rank = ab["a"], ab["b"], rank_of(config, name)
        K = max(1, a.shape[0] // rank) if a.ndim == 3 else 1
        flat = a.ndim == b.ndim and (a.ndim == 2 or (a.ndim == 3 and a.shape[2] == b.shape[2] == 1))
        if not flat or a.shape[0] != K * rank or b.shape[1] != rank or b.shape[0] % K:
            raise ValueError(
                f"{file}: lora_A and lora_B of {name} must be [r, in] and [out, r] with r = {rank}, which {CONFIG} "
                f"says, got {list(a.shape)} and {list(b.shape)}"
            )
        for half, tensor in (("A", a), ("B", b)):
            if tensor.dtype.name not in ("float64", "float32", "float16", "bfloat16"):
                raise ValueError(f"{file}: lora_{half} of {name} must be floating-point numbers, got {tensor.dtype}")
            if not np.isfinite(tensor).all():
                raise ValueError(f"{file}: lora_{half} of {name} must hold finite numbers, got NaN or infinity")


def rank_of(config: Mapping[str, Any], layer: str) -> int:
    """r of a layer: of the first pattern that its name ends in, or of all."""
    patterns = config.get("rank_pattern", {}).items()
    return next((rank for pattern, rank in patterns if re.fullmatch(rf"(.*\.)?({pattern})", layer)), config["r"])


def check_fit(name: str, ab: Mapping[str, np.ndarray], kernel: tuple[int, ...]) -> None:
    """Raises a ValueError unless a [in, r] and b [r, out] of a layer are of a kernel [in, out]."""
    a, b = ab["a"], ab["b"]
    if (a.shape[0], b.shape[1]) != kernel:
        raise ValueError(
            f"the adapter of {name} must have {kernel[0]} inputs and {kernel[1]} outputs, as the layer itself has, got "
            f"{a.shape[0]} and {b.shape[1]}"
        )


def check_one_set(folders: Sequence[Path]) -> None:
    """Raises a ValueError if folders lora0 … lora{K-1} were not saved together; those that PEFT wrote do not say."""
    marks = [_mark(folder) for folder in folders]
    if not any(marks):
        return
    first = next(filter(None, marks))
    for k, (folder, mark) in enumerate(zip(folders, marks, strict=True)):
        if mark != (first[0], str(k), str(len(folders))):
            said = f"hypothesis {mark[1]} of {mark[2]}" if mark else "not marked"
            raise ValueError(
                f"{folder} is not hypothesis {k} of the {len(folders)} that were saved together, but {said}; save them "
                "again, or name the folders to combine, as a list"
            )


def _mark(folder: Path) -> tuple[str, ...] | None:
    with safe_open(str(folder / WEIGHTS), framework="numpy") as tensors:
        metadata = tensors.metadata() or {}
    return tuple(metadata.get(name, "") for name in MARK) if MARK[0] in metadata else None


# ----------------------------------------------------------------------------------------------------------- Writing


def save_set(folder: Path, adapters: Sequence[tuple[Mapping[str, Any], Mapping[str, np.ndarray]]]) -> list[Path]:
    """Writes K adapters into lora0 … lora{K-1}, in the place of any that the folder holds.

    All of the new is written before anything of the old is removed.

    Args:
      adapters: (settings, tensors) of each.
    Raises:
      ValueError: if the folder is itself an adapter folder.
    """
    if (folder / CONFIG).is_file():
        raise ValueError(f"{folder} holds an adapter itself ({CONFIG}): save to another folder or move it away")
    folders = [folder / f"lora{k}" for k in range(len(adapters))]
    digest = _digest([tensors for _, tensors in adapters])
    for k, (one, (config, tensors)) in enumerate(zip(folders, adapters, strict=True)):
        one.mkdir(parents=True, exist_ok=True)
        mark = dict(zip(MARK, (digest, str(k), str(len(adapters))), strict=True))
        save_file(dict(tensors), one / f"{WEIGHTS}.tmp", {"format": "pt"} | mark)
        (one / f"{CONFIG}.tmp").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for old in [p for p in folder.glob("lora*") if re.fullmatch(FOLDER, p.name) and p.is_dir()]:
        _remove(old, keep_new=old in folders)
    for one in folders:
        for name in (WEIGHTS, CONFIG):
            os.replace(one / f"{name}.tmp", one / name)
    return folders


def _remove(folder: Path, *, keep_new: bool) -> None:
    """Removes an adapter and, unless it was just written, what a save that did not end left; other files stay."""
    half_written = [] if keep_new else [f"{CONFIG}.tmp", f"{WEIGHTS}.tmp"]
    for name in (CONFIG, WEIGHTS, PICKLE, *half_written):
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _digest(adapters: Sequence[Mapping[str, np.ndarray]]) -> str:
    """One text for one set of adapters."""
    digest = hashlib.sha256()
    for tensors in adapters:
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode() + np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()
