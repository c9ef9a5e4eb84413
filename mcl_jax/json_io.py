"""JSON of configurations and results: numpy and jax values converted, files replaced in one step."""

import contextlib
import dataclasses
import enum
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

HALVES = "backslashreplace"  # how surrogates are encoded: JSON reads its escapes back as they were


def to_json(value: Any, name: str = "value", *, non_finite: str = "refuse") -> Any:
    """The value in JSON's types: dataclasses and mappings as dict, sequences and arrays as lists, paths as text.

    Args:
      value: anything made of the types above, numbers, text, booleans and None.
      name: what errors call it.
      non_finite: "refuse", or "null" to write NaN and infinities (which JSON does not have) as null.
    Raises:
      ValueError: for a NaN or infinity with "refuse"; names its key.
      TypeError: for a type that JSON cannot hold; names its key and type.
    """
    inner = lambda v, key: to_json(v, f"{name}.{key}", non_finite=non_finite)
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, enum.Enum):
        return to_json(value.value, name, non_finite=non_finite)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        if math.isfinite(value):
            return float(value)
        if non_finite == "null":
            return None
        raise ValueError(f"{name} must be a finite number, got {float(value)}")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return to_json(_array_list(value, name), name, non_finite=non_finite)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: inner(getattr(value, field.name), field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): inner(v, key) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [inner(v, i) for i, v in enumerate(value)]
    raise TypeError(f"{name} must be JSON-able (numbers, text, lists, dicts, arrays), got {type(value).__name__}")


def _array_list(value: Any, name: str) -> Any:
    array = np.asarray(value)
    if array.dtype.kind in "biuU":
        return array.tolist()
    try:
        return array.astype(np.float64).tolist()  # bfloat16 too
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be an array of numbers, got dtype {array.dtype}") from None


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the system name this file, which those of a full disk do not by themselves."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces a file in one step: after a kill, or on a full disk, it holds either all of the old or all of the new.

    A link stays a link. What is no file, such as /dev/stdout or a pipe, is not replaced but written to.

    Raises:
      OSError: names the file; what it held before is still there.
    """
    with naming(path):
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        target = path.resolve()
        temporary = target.with_name(target.name + ".tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except OSError:
            temporary.unlink(missing_ok=True)  # on a full disk it takes what little space there is
            raise


def write_text(path: Path, text: str) -> None:
    """Replaces a file as `write_bytes` does, in UTF-8; half an emoji, which UTF-8 lacks, is written as \\ud83d."""
    write_bytes(path, text.encode("utf-8", HALVES))


def write_json(path: Path, value: Any) -> None:
    """Writes JSON types, indented, in one step."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
      ValueError: if it is not JSON in UTF-8; names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}): repair it or move it away") from error
    except (ValueError, RecursionError) as error:  # the latter for thousands of brackets in one another
        raise ValueError(f"{path} is not valid JSON ({error}): repair it or move it away") from error


def check_unicode(text: str, name: str) -> str:
    """The text, if it is Unicode. JSON allows half of a character beyond the first 65,536, such as half an emoji.

    Args:
      text: what came from JSON, a command line or a file's name.
      name: what the error calls it.
    Raises:
      ValueError: for such a half, which UTF-8 cannot hold: no file or program takes it.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half, around = text[error.start], text[max(0, error.start - 30) : error.start + 30]
        raise ValueError(f"{name} must be Unicode, got half a character, {half!a}, in {around!a}") from None
    return text


def read_json_object(path: Path) -> dict[str, Any]:
    """The dict that a JSON file holds.

    Raises:
      ValueError: as `read_json`, or if the file holds something else than an object; names the file.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}: repair it or move it away")
    return value
