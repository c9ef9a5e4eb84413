"""Reading and writing of PEFT adapter folders, with checks of settings, tensors and sets of folders.

K hypotheses are K folders. `save_set` marks the weight files in their metadata, which PEFT ignores, so that folders of
two runs are never taken for the hypotheses of one.
"""

import hashlib
import json
import math
import numbers
import os
import re
from collections.abc import Callable, Mapping, Sequence
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
# PEFT settings that we read, and those that change neither the forward pass nor the base.
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
    "modules_to_save",
    "use_dora",
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
DEFAULTS = {"r": 8, "lora_alpha": 8}  # PEFT's defaults for entries that an adapter_config.json leaves out
INITIALISATIONS = (None, True, False, "gaussian", "orthogonal", "eva")  # these do not change the base
KINDS = {
    "lora_dropout": (numbers.Real, "a number"),
    "use_rslora": (bool, "true or false"),
    "use_dora": (bool, "true or false"),
    "modules_to_save": (list, "a list"),
    "rank_pattern": (dict, "an object"),
    "alpha_pattern": (dict, "an object"),
}
MARK = "mcl_jax.set", "mcl_jax.hypothesis", "mcl_jax.num_hypotheses"
Layers = dict[str, dict[str, np.ndarray]]


# ----------------------------------------------------------------------------------------------------------- Reading


def found_in(path: Path) -> bool:
    """Whether `path` is an adapter folder, or holds one of lora0, lora1, …"""
    return (path / CONFIG).is_file() or any(re.fullmatch(FOLDER, p.name) and _holds(p) for p in path.glob("lora*"))


def find(path: Path) -> list[Path]:
    """Returns the adapter folder at `path`, or the folders lora0 … lora{K-1} in it.

    Raises:
      ValueError: if there are none, one of them is missing, or `path` is an adapter folder and holds some too.
    """
    folders = sorted((p for p in path.glob("lora*") if re.fullmatch(FOLDER, p.name) and _holds(p)), key=_number)
    names = [p.name for p in folders]
    if (path / CONFIG).is_file():
        if folders:
            raise ValueError(f"{path} is an adapter folder and also holds {names}; pass the folders to load as a list")
        return [path]
    if not folders:
        raise ValueError(f"{path} must hold {CONFIG} or the folders lora0, lora1, …, got neither")
    if names != [f"lora{k}" for k in range(len(folders))]:
        raise ValueError(f"{path} must hold lora0 … lora{len(folders) - 1}, got {names}")
    return folders


def _holds(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / CONFIG).is_file() or (folder / WEIGHTS).is_file()


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("lora"))


def read(
    folder: Path, check: Callable[[Mapping[str, Any], Path], None] | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads one adapter folder.

    Args:
      folder: the folder.
      check: checks the settings, as `check_settings` does those of LoRA.
    Returns:
      The checked settings, and the tensors by name.
    Raises:
      ValueError: if a file is missing or broken, or a setting is not supported; names it.
    """
    try:
        config = DEFAULTS | options.given(read_json_object(folder / CONFIG))
        (check or check_settings)(config, folder / CONFIG)
        return config, load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        pickled = (folder / PICKLE).is_file() and not (folder / WEIGHTS).is_file()
        reason = f"it holds {PICKLE}; convert that to {WEIGHTS} first" if pickled else error
        raise ValueError(f"{folder} is not a complete PEFT adapter folder: {reason}") from error
    except (
        AttributeError,
        KeyError,
        TypeError,
    ) as error:  # float8, for example; ml_dtypes does not tell NumPy its name
        raise ValueError(
            f"{folder / WEIGHTS} must hold floating-point numbers, got a kind without a dtype: {error}"
        ) from error


def check_settings(config: Mapping[str, Any], file: Path) -> None:
    """Raises a ValueError that names the first setting of an adapter_config.json that is not supported."""
    if config.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{file}: peft_type must be LORA, got {config['peft_type']!r}")
    if (start := config.get("init_lora_weights")) not in INITIALISATIONS:
        raise ValueError(
            f"{file}: init_lora_weights is {start!r}, which also changes the weights of the base; save the adapter "
            "with PEFT's path_initial_model_for_weight_conversion, which turns it into a plain LoRA"
        )
    if config.get("bias") not in (None, "none"):
        raise ValueError(f"{file}: bias must be 'none', since biases are not trained here, got {config['bias']!r}")
    if unread := {name: value for name, value in config.items() if name not in READ | HARMLESS and value}:
        entries = ", ".join(f"{name} = {value!r}" for name, value in sorted(unread.items()))
        raise ValueError(f"{file} has settings that are not supported: {entries}")
    for name, (kind, called) in KINDS.items():
        given = config.get(name)
        if given is not None and (not isinstance(given, kind) or (kind is not bool and isinstance(given, bool))):
            raise ValueError(f"{file}: {name} must be {called}, got {given!r}")
    ranks, alphas = config.get("rank_pattern", {}), config.get("alpha_pattern", {})
    for name, rank in [("r", config["r"]), *ranks.items()]:
        if not isinstance(rank, numbers.Integral) or isinstance(rank, bool) or rank < 1:
            raise ValueError(f"{file}: a rank must be an integer of at least 1, got {rank!r} for {name!r}")
    for name, alpha in [("lora_alpha", config["lora_alpha"]), *alphas.items()]:
        if not isinstance(alpha, numbers.Real) or isinstance(alpha, bool) or not math.isfinite(alpha):
            raise ValueError(f"{file}: an alpha must be a finite number, got {alpha!r} for {name!r}")
    for pattern in (*ranks, *alphas):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{file}: {pattern!r} is not a valid regular expression: {error}") from error


def check_tensors(config: Mapping[str, Any], layers: Layers, file: Path) -> None:
    """Checks the shapes, dtypes and values of the matrices of an adapter.

    Args:
      config: settings of the adapter.
      layers: {layer: {"a": [r, in], "b": [out, r]}}, or grouped, [K·r, in, 1] and [K·out, r, 1]. With DoRA, each has
        "magnitude" [out] too.
      file: file of the tensors, for errors.
    Raises:
      ValueError: if a tensor does not have the shape that the rank implies, or is not finite; names it.
    """
    for name, ab in layers.items():
        a, b, rank = ab["a"], ab["b"], rank_of(config, name)
        K = max(1, a.shape[0] // rank) if a.ndim == 3 else 1
        flat = a.ndim == b.ndim and (a.ndim == 2 or (a.ndim == 3 and a.shape[2] == b.shape[2] == 1))
        if not flat or a.shape[0] != K * rank or b.shape[1] != rank or b.shape[0] % K:
            raise ValueError(
                f"{file}: lora_A and lora_B of {name} must be [r, in] and [out, r] with r = {rank}, as in {CONFIG}, "
                f"got {list(a.shape)} and {list(b.shape)}"
            )
        check_numbers(f"{file}: lora_A of {name}", a)
        check_numbers(f"{file}: lora_B of {name}", b)
        magnitude = ab.get("magnitude")
        if config.get("use_dora", False) != (magnitude is not None):
            held = "lacks" if magnitude is None else "has"
            raise ValueError(f"{file} {held} lora_magnitude_vector of {name}, but use_dora is {magnitude is None}")
        if magnitude is not None:
            check_numbers(f"{file}: lora_magnitude_vector of {name}", magnitude)
            if magnitude.shape != (b.shape[0],) or b.ndim != 2:
                raise ValueError(
                    f"{file}: lora_magnitude_vector of {name} must have {b.shape[0]} outputs, as lora_B, got "
                    f"{list(magnitude.shape)}"
                )


def check_numbers(what: str, tensor: np.ndarray) -> None:
    """Raises a ValueError, which begins with `what`, unless a tensor holds finite floating-point numbers."""
    if tensor.dtype.name not in ("float64", "float32", "float16", "bfloat16"):
        raise ValueError(f"{what} must be floating-point numbers, got {tensor.dtype}")
    if not np.isfinite(tensor).all():
        raise ValueError(f"{what} must hold finite numbers, got NaN or infinity")


def rank_of(config: Mapping[str, Any], layer: str) -> int:
    """Returns r of a layer, given its Hugging Face name."""
    return _matching(config.get("rank_pattern", {}), layer, config["r"])


def alpha_of(config: Mapping[str, Any], layer: str) -> float:
    """Returns α of a layer, given its Hugging Face name."""
    return float(_matching(config.get("alpha_pattern", {}), layer, config["lora_alpha"]))


def _matching(patterns: Mapping[str, Any], layer: str, default: Any) -> Any:
    """Returns the value of the first pattern that matches the end of a layer's name, as PEFT reads patterns."""
    return next((value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", layer)), default)


def check_fit(name: str, ab: Mapping[str, np.ndarray], kernel: tuple[int, ...]) -> None:
    """Raises a ValueError unless a [in, r] and b [r, out] of a layer fit its kernel [in, out]."""
    a, b = ab["a"], ab["b"]
    if (a.shape[0], b.shape[1]) != kernel:
        raise ValueError(
            f"the adapter of {name} must have {kernel[0]} inputs and {kernel[1]} outputs, as the layer itself, got "
            f"{a.shape[0]} and {b.shape[1]}"
        )


def check_one_set(folders: Sequence[Path]) -> None:
    """Raises a ValueError if marked folders lora0 … lora{K-1} were not saved together. PEFT itself writes no marks."""
    marks = [_mark(folder) for folder in folders]
    if not any(marks):
        return
    first = next(filter(None, marks))
    for k, (folder, mark) in enumerate(zip(folders, marks, strict=True)):
        if mark != (first[0], str(k), str(len(folders))):
            actual = f"it is marked as hypothesis {mark[1]} of {mark[2]}" if mark else "it is not marked"
            another = " of another set" if mark and mark[0] != first[0] else ""
            raise ValueError(
                f"{folder} must be hypothesis {k} of the {len(folders)} that were saved together, but {actual}"
                f"{another}; save all of them again, or pass the folders to combine as a list"
            )


def _mark(folder: Path) -> tuple[str, ...] | None:
    with safe_open(str(folder / WEIGHTS), framework="numpy") as tensors:
        metadata = tensors.metadata() or {}
    return tuple(metadata.get(name, "") for name in MARK) if MARK[0] in metadata else None


# ----------------------------------------------------------------------------------------------------------- Writing


def save_set(folder: Path, adapters: Sequence[tuple[Mapping[str, Any], Mapping[str, np.ndarray]]]) -> list[Path]:
    """Writes K adapters into lora0 … lora{K-1} and replaces those that the folder holds.

    All new files are written before any old one is removed.

    Args:
      folder: where to create the adapter folders.
      adapters: settings and tensors of each hypothesis.
    Returns:
      The adapter folders.
    Raises:
      ValueError: if `folder` is itself an adapter folder.
    """
    if (folder / CONFIG).is_file():
        raise ValueError(f"{folder} is an adapter folder itself ({CONFIG}); save to another folder or move it away")
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
    """Removes an adapter and the leftovers of an interrupted save (unless `keep_new`); other files stay."""
    half_written = [] if keep_new else [f"{CONFIG}.tmp", f"{WEIGHTS}.tmp"]
    for name in (CONFIG, WEIGHTS, PICKLE, *half_written):
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _digest(adapters: Sequence[Mapping[str, np.ndarray]]) -> str:
    """Returns a digest that identifies a set of adapters."""
    digest = hashlib.sha256()
    for tensors in adapters:
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode() + np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()
