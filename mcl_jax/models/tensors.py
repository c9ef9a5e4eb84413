"""Sources of weights, read one tensor at a time (safetensors files, or arrays in memory), and writing of weights.

A source has `shapes` and `dtypes` of all tensors by their Hugging Face names, and `read(name)`, which returns a NumPy
array. A source reads a tensor only when asked, and keeps nothing in memory.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes  # noqa: F401  (teaches NumPy the name "bfloat16", in which safetensors asks for it)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mcl_jax.json_io import read_json_object

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
SHARD = "model-{:05}-of-{:05}.safetensors"
OURS = r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?|config\.json"  # files that `write_weights` writes
FLOATS = ("F64", "F32", "F16", "BF16")  # dtypes of weights, as safetensors calls them
PICKLES = "pytorch_model*.bin*"


class TensorSource(Protocol):
    """Tensors by name."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor, in the dtype in which it is stored."""
        ...


class Arrays:
    """Arrays in memory, by name."""

    def __init__(self, arrays: Mapping[str, Any]):
        self.arrays = arrays
        self.shapes = {name: tuple(np.shape(array)) for name, array in arrays.items()}
        self.dtypes = dict.fromkeys(arrays, "F32")

    def read(self, name: str) -> np.ndarray:
        """Returns an array."""
        return np.asarray(self.arrays[name])


def rename(name: str, renames: Sequence[tuple[str, str]]) -> str:
    """Applies the first (regular expression, replacement) that matches the start of the name, if any."""
    return next((re.sub(pattern, into, name, count=1) for pattern, into in renames if re.match(pattern, name)), name)


class Renamed:
    """A source with renamed tensors, see `rename`.

    Raises:
      ValueError: if two tensors get the same name; names them.
    """

    def __init__(self, source: TensorSource, renames: Sequence[tuple[str, str]]):
        self.source, self.old_names = source, {}
        for old in source.shapes:
            new = rename(old, renames)
            if new in self.old_names:
                raise ValueError(
                    f"every tensor must have its own name, but {old} and {self.old_names[new]} are both {new}"
                )
            self.old_names[new] = old
        self.shapes = {new: source.shapes[old] for new, old in self.old_names.items()}
        self.dtypes = {new: source.dtypes[old] for new, old in self.old_names.items()}

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor, given its new name."""
        return self.source.read(self.old_names[name])


class Untied:
    """A source that has the output layer of a model that ties it to the embeddings, too: the same tensor again.

    Args:
      source: the source.
      tied: names of the output layer and of the embeddings.
    """

    def __init__(self, source: TensorSource, tied: tuple[str, str]):
        head, self.embeddings = tied
        self.source, self.head = source, head
        self.shapes, self.dtypes = (self._with_head(of_source) for of_source in (source.shapes, source.dtypes))

    def _with_head(self, of_source: Mapping[str, Any]) -> dict[str, Any]:
        return ({self.head: of_source[self.embeddings]} if self.embeddings in of_source else {}) | dict(of_source)

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor; that of the output layer is the one of the embeddings."""
        return self.source.read(self.embeddings if name == self.head and name not in self.source.shapes else name)


class Safetensors:
    """The safetensors of a folder: `model.safetensors`, or the shards that `model.safetensors.index.json` lists.

    Raises:
      ValueError: if a file is missing, truncated or not in this format, a tensor is not where the index says, or the
        folder holds both kinds of weights. The message names the files.
    """

    def __init__(self, folder: Path):
        self.shapes, self.dtypes, self.file_of = {}, {}, {}
        for file, listed in self._files(Path(folder)).items():
            with _open(file) as tensors:
                names = set(tensors.keys())
                if absent := sorted((listed or names) - names):
                    raise ValueError(
                        f"{file} must hold the tensors {absent[:8]}, as {folder / INDEX} says, but does not"
                    )
                for name in sorted(listed or names):
                    view = tensors.get_slice(name)
                    self.shapes[name], self.dtypes[name] = tuple(view.get_shape()), view.get_dtype()
                    self.file_of[name] = file

    @staticmethod
    def _files(folder: Path) -> dict[Path, set[str] | None]:
        """Returns each file with the tensors that the index lists in it, None without an index."""
        index, single = folder / INDEX, folder / SINGLE
        if not index.is_file():
            if os.path.lexists(index):
                raise ValueError(f"{index} must be a file, but it is a directory or a link to nothing")
            if not single.is_file() and (pickles := sorted(file.name for file in folder.glob(PICKLES))):
                raise ValueError(f"{folder} must hold {SINGLE}, got {pickles[:3]}; convert these to safetensors first")
            return {single: None}
        files = listed_shards(index)
        if single.is_file() and SINGLE not in files:
            raise ValueError(
                f"{folder} must hold one set of weights, got {SINGLE} and the shards that {INDEX} lists; move one away"
            )
        return {folder / name: names for name, names in files.items()}

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor."""
        with _open(self.file_of[name]) as tensors:
            return tensors.get_tensor(name)


def listed_shards(index: Path) -> dict[str, set[str]]:
    """Reads an index; returns {file name: names of its tensors}.

    Raises:
      ValueError: if the index is not JSON with a weight_map from tensors to files in the same folder; names it.
    """
    weight_map, files = read_json_object(index).get("weight_map"), {}
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} must have a weight_map, {{tensor: file}}, got {type(weight_map).__name__}")
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"{index}: the file of {tensor!r} must be in the same folder, got {file!r}")
        files.setdefault(file, set()).add(tensor)
    return dict(sorted(files.items()))


def _open(file: Path):
    if not file.is_file():
        raise ValueError(f"there is no weight file {file}")
    try:
        return safe_open(str(file), framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged or not a safetensors file ({error}); copy or download it again") from error


# ------------------------------------------------------------------------------------------------------------ Writing


def write_weights(folder: Path, tensors: Mapping[str, np.ndarray], config: str, most_bytes: int) -> None:
    """Writes weights and `config.json` and replaces those that the folder holds.

    All new files are written before any old one is removed, and the file that a reader opens first comes last, so a
    reader finds the old weights, the new ones, or none.

    Args:
      folder: where to write.
      tensors: tensors by their Hugging Face names.
      config: text of `config.json`.
      most_bytes: largest size of a shard in bytes; smaller weights become one `model.safetensors`.
    """
    for half_written in folder.glob("*.tmp"):
        if re.fullmatch(OURS, half_written.stem):
            half_written.unlink()
    old = {file for file in folder.iterdir() if re.fullmatch(OURS, file.name)} | _listed(folder)
    old -= {folder / "config.json"}  # replaced instead of removed: a folder without it is not a model
    shards = _shards(tensors, most_bytes)
    files = [SINGLE] if len(shards) == 1 else [SHARD.format(i, len(shards)) for i in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, folder / f"{file}.tmp", {"format": "pt"})
    texts = {"config.json": config} | ({INDEX: _index(files, shards)} if len(shards) > 1 else {})
    for file, text in texts.items():
        (folder / f"{file}.tmp").write_text(text, encoding="utf-8")
    for file in sorted(old, key=lambda file: file.name != INDEX):  # the file that a reader opens first goes first
        file.unlink()
    for file in ["config.json", *files, *(texts.keys() - {"config.json"})]:
        os.replace(folder / f"{file}.tmp", folder / file)


def _index(files: Sequence[str], shards: Sequence[Mapping[str, np.ndarray]]) -> str:
    """Returns the text of the index of these files."""
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)


def _listed(folder: Path) -> set[Path]:
    """Returns the existing shards that an index in the folder lists. Files that are no weights are never removed."""
    if not (folder / INDEX).is_file():
        return set()
    try:
        listed = listed_shards(folder / INDEX)
    except ValueError:  # a broken index is removed, and its shards are unknown
        return set()
    return {folder / name for name in listed if name.endswith(".safetensors") and (folder / name).is_file()}


def _shards(tensors: Mapping[str, np.ndarray], most_bytes: int) -> list[dict[str, np.ndarray]]:
    shards, size = [{}], 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > most_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards
