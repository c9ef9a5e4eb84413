"""Reads the text of a compiled program (XLA's HLO): instructions, how often each runs, and the line that made it."""

import dataclasses
import math
import re
from collections.abc import Iterator
from functools import cached_property

SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "f64": 8, "s64": 8, "u64": 8, "c64": 8, "c128": 16}
ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
NAME = re.compile(r"%([\w.\-]+)")
FRAME = re.compile(r"^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)\}")
LOCATION = re.compile(r"^(\d+) \{file_name_id=(\d+) function_name_id=\d+ line=(\d+)")
FILE = re.compile(r'^(\d+) "(.*)"$')
CALLS = {"fusion": r"calls", "call": r"to_apply|calls", "async-start": r"calls", "while": r"body"}


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape: its dtype, its dimensions, and its layout."""

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...]  # dimensions from the fastest to the slowest
    tiling: str

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.dims)

    @property
    def itemsize(self) -> float:
        """Bytes of an entry."""
        return SIZES.get(self.dtype) or int(re.sub(r"\D.*", "", self.dtype.lstrip("abcdefghijklmnopqrstuvwxyz"))) / 8

    @property
    def bytes(self) -> int:
        """Bytes without padding."""
        return 0 if self.dtype == "token" else int(self.size * self.itemsize)

    @property
    def padded_bytes(self) -> int:
        """Bytes with the padding of its tiles, such as T(8,128): the fastest dimensions are rounded up to them."""
        match = re.match(r"T\(([\d,]+)\)", self.tiling)
        if self.dtype == "token" or not match or not self.order:
            return self.bytes
        dims = list(self.dims)
        for axis, tile in zip(self.order, reversed(match[1].split(",")), strict=False):
            dims[axis] = -(-dims[axis] // int(tile)) * int(tile)
        return int(math.prod(dims) * self.itemsize)

    @property
    def in_hbm(self) -> bool:
        """Whether it is in the chip's memory, and not in the fast memory beside the cores."""
        return "S(" not in self.tiling


def arrays_of(shape: str) -> list[Array]:
    """Returns the arrays of a shape or of a tuple of shapes."""
    whole = lambda text: tuple(int(n) for n in (text or "").split(",") if n)
    return [
        Array(dtype, whole(dims), whole(order), tiling or "") for dtype, dims, order, tiling in ARRAY.findall(shape)
    ]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name, opcode: its name, and what it does.
      shape: shape of its result, as text.
      operands: names of its operands; the literal of a constant, the number of a parameter.
      attributes: the rest of the line.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    attributes: str

    @cached_property
    def arrays(self) -> list[Array]:
        """The arrays of the result."""
        return arrays_of(self.shape)

    def called(self, attribute: str) -> list[str]:
        """Returns the computations that an attribute such as `body` names."""
        found = re.search(rf"\b(?:{attribute})=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes)
        return NAME.findall(found[1]) if found else []

    def number(self, attribute: str) -> int | None:
        """Returns the value of an attribute such as channel_id."""
        found = re.search(rf"\b{attribute}=(\d+)", self.attributes)
        return int(found[1]) if found else None


def _closing(text: str, start: int) -> int:
    """Returns the index of the bracket that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    raise ValueError(f"the compiled program has a line with an open bracket: {text[:80]!r}")


def _instruction(line: str) -> Instruction | None:
    name, equals, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    if not equals or not name.startswith("%"):
        return None
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.find("(")
    closing = _closing(rest, opening)
    inside, opcode = rest[opening + 1 : closing], rest[:opening]
    operands = (inside,) if opcode in ("constant", "parameter") else tuple(NAME.findall(inside))
    return Instruction(name[1:], opcode, shape, operands, rest[closing + 1 :])


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions, of which the last is its result."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The result."""
        return self.instructions[next(reversed(self.instructions))]


@dataclasses.dataclass(frozen=True)
class Run:
    """An instruction where it runs: its computation, and how often it runs in one call of the program."""

    instruction: Instruction
    computation: Computation
    times: int
    fused: bool


class Program:
    """A compiled program.

    Args:
      text: `compiled.as_text()`.
    """

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self._files: dict[str, str] = {}
        self._locations: dict[str, tuple[str, str]] = {}
        self._frames: dict[str, tuple[str, str]] = {}
        current, section, self.entry = None, "", ""
        for line in text.splitlines():
            if header := HEADER.match(line):
                current = Computation(header[2], {})
                self.computations[header[2]] = current
                self.entry = header[2] if header[1] else self.entry
            elif line == "}":
                current = None
            elif current is not None:
                if (instruction := _instruction(line)) is not None:
                    root = line.lstrip().startswith("ROOT ")
                    self._add(current, instruction, root)
            elif line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
                section = line
            else:
                self._table(section, line)
        for computation in self.computations.values():  # the root stands last
            if root := computation.instructions.pop(":root", None):
                computation.instructions[root.name] = computation.instructions.pop(root.name)

    @staticmethod
    def _add(computation: Computation, instruction: Instruction, root: bool) -> None:
        computation.instructions[instruction.name] = instruction
        if root:
            computation.instructions[":root"] = instruction

    def _table(self, section: str, line: str) -> None:
        if section == "FileNames" and (match := FILE.match(line)):
            self._files[match[1]] = match[2]
        elif section == "FileLocations" and (match := LOCATION.match(line)):
            self._locations[match[1]] = (match[2], match[3])
        elif section == "StackFrames" and (match := FRAME.match(line)):
            self._frames[match[1]] = (match[2], match[3])

    def source(self, instruction: Instruction, own: str = "mcl_jax") -> str:
        """Returns "file:line" of the innermost line of the library that made an instruction, or "" if unknown."""
        frame, lines = str(instruction.number("stack_frame_id") or ""), []
        while frame in self._frames:
            location, parent = self._frames[frame]
            file, line = self._locations[location]
            lines.append(f"{self._files[file]}:{line}")
            frame = str(int(parent) - 1)  # they are counted from 1, where 1 is no parent
        if not lines:
            found = re.search(r'source_file="([^"]*)" source_line=(\d+)', instruction.attributes)
            return f"{found[1]}:{found[2]}" if found else ""
        line = next((line for line in lines if f"/{own}/" in line and "/site-packages/" not in line), lines[0])
        return line[line.find(f"/{own}/") + 1 :] if f"/{own}/" in line else line.rpartition("/")[2]

    def runs(self) -> Iterator[Run]:
        """Yields every instruction that runs, loops counted; of a conditional, the branch with most instructions."""
        yield from self._runs(self.entry, 1, False)

    def _runs(self, name: str, times: int, fused: bool) -> Iterator[Run]:
        computation = self.computations[name]
        for instruction in computation.instructions.values():
            yield Run(instruction, computation, times, fused)
            opcode = instruction.opcode
            if opcode == "conditional":
                branches = instruction.called("branch_computations") or [
                    *instruction.called("true_computation"),
                    *instruction.called("false_computation"),
                ]
                yield from self._runs(max(branches, key=self._size), times, fused)
            elif opcode in CALLS:
                inner = times * self.trips(instruction) if opcode == "while" else times
                for called in instruction.called(CALLS[opcode]):
                    yield from self._runs(called, inner, fused or opcode == "fusion")

    def _size(self, name: str) -> int:
        """Returns the number of instructions of a computation and of those that it calls."""
        computation = self.computations[name]
        called = (
            inner
            for instruction in computation.instructions.values()
            if instruction.opcode in CALLS
            for inner in instruction.called(CALLS[instruction.opcode])
        )
        return len(computation.instructions) + sum(map(self._size, called))

    def trips(self, loop: Instruction) -> int:
        """Returns how often a loop runs: the number that the compiler knows, or the largest bound of its condition."""
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        (condition,) = loop.called("condition")
        names, bounds = [condition], []
        while names:
            for instruction in self.computations[names.pop()].instructions.values():
                names += instruction.called("calls") if instruction.opcode == "fusion" else []
                if instruction.opcode == "constant" and re.fullmatch(r"[su]32\[\]\S*", instruction.shape):
                    bounds.append(int(instruction.operands[0]))
        return max([1, *bounds])
