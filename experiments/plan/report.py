"""The plan as tables and as JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.common.devices import Axes
from experiments.plan.chips import GIB, Topology
from experiments.plan.measure import Measured, to_json
from experiments.plan.programs import Programs
from experiments.plan.search import Largest
from mcl_jax.console import say, table

KINDS = {  # title of each kind of bytes, in the order of the table
    "base": "base",
    "adapters": "adapters",
    "optimizer": "optimizer",
    "batch": "batch and features",
    "padding": "padding of layouts",
    "temporaries": "temporaries",
    "program": "program",
}
REDUCED = ("all-reduce", "reduce-scatter")


def gib(size: float) -> str:
    """Writes bytes in GiB."""
    return f"{size / GIB:.2f}" if size >= 0.01 * GIB or not size else f"{size / GIB:.1g}"


def axes_text(axes: Axes) -> str:
    """Writes a mesh as --mesh takes it."""
    return f"data={axes.data},model={axes.model}"


def say_settings(programs: Programs, topology: Topology) -> None:
    """Prints what is planned."""
    config, training = programs.config, programs.config.training
    say(
        f"{topology.name}, --mesh {axes_text(programs.axes)}: K={config.num_hypotheses} hypotheses of rank "
        f"{config.lora.rank}, {config.objective.name} with the backward pass {programs.backward}, batches of "
        f"{training.batch_size} x {training.max_length} tokens, --accumulate {training.accumulate}, --remat "
        f"{training.remat}{', --fsdp' if training.fsdp else ''}, the base in "
        f"{config.base.quantization or config.base.dtype}"
    )


def say_meshes(tried: Sequence[tuple[Axes, Measured]], best: Axes, topology: Topology) -> None:
    """Prints the train step of every mesh."""
    rows = [
        [
            axes_text(axes),
            "yes" if one.fits(topology.chip.memory) else "no",
            gib(one.total),
            *_times(one, topology),
            "best" if axes == best else "",
        ]
        for axes, one in tried
    ]
    table("Train step", ["mesh", "fits", "GiB per chip", "compute s", "memory s", "links s", ""], rows)


def say_memory(measured: Sequence[Measured], topology: Topology) -> None:
    """Prints bytes per chip by kind."""
    memory = topology.chip.memory
    rows = [[title, *(gib(one.bytes.get(kind, 0)) for one in measured)] for kind, title in KINDS.items()]
    rows += [["total", *(gib(one.total) for one in measured)]]
    rows += [["fits", *("yes" if one.fits(memory) else "no" for one in measured)]]
    table(f"GiB per chip, of {gib(memory)}", ["", *(one.name for one in measured)], rows)
    for one in measured:
        for temporary in one.temporaries:
            place = f" by {temporary.source}" if temporary.source else ""
            say(f"  {one.name}: {gib(temporary.bytes)} GiB {temporary.shape}{place}")


def say_costs(measured: Sequence[Measured], topology: Topology, model_flops: float, chips: int) -> None:
    """Prints FLOPs, bytes between chips, and the least time of each program."""
    rows = []
    for one in measured:
        sums = [sum(c.bytes for c in one.collectives if pick(c.kind)) for pick in (_gathered, _reduced, _other)]
        rows.append([one.name, f"{one.flops / 1e12:.2f}", *map(gib, (*sums, one.traffic)), *_times(one, topology)])
    columns = ["", "TFLOP", "gathered", "reduced", "permuted", "memory traffic", "compute s", "memory s", "links s"]
    table("Each call, per chip (bytes in GiB)", columns, rows)
    train = next((one for one in measured if one.name == "train" and one.flops), None)
    if train is not None:
        share = train.flops * chips / model_flops
        say(f"A step needs {model_flops / 1e12:.1f} TFLOP by formula; the compiled programs do {share:.2f} times that.")
        if (seconds := max(train.seconds(topology).values())) > 0:
            say(f"It takes at least {seconds:.3f} s: the largest of compute, memory and links at their peaks.")


def _gathered(kind: str) -> bool:
    return kind == "all-gather"


def _reduced(kind: str) -> bool:
    return kind in REDUCED


def _other(kind: str) -> bool:
    return not _gathered(kind) and not _reduced(kind)


def _times(one: Measured, topology: Topology) -> list[str]:
    return [f"{seconds:.3f}" if seconds else "n/a" for seconds in one.seconds(topology).values()]


def say_fit(programs: Programs, measured: Sequence[Measured], topology: Topology, largest: Largest | None) -> None:
    """Prints whether the run fits, and the largest batch."""
    failing = [one for one in measured if not one.fits(topology.chip.memory)]
    for one in failing:
        say(f"Does not fit: {one.name} needs {gib(one.total)} GiB of {gib(topology.chip.memory)} per chip.")
    if not failing:
        say("Fits.")
    if largest is None:
        return
    how = "compiled" if largest.compiled else "estimated from compiled programs"
    say(f"The train step holds at most {largest.rows} examples per part of the data axis ({how}).")
    if largest.rows < programs.rows and (fewer := fitting_accumulate(programs, largest.rows)):
        say(f"--accumulate {fewer} makes the batch of {programs.config.training.batch_size} fit.")


def fitting_accumulate(programs: Programs, rows: int) -> int | None:
    """Returns the smallest number of micro-batches with at most `rows` examples per part; None if there is none."""
    per_part = programs.config.training.batch_size // programs.axes.data
    return next((n for n in range(1, per_part + 1) if per_part % n == 0 and per_part // n <= rows), None)


def plan_json(
    preset: str, programs: Programs, measured: Sequence[Measured], topology: Topology, largest: Largest | None
) -> dict[str, Any]:
    """Returns the plan for a JSON file; bytes, FLOPs and collectives outside of `programs` are the train step's."""
    config, training = programs.config, programs.config.training
    first = to_json(measured[0], topology)
    return {
        "preset": preset,
        "topology": topology.name,
        "chip": topology.chip.name,
        "chips": programs.axes.size,
        "mesh": dataclasses.asdict(programs.axes),
        "fits": all(one.fits(topology.chip.memory) for one in measured),
        "chip_bytes": topology.chip.memory,
        "bytes_per_chip": max(one.total for one in measured),
        "bytes_by_kind": first["bytes_by_kind"],
        "model_flops": programs.model_flops(),
        "flops_per_chip": first["flops_per_chip"],
        "collectives": first["collectives"],
        "seconds_at_least": first["seconds_at_least"],
        "largest_batch": None if largest is None else largest.rows * programs.axes.data * training.accumulate,
        "largest_batch_compiled": None if largest is None else largest.compiled,
        "batch_size": training.batch_size,
        "accumulate": training.accumulate,
        "max_length": training.max_length,
        "num_hypotheses": config.num_hypotheses,
        "objective": config.objective.name,
        "backward": programs.backward,
        "remat": training.remat,
        "dropout": config.lora.dropout,
        "programs": {one.name: to_json(one, topology) for one in measured},
    }
