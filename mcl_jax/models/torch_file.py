"""Weight files that torch wrote before version 1.6: a source of tensors, read without torch and without running code.

Such a file is a sequence of pickles, followed by raw numbers, little-endian:

    magic number, protocol 1001, sizes of C types      three pickles
    {name: tensor}                                     a pickle; a tensor is a view of a storage
    [key, ...]                                         a pickle: the order of the storages
    for each key: int64 count, then count numbers      the storages

A pickle can name any function to call. The reader here knows only the four names that a file of weights needs, and
replaces them by its own classes, so no code of the file or of torch runs; see `plain_pickle`.
"""

import dataclasses
import math
import mmap
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mcl_jax.models.plain_pickle import Machine, Name

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {  # class of a storage: (dtype as safetensors calls it, as NumPy does)
    "FloatStorage": ("F32", "<f4"),
    "HalfStorage": ("F16", "<f2"),
    "DoubleStorage": ("F64", "<f8"),
    "LongStorage": ("I64", "<i8"),
}
DICT, TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
CLASSES = {f"torch {kind}": kind for kind in STORAGES}
MOST_AXES, MOST = 32, 2**48  # axes of a tensor, and its numbers


@dataclasses.dataclass(frozen=True)
class _Storage:
    """Numbers of one dtype, named by `key`."""

    key: str
    kind: str
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and strides count numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def end(self) -> int:
        """Index after the last number of the storage that the view reads."""
        if 0 in self.shape:
            return self.offset
        return self.offset + 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """Stands for torch's function that makes a tensor of a storage; gradients and hooks are ignored."""
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise pickle.UnpicklingError("a tensor must be a view of a storage")
    numbers = (offset, *shape, *strides)
    if any(type(number) is not int or not 0 <= number < MOST for number in numbers):
        raise pickle.UnpicklingError("a tensor must have an offset, a shape and strides of at least 0, and below 2^48")
    if len(shape) != len(strides) or len(shape) > MOST_AXES or math.prod(n or 1 for n in shape) > max(1, storage.count):
        raise pickle.UnpicklingError(
            f"a tensor must have a stride for each axis and at most the {storage.count} numbers of its storage, got "
            f"shape {shape[:MOST_AXES]} and strides {strides[:MOST_AXES]}"
        )
    return _Tensor(storage, offset, shape, strides)


def _call(name: Name, arguments: tuple) -> Any:
    """Makes what a file asks for: a tensor or a dict."""
    if name.text == DICT and not arguments:
        return {}
    if name.text == TENSOR:
        return _tensor(*arguments)
    raise pickle.UnpicklingError(f"it calls {name.text.replace(' ', '.')} as no file of weights does")


def _storage(pid: Any) -> _Storage:
    match pid:
        case ("storage", Name(text), str() as key, _, int() as count, None) if text in CLASSES and 0 <= count < MOST:
            return _Storage(key, CLASSES[text], count)
    raise pickle.UnpicklingError("a storage must have a class, a key and a size")


class TorchFile:
    """The tensors of a file that `torch.save` wrote in the old format; see `tensors.TensorSource`.

    Args:
      file: the file, often named .pth or .pt.
    Raises:
      ValueError: if the file does not exist, is of another format, asks for anything but tensors, or is truncated or
        damaged. The message names the file.
    """

    def __init__(self, file: Path | str):
        self.file = Path(file)
        if not self.file.is_file():
            raise ValueError(f"there is no weight file {self.file}")
        if not self.file.stat().st_size:
            raise ValueError(f"{self.file} is damaged or not a torch file of weights: it is empty")
        with open(self.file, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
            self._tensors, order = self._read_header(stream)
            self._starts = self._find_storages(stream, order)
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        self.dtypes = {name: STORAGES[tensor.storage.kind][0] for name, tensor in self._tensors.items()}

    def _read_header(self, stream: BinaryIO) -> tuple[dict[str, _Tensor], list[str]]:
        """Returns the tensors by name, and the keys of the storages in their order."""
        if stream.read(4) == b"PK\x03\x04":
            raise ValueError(
                f"{self.file} must be a file of weights in torch's format before 1.6, but is a zip archive, as later "
                "versions write it; convert it to safetensors"
            )
        stream.seek(0)
        if (start := [self._pickle(stream), self._pickle(stream)]) != [MAGIC, PROTOCOL]:
            shown = [value if type(value) is int and value < MAGIC else type(value).__name__ for value in start]
            raise ValueError(f"{self.file} must begin with the numbers of a torch file, got {shown}")
        sizes = self._pickle(stream)
        if not isinstance(sizes, dict) or sizes.get("little_endian") is not True:
            raise ValueError(f"{self.file} must be little-endian and say so, as torch's files do, but does not")
        tensors, order = self._pickle(stream), self._pickle(stream)
        if not isinstance(tensors, dict):
            raise ValueError(f"{self.file} must hold tensors by name, got {type(tensors).__name__}")
        if others := {name: type(x).__name__ for name, x in tensors.items() if not isinstance(x, _Tensor)}:
            name, kind = next(iter(others.items()))
            raise ValueError(f"{self.file} must hold tensors by name, got {{{name!r}: {kind}}}")
        return dict(tensors), order

    def _pickle(self, stream: BinaryIO) -> Any:
        try:
            return Machine({DICT, TENSOR, *CLASSES}, _call, _storage).run(stream)
        except Exception as error:  # damaged pickles raise nearly every kind
            raise ValueError(f"{self.file} is damaged or not a torch file of weights: {error}") from error

    def _find_storages(self, stream: BinaryIO, order: list[str]) -> dict[str, int]:
        """Returns where the numbers of each storage begin, in bytes, after checking that they are all there."""
        storages = {tensor.storage.key: tensor.storage for tensor in self._tensors.values()}
        agree = all(storages[tensor.storage.key] == tensor.storage for tensor in self._tensors.values())
        keys = order if isinstance(order, list) and all(isinstance(key, str) for key in order) else None
        if not agree or keys is None or sorted(keys) != sorted(storages):
            raise ValueError(f"{self.file} is damaged: its list of storages is not that of its tensors")
        size, starts = self.file.stat().st_size, {}
        for storage in map(storages.get, keys):
            width = np.dtype(STORAGES[storage.kind][1]).itemsize
            count = int.from_bytes(stream.read(8), "little")
            starts[storage.key], end = stream.tell(), stream.tell() + count * width
            if size < end:
                raise ValueError(f"{self.file} is truncated: it must have at least {end} bytes, got {size}")
            if count != storage.count:
                raise ValueError(f"{self.file} is damaged: a storage must have {storage.count} numbers, got {count}")
            stream.seek(end)
        for name, tensor in self._tensors.items():
            if tensor.end > tensor.storage.count:
                raise ValueError(f"{self.file} is damaged: {name} reads beyond its {tensor.storage.count} numbers")
        return starts

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor."""
        tensor = self._tensors[name]
        dtype = np.dtype(STORAGES[tensor.storage.kind][1])
        start = self._starts[tensor.storage.key] + tensor.offset * dtype.itemsize
        numbers = np.fromfile(self.file, dtype, tensor.end - tensor.offset, offset=start)
        if len(numbers) != tensor.end - tensor.offset:  # as_strided would read beyond them
            raise ValueError(f"{self.file} was cut short while it was being read")
        strides = [step * dtype.itemsize for step in tensor.strides]
        return np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides).copy()
