"""JSON files of configurations and results. NumPy and JAX values are converted; a file is replaced in one step."""

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

MOST_LEVELS = 100  # of brackets in brackets
HALVES = "backslashreplace"  # writes lone surrogates as escapes, which JSON reads back unchanged


def to_json(value: Any, name: str = "value", *, non_finite: str = "refuse") -> Any:
    """Converts a value to JSON's types: dataclasses and mappings to dict, sequences and arrays to lists, paths to text.

    Args:
      value: anything made of the types above, numbers, text, booleans and None.
      name: name of the value in errors.
      non_finite: "refuse", or "null" to write NaN and infinities (which JSON does not have) as null.
    Raises:
      ValueError: if a number is NaN or infinite and `non_finite` is "refuse"; names its key.
      TypeError: if JSON cannot hold a value; names its key and type.
    """

    def inner(entry: Any, key: Any) -> Any:
        return to_json(entry, f"{name}.{key}", non_finite=non_finite)

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
    """Adds the file name to system errors; that of a full disk, for example, has none."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces a file in one step: after a kill, or on a full disk, it holds either the old or the new content.

    A symbolic link stays a link. A path that is no regular file, such as /dev/stdout or a pipe, is written to directly.

    Raises:
      OSError: if the file cannot be written; names it. Its old content is kept.
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
            temporary.unlink(missing_ok=True)  # frees its space on a full disk
            raise


def write_text(path: Path, text: str) -> None:
    """Replaces a file as `write_bytes` does, in UTF-8; a lone surrogate, which UTF-8 cannot hold, becomes \\ud83d."""
    write_bytes(path, text.encode("utf-8", HALVES))


def write_json(path: Path, value: Any) -> None:
    """Writes a value of JSON's types, indented, in one step."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def parse(text: str) -> Any:
    """Parses JSON from a file that anyone may have written.

    Raises:
      ValueError: if the text is not JSON, or nested so deep that whatever walks through it runs out of stack.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("its brackets are nested too deep") from None
    level, depth = [value], 1
    while level := [inner for one in level for inner in _inside(one)]:
        if (depth := depth + 1) > MOST_LEVELS:
            raise ValueError(f"its brackets are nested more than {MOST_LEVELS} levels deep")
    return value


def _inside(value: Any) -> list[Any]:
    """Returns the containers in a container."""
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [entry for entry in entries if isinstance(entry, (dict, list))]


def read_text(path: Path) -> str:
    """Reads a file of text.

    Raises:
      ValueError: if the file is not UTF-8; names it.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}): repair it or move it away") from error


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      ValueError: if the file is not JSON in UTF-8; names it.
    """
    text = read_text(path)
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): repair it or move it away") from error


def check_unicode(text: str, name: str) -> str:
    """Returns the text if it is valid Unicode. JSON also allows lone surrogates, such as half an emoji.

    Args:
      text: a text from JSON, a command line or a file name.
      name: name of the text in the error.
    Raises:
      ValueError: if the text has a lone surrogate, which UTF-8 cannot hold.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half, around = text[error.start], text[max(0, error.start - 30) : error.start + 30]
        raise ValueError(f"{name} must be Unicode, got half a character, {half!a}, in {around!a}") from None
    return text


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
      ValueError: as `read_json` does, or if the file holds no object; names the file.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}: repair it or move it away")
    return value
