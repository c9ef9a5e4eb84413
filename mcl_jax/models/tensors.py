"""Where weights are read from, one tensor at a time: safetensors files, or arrays already in memory.

A source has `shapes`, the shape of every tensor by its Hugging Face name, and `read(name)`, a NumPy array. Nothing is
read before it is asked for, and nothing is kept.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes  # noqa: F401  (teaches NumPy the name "bfloat16", in which safetensors asks for it)
import numpy as np
from safetensors import SafetensorError, safe_open

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class TensorSource(Protocol):
    """Tensors by name."""

    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str) -> np.ndarray:
        """The tensor, in the dtype in which it is stored."""
        ...


class Arrays:
    """Arrays in memory, by name."""

    def __init__(self, arrays: Mapping[str, Any]):
        self.arrays = arrays
        self.shapes = {name: tuple(np.shape(array)) for name, array in arrays.items()}

    def read(self, name: str) -> np.ndarray:
        return np.asarray(self.arrays[name])


def rename(name: str, renames: Sequence[tuple[str, str]]) -> str:
    """The name after the first (regular expression, replacement) that matches its start; as it is if none does."""
    return next((re.sub(pattern, into, name, count=1) for pattern, into in renames if re.match(pattern, name)), name)


class Renamed:
    """A source under other names, see `rename`.

    Raises:
      ValueError: if two tensors get one name; names them.
    """

    def __init__(self, source: TensorSource, renames: Sequence[tuple[str, str]]):
        self.source, self.old_names = source, {}
        for old in source.shapes:
            new = rename(old, renames)
            if new in self.old_names:
                raise ValueError(f"{old} and {self.old_names[new]} are both {new}")
            self.old_names[new] = old
        self.shapes = {new: source.shapes[old] for new, old in self.old_names.items()}

    def read(self, name: str) -> np.ndarray:
        return self.source.read(self.old_names[name])


class Safetensors:
    """The safetensors of a folder: `model.safetensors`, or the shards that `model.safetensors.index.json` lists.

    Raises:
      ValueError: names a file that is missing, cut short or no safetensors file, or a tensor that is in none.
    """

    def __init__(self, folder: Path):
        self.files = self._files(Path(folder))
        self.shapes, self.file_of = {}, {}
        for file in self.files:
            with _open(file) as tensors:
                for name in tensors.keys():  # noqa: SIM118  (not a dict)
                    self.shapes[name] = tuple(tensors.get_slice(name).get_shape())
                    self.file_of[name] = file

    @staticmethod
    def _files(folder: Path) -> list[Path]:
        if not (folder / INDEX).is_file():
            return [folder / SINGLE]
        try:
            listed = json.loads((folder / INDEX).read_text())["weight_map"]
        except (json.JSONDecodeError, KeyError) as error:
            raise ValueError(f"{folder / INDEX} must be JSON with a weight_map, got {error!r}") from error
        return [folder / name for name in sorted(set(listed.values()))]

    def read(self, name: str) -> np.ndarray:
        with _open(self.file_of[name]) as tensors:
            return tensors.get_tensor(name)


def _open(file: Path):
    if not file.is_file():
        raise ValueError(f"there is no weight file {file}")
    try:
        return safe_open(str(file), framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no whole safetensors file (cut short in copying?): {error}") from error
