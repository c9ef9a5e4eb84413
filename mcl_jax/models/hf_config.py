"""Reading of a Hugging Face `config.json`: checks that the weights are not quantised and that values have their types.

The config class of each family interprets the values.
"""

import contextlib
import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mcl_jax import options
from mcl_jax.json_io import read_json_object

QUANTISED = ("quantization_config", "compression_config")
QUANTISER_FILES = {"quantize_config.json": "GPTQ", "quant_config.json": "AWQ"}  # written by older tools
KINDS = {
    bool: ("true or false", (bool, np.bool_)),
    int: ("an integer", numbers.Integral),
    float: ("a finite number", numbers.Real),
}


def read_config(folder: Path) -> dict[str, Any]:
    """Reads the `config.json` of a folder.

    Raises:
      ValueError: if the file does not exist, is not a JSON object, or says that the weights are quantised.
    """
    folder = Path(folder)
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} must hold a config.json (Hugging Face) or a GGUF file, got neither")
    config = read_json_object(file)
    beside = next((f"{kind} ({name})" for name, kind in QUANTISER_FILES.items() if (folder / name).is_file()), None)
    if method := quantiser(config) or beside:
        raise ValueError(
            f"{folder}: the weights are quantised with {method}, which is not supported; get the weights of this model "
            "in float32, float16 or bfloat16, or as a GGUF file"
        )
    return config


def quantiser(config: Mapping[str, Any]) -> str | None:
    """Returns the quantisation method in a `config.json`, or in a part such as its `text_config`; None without one."""
    for name in QUANTISED:
        if given := config.get(name):
            method = _method(given)
            return None if method is None else f"{method} ({name} in config.json)"
    parts = [part for name, part in config.items() if name.endswith("_config") and isinstance(part, Mapping)]
    return next(filter(None, map(quantiser, parts)), None)


def _method(quantization: Any) -> str | None:
    """Returns the name of the method; None if it is bitsandbytes and switched off."""
    if not isinstance(quantization, Mapping):
        return str(quantization)
    off = not (quantization.get("load_in_8bit") or quantization.get("load_in_4bit"))
    method = quantization.get("quant_method") or quantization.get("format") or ("unknown" if off else "bitsandbytes")
    return None if method == "bitsandbytes" and off else str(method)


@contextlib.contextmanager
def errors_name(file: Path) -> Iterator[None]:
    """Turns errors about the values of a file into a ValueError that names the file."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"a value is missing or of the wrong type ({error!r})"
        raise ValueError(f"{file}: {reason}") from error


def check_sizes(config: Any, sizes: Sequence[str]) -> None:
    """Settles and checks the fields of a model's config.

    Args:
      config: a frozen dataclass; None becomes the default, see `options.settle`.
      sizes: fields that must be integers of at least 1, or None if that is their default.
    Raises:
      ValueError: if a size is not positive, or a value does not have its annotated type; names the field.
    """
    options.settle(config)
    given = {name: getattr(config, name) for name in sizes if getattr(config, name) is not None}
    options.check_integers(1, **given)
    check_types(config)


def check_divides(config: Any, part: str, whole: str) -> None:
    """Raises a ValueError unless one size of a config divides another."""
    if getattr(config, whole) % getattr(config, part):
        raise ValueError(f"{part} must divide {whole}, got {getattr(config, part)} and {getattr(config, whole)}.")


def check_types(config: Any) -> None:
    """Raises a ValueError that names the first field of a dataclass whose value does not have its annotated type.

    NumPy numbers count as numbers. Only fields annotated as bool, int or float are checked.
    """
    for field in dataclasses.fields(config):
        allowed = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
        kind, value = next((kind for kind in KINDS if kind in allowed), None), getattr(config, field.name)
        if kind is None or (value is None and types.NoneType in allowed):
            continue
        name, accepted = KINDS[kind]
        fits = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
        if not fits or (kind is float and not math.isfinite(value)):
            raise ValueError(f"{field.name} must be {name}, got {value!r}.")
