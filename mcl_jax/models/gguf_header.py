"""Checks that a GGUF file holds what its header claims, before the gguf package reads it.

That package believes every length: it reads on after the end of the file, where an array of 2^60 numbers never ends. It
also takes tensors that lie anywhere, although they are written one after the other, and llama.cpp refuses other files.

    "GGUF", u32 version, u64 tensors, u64 entries
    each entry:   string key, u32 kind, value          string: u64 length, UTF-8      array: u32 kind, u64 count, values
    each tensor:  string name, u32 axes, u64 sizes, u32 kind, u64 offset
    padding, then the data of the tensors, each padded

Source: the specification of GGUF, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a number, by its kind
U32, STRING, ARRAY = 4, 8, 9
ALIGNMENT, MOST_AXES = "general.alignment", 4


class _Header:
    """The bytes of a file, read one after the other."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at, self.alignment = data, 0, 32

    def skip(self, size: int) -> int:
        """Moves on by `size` bytes and returns where they begin."""
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise ValueError(f"it claims at least {self.at} bytes, got {len(self.data)}")
        return start

    def number(self, layout: str = "I") -> int:
        """Reads a number of this `struct` format."""
        return struct.unpack_from(f"<{layout}", self.data, self.skip(struct.calcsize(f"<{layout}")))[0]

    def string(self) -> str:
        """Reads a string."""
        size = self.number("Q")
        start = self.skip(size)
        return self.data[start : start + size].decode("utf-8")

    def entry(self) -> None:
        """Reads an entry of the metadata."""
        key, kind = self.string(), self.number()
        if key == ALIGNMENT and kind == U32:
            self.alignment = self.number()
            if self.alignment.bit_count() != 1:
                raise ValueError(f"{ALIGNMENT} must be a power of two, got {self.alignment}")
        elif kind == ARRAY:
            kind, count = self.number(), self.number("Q")
            if kind == STRING:
                for _ in range(count):
                    self.skip(self.number("Q"))
            else:
                self.skip(count * self._size_of(kind, key))
        elif kind == STRING:
            self.string()
        else:
            self.skip(self._size_of(kind, key))

    @staticmethod
    def _size_of(kind: int, key: str) -> int:
        if kind not in SIZES:
            raise ValueError(f"{key[:80]} must be made of numbers or texts, got the kind {kind}")
        return SIZES[kind]

    def tensor(self, blocks: Mapping[int, tuple[int, int]]) -> tuple[str, int, int]:
        """Reads the entry of a tensor; returns its name, offset and size in bytes."""
        name, axes = self.string(), self.number()
        if axes > MOST_AXES:
            raise ValueError(f"the tensor {name[:80]} must have at most {MOST_AXES} axes, got {axes}")
        shape = [self.number("Q") for _ in range(axes)]
        kind, offset = self.number(), self.number("Q")
        numbers, size = blocks.get(kind, (0, 0))
        if not numbers or (shape or [1])[0] % numbers:
            raise ValueError(f"the tensor {name[:80]} must be of a known kind in whole blocks, got {kind} and {shape}")
        return name, offset, math.prod(shape) // numbers * size


def check(file: Path) -> None:
    """Walks through the header of a file without reading values.

    Args:
      file: the file.
    Raises:
      ValueError: if it is another kind of file, ends too early, or its tensors do not follow one another.
    """
    import gguf  # brings a dozen modules

    if not file.stat().st_size:
        raise ValueError("it is empty")
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        header = _Header(data)
        if data[: header.skip(4) + 4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        if (version := header.number()) not in (2, 3):
            raise ValueError(f"its version must be 2 or 3, little-endian, got {version}")
        tensors, entries = header.number("Q"), header.number("Q")
        for _ in range(entries):
            header.entry()
        places = [header.tensor(gguf.GGML_QUANT_SIZES) for _ in range(tensors)]
        end = start = _padded(header.at, header.alignment)
        for name, offset, size in places:
            if start + offset != end:
                raise ValueError(f"the tensor {name[:80]} must begin at byte {end - start} of the data, got {offset}")
            if end + size > len(data):
                raise ValueError(f"the tensor {name[:80]} ends at byte {end + size}, but the file has {len(data)}")
            end = _padded(end + size, header.alignment)


def _padded(size: int, alignment: int) -> int:
    """Returns the smallest multiple that is at least `size`."""
    return -(-size // alignment) * alignment
