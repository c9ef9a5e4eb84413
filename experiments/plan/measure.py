"""Compiles a program and reads what it takes: memory, FLOPs, bytes between chips, and the time these need."""

import dataclasses
import re
import time
from collections.abc import Mapping
from typing import Any

import jax

from experiments.plan import costs
from experiments.plan.chips import Topology
from experiments.plan.hlo import Program

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# What the compiler for TPUs says if a program needs too much: all that it uses, or its temporaries alone.
USED = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm")
TEMPORARIES = re.compile(r"required for HLO temporaries \(([\d.]+)([KMGT]?)\)")
ALLOCATION = re.compile(r"Size: ([\d.]+)([KMGT]?)\s.*?Shape: (\S+)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Measured:
    """One compiled program, per chip.

    Attributes:
      name: train, evaluation, decoding or tower.
      bytes: bytes by kind: what stays in memory between programs, and padding, temporaries and code of this one.
      flops: FLOPs of a call, as compiled; 0 if the compiler refused the program.
      int8_flops: those of them whose operands are both int8.
      traffic: bytes between the chip and its memory.
      collectives: bytes between chips.
      temporaries: the largest results.
      compile_seconds: time to compile.
      refused: whether the compiler refused the program because it needs too much memory.
    """

    name: str
    bytes: Mapping[str, int]
    flops: float = 0.0
    int8_flops: float = 0.0
    traffic: float = 0.0
    collectives: tuple[costs.Collective, ...] = ()
    temporaries: tuple[costs.Temporary, ...] = ()
    compile_seconds: float = 0.0
    refused: bool = False

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return sum(self.bytes.values())

    def fits(self, memory: int) -> bool:
        """Whether a chip with this memory can run it."""
        return not self.refused and self.total <= memory

    def seconds(self, topology: Topology) -> dict[str, float]:
        """Returns the time that products, memory and links need at least; the step takes no less than the largest."""
        chip, sent = topology.chip, sum(one.wire_bytes for one in self.collectives)
        return {
            "compute": (self.flops - self.int8_flops) / chip.flops + self.int8_flops / chip.int8_flops,
            "memory": self.traffic / chip.bandwidth,
            "links": sent / (chip.link * topology.links),
        }


def measure(name: str, lowered: jax.stages.Lowered, resident: Mapping[str, int]) -> Measured:
    """Compiles a program.

    Args:
      name: its name.
      lowered: the program.
      resident: bytes per chip of what stays in memory, by kind.
    """
    started = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _refused(name, str(error), resident, time.monotonic() - started)
    seconds, memory, program = time.monotonic() - started, compiled.memory_analysis(), Program(compiled.as_text())
    entry = program.computations[program.entry].instructions.values()
    arguments = [array for one in entry if one.opcode == "parameter" for array in one.arrays]
    own = {
        "padding": sum(array.padded_bytes - array.bytes for array in arguments),
        "temporaries": memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    return Measured(
        name,
        {**resident, **own},
        costs.flops(program),
        costs.flops(program, "s8"),
        costs.memory_traffic(program),
        tuple(costs.collectives(program)),
        tuple(costs.temporaries(program)),
        seconds,
    )


def _refused(name: str, message: str, resident: Mapping[str, int], seconds: float) -> Measured:
    """Reads the bytes in the compiler's message."""
    held = sum(resident.values())
    if match := USED.search(message):
        temporaries = _bytes(match[1], match[2]) - held  # the tower, which is resident too, may not be among them
    elif match := TEMPORARIES.search(message):
        temporaries = _bytes(match[1], match[2])
    else:
        temporaries = 0
    largest = tuple(
        costs.Temporary(shape.partition("{")[0], _bytes(size, unit), "")
        for size, unit, shape in ALLOCATION.findall(message)
    )
    kinds = {**resident, "temporaries": max(0, temporaries)}
    return Measured(name, kinds, temporaries=largest[:5], compile_seconds=seconds, refused=True)


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * UNITS[unit])


def to_json(one: Measured, topology: Topology) -> dict[str, Any]:
    """Returns the values for a JSON file."""
    times = {name: value for name, value in one.seconds(topology).items() if topology.chip.flops < float("inf")}
    return {
        "bytes_by_kind": dict(one.bytes),
        "bytes_per_chip": one.total,
        "fits": one.fits(topology.chip.memory),
        "flops_per_chip": one.flops,
        "memory_traffic": one.traffic,
        "collectives": [dataclasses.asdict(collective) for collective in one.collectives],
        "temporaries": [dataclasses.asdict(temporary) for temporary in one.temporaries],
        "seconds_at_least": times,
        "compile_seconds": round(one.compile_seconds, 1),
    }
