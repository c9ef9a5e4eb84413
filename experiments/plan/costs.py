"""What one call of a compiled program costs a chip: FLOPs, bytes of its memory, and bytes between chips."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from experiments.plan.hlo import Array, Computation, Instruction, Program

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
# Instructions that move nothing: names of parts, or control whose parts are counted.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "partition-id", "replica-id"}
FREE |= {"while", "conditional", "call", "after-all", "opt-barrier", "async-start"}
SLICES = ("dynamic-slice", "slice", "gather")
FREE |= {f"{name}-done" for name in ("copy", "slice", "async", *COLLECTIVES)}


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind and group size in a call.

    Attributes:
      kind: all-gather, all-reduce, reduce-scatter, collective-permute or all-to-all.
      group: number of chips that take part together.
      calls: number of times.
      bytes: bytes of the whole arrays, which a chip holds after a gather or before a reduction.
      wire_bytes: bytes that a chip must send at least.
    """

    kind: str
    group: int
    calls: int
    bytes: int
    wire_bytes: int


@dataclasses.dataclass(frozen=True)
class Temporary:
    """A large result of an instruction."""

    shape: str
    bytes: int
    source: str


def shape_of(array: Array) -> str:
    """Writes dtype and dimensions, such as bf16[3,512,4096]."""
    return f"{array.dtype}[{','.join(map(str, array.dims))}]"


def flops(program: Program, dtype: str | None = None) -> float:
    """Counts the FLOPs of the matrix products and convolutions of a call, on one chip.

    Args:
      program: the program.
      dtype: counts only those whose operands both have this dtype, such as s8.
    """
    total = 0.0
    for run in program.runs():
        if run.instruction.opcode in ("dot", "convolution"):
            operands = _operands(run.instruction, run.computation)
            if dtype is None or {array.dtype for array in operands} == {dtype}:
                total += run.times * _flops(run.instruction, *operands)
    return total


def _operands(instruction: Instruction, computation: Computation) -> tuple[Array, Array]:
    left, right = (computation.instructions[name].arrays[0] for name in instruction.operands[:2])
    return left, right


def _flops(instruction: Instruction, left: Array, right: Array) -> float:
    out = instruction.arrays[0]
    if instruction.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)[1]
        return 2.0 * out.size * math.prod(left.dims[int(axis)] for axis in contracted.split(",") if axis)
    return _convolution_flops(instruction, out, left, right)


def _convolution_flops(instruction: Instruction, out: Array, left: Array, right: Array) -> float:
    """Counts products with entries of the input; those with padding and with holes of a dilation cost nothing."""
    of_left, _, rest = re.search(r"dim_labels=(\S+?),?(?:\s|$)", instruction.attributes)[1].partition("_")
    of_right, _, of_out = rest.partition("->")
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = dict(field.split("=") for field in window[1].split()) if window else {}
    taps = 1
    for index, label in enumerate(label for label in of_out if label.isdigit()):
        sizes = left.dims[of_left.index(label)], out.dims[of_out.index(label)]
        taps *= _taps({name: value.split("x")[index] for name, value in fields.items()}, *sizes)
    rows = out.dims[of_out.index("b")] * out.dims[of_out.index("f")]
    return 2.0 * rows * taps * right.dims[of_right.index("i")]


def _taps(window: Mapping[str, str], given: int, made: int) -> int:
    """Returns the number of pairs of an output and an entry of the input along one axis of a window."""
    number = {name: int(window.get(name, "1").split("_")[0]) for name in ("size", "stride", "lhs_dilate", "rhs_dilate")}
    low, dilate = int(window.get("pad", "0").split("_")[0]), number["lhs_dilate"]
    places = (o * number["stride"] - low + w * number["rhs_dilate"] for o in range(made) for w in range(number["size"]))
    return sum(0 <= place <= (given - 1) * dilate and place % dilate == 0 for place in places)


def collectives(program: Program) -> list[Collective]:
    """Adds up the collectives of a call, those with most bytes to send first.

    A collective that the compiler splits over several fusions keeps its channel, and counts once.
    """
    by_channel: dict[Any, tuple[str, int, int, float]] = {}
    for number, run in enumerate(program.runs()):
        opcode = run.instruction.opcode.removesuffix("-start")
        if opcode not in COLLECTIVES:
            continue
        kind, size, group = _collective(opcode, run.instruction, run.computation)
        channel = run.instruction.number("channel_id")
        key = number if channel is None else (channel, kind)
        if key not in by_channel or by_channel[key][2] < run.times:
            by_channel[key] = (kind, group, run.times, size)
    sums: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0, 0])
    for kind, group, times, size in by_channel.values():
        sums[kind, group][0] += times
        sums[kind, group][1] += times * size
    made = [
        Collective(kind, group, int(calls), int(size), int(size * _share(kind, group)))
        for (kind, group), (calls, size) in sums.items()
        if group > 1
    ]
    return sorted(made, key=lambda one: -one.wire_bytes)


def _collective(opcode: str, instruction: Instruction, computation: Computation) -> tuple[str, float, int]:
    """Returns kind, bytes of the whole arrays, and number of chips of a group."""
    operands = [computation.instructions[name] for name in instruction.operands if name in computation.instructions]
    given = sum(array.bytes for operand in operands for array in operand.arrays)
    text = instruction.attributes
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        group = len(listed[1].split(","))
    elif shaped := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        group = int(shaped[1])
    else:
        group = 2  # the pairs of a permutation
    if opcode == "all-reduce" and "all-reduce-scatter" in computation.name:
        return "reduce-scatter", given, group
    return opcode, given * group if opcode == "all-gather" else given, group


def _share(kind: str, group: int) -> float:
    """Returns the bytes that a chip sends at least, per byte of the whole array (rings are optimal)."""
    others = (group - 1) / group
    return {"all-reduce": 2 * others, "collective-permute": 1.0}.get(kind, others)


def memory_traffic(program: Program) -> float:
    """Counts the bytes that a chip reads from and writes to its memory; slices of an array count as such."""
    total = 0.0
    for run in program.runs():
        if not run.fused and run.instruction.opcode not in FREE:
            total += run.times * (_read(program, run.instruction, run.computation) + _written(program, run.instruction))
    return total


def _in_hbm(arrays: list[Array]) -> float:
    return float(sum(array.bytes for array in arrays if array.in_hbm))


def _read(program: Program, instruction: Instruction, computation: Computation) -> float:
    if instruction.opcode in SLICES:
        source = computation.instructions.get(instruction.operands[0])
        hbm = source is None or all(array.in_hbm for array in source.arrays)
        return float(sum(array.bytes for array in instruction.arrays)) if hbm else 0.0
    if instruction.opcode in ("copy-start", "slice-start"):
        source = computation.instructions[instruction.operands[0]].arrays[0]
        moved = min(array.bytes for array in instruction.arrays if array.size > 1 or len(instruction.arrays) == 1)
        return float(moved) if source.in_hbm else 0.0
    fused = instruction.called("calls") if instruction.opcode == "fusion" else []
    total = 0.0
    for index, name in enumerate(instruction.operands):
        if name not in computation.instructions:
            continue
        whole = _in_hbm(computation.instructions[name].arrays)
        total += min(whole, _of_parameter(program, fused[0], index)) if fused and whole else whole
    return total


def _of_parameter(program: Program, fused: str, index: int) -> float:
    """Returns the bytes that a fusion reads of an operand: only the slices, if it only slices it."""
    computation = program.computations[fused]
    parameters = (one for one in computation.instructions.values() if one.opcode == "parameter")
    return _used(program, computation, next(one.name for one in parameters if one.operands == (str(index),)))


def _used(program: Program, computation: Computation, name: str) -> float:
    total = 0.0
    for user in computation.instructions.values():
        if name not in user.operands:
            continue
        if user.opcode in SLICES and user.operands[0] == name:
            total += user.arrays[0].bytes
        elif user.opcode == "bitcast":
            total += _used(program, computation, user.name)
        elif user.opcode == "fusion":
            (fused,) = user.called("calls")
            places = [index for index, operand in enumerate(user.operands) if operand == name]
            total += sum(_of_parameter(program, fused, index) for index in places)
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
            return math.inf
    return total


def _written(program: Program, instruction: Instruction) -> float:
    if instruction.opcode in ("copy-start", "slice-start"):
        return _in_hbm(instruction.arrays[:1])
    inside, root = instruction.called("calls") if instruction.opcode == "fusion" else [], instruction
    computation = program.computations[inside[0]] if inside else None
    if computation is not None:
        root = computation.root
    if root.opcode == "dynamic-update-slice" and computation is not None:
        update = computation.instructions.get(root.operands[1])
        return _in_hbm(instruction.arrays) and float(sum(array.bytes for array in update.arrays))
    return _in_hbm(instruction.arrays)


def temporaries(program: Program, most: int = 5) -> list[Temporary]:
    """Lists the largest results of instructions, each shape and source line once; updates in place are left out."""
    found: dict[tuple[str, str], Temporary] = {}
    for run in program.runs():
        opcode = run.instruction.opcode
        if run.fused or opcode in FREE or opcode == "dynamic-update-slice" or _in_place(program, run.instruction):
            continue
        for array in run.instruction.arrays:
            if array.in_hbm and array.padded_bytes >= 2**10:
                one = Temporary(shape_of(array), array.padded_bytes, program.source(run.instruction))
                found.setdefault((one.shape, one.source), one)
    return sorted(found.values(), key=lambda one: -one.bytes)[:most]


def _in_place(program: Program, instruction: Instruction) -> bool:
    inside = instruction.called("calls") if instruction.opcode == "fusion" else []
    return bool(inside) and program.computations[inside[0]].root.opcode == "dynamic-update-slice"
