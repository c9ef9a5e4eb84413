"""`python -m experiments.plan --preset NAME --topology v5e:2x4`: says whether a run fits before chips are rented."""

import dataclasses

import jax

from experiments.common.devices import Axes
from experiments.plan import report, search
from experiments.plan.chips import GIB, Topology, topology
from experiments.plan.measure import Measured, measure
from experiments.plan.options import Options, parse
from experiments.plan.presets import PRESETS, base_of, config_of
from experiments.plan.programs import Programs
from mcl_jax.command_line import errors_in_a_line
from mcl_jax.console import say
from mcl_jax.json_io import write_json
from mcl_jax.mesh import bytes_per_device


def main(options: Options) -> None:
    """Plans a run."""
    # The chips, the configuration and the base.
    chips = topology(options.topology)
    if options.chip_gib is not None:
        chips = dataclasses.replace(chips, chip=dataclasses.replace(chips.chip, memory=int(options.chip_gib * GIB)))
    memory = chips.chip.memory
    config, base = (
        config_of(PRESETS[options.preset], **options.of_preset()),
        base_of(PRESETS[options.preset], options.base),
    )

    # The mesh: as given, the best one, or one that leaves room beside the base.
    programs = Programs(config, base, chips.devices, Axes())
    if options.mesh:
        programs = programs.on(Axes.parse(options.mesh))
    elif options.search:
        programs = best_mesh(programs, chips)
    else:
        base_bytes = bytes_per_device(jax.tree.leaves(programs.params))
        programs = programs.on(search.default_mesh(len(chips.devices), base_bytes, memory, programs.rows))

    # The programs, and the largest batch.
    report.say_settings(programs, chips)
    measured = [compiled(programs, name) for name in programs.names() if name in options.programs]
    largest = None
    if options.largest and measured[0].name == "train":
        of_rows = lambda rows: compiled(programs.with_rows(rows), "train").total
        largest = search.largest_rows((programs.rows, measured[0].total), memory, of_rows, options.largest)

    # The report.
    report.say_memory(measured, chips)
    report.say_costs(measured, chips, programs.model_flops(), programs.axes.size)
    report.say_fit(programs, measured, chips, largest)
    if options.json:
        write_json(options.json, report.plan_json(options.preset, programs, measured, chips, largest))


def best_mesh(programs: Programs, chips: Topology) -> Programs:
    """Compiles the train step for all meshes, prints them, and returns the programs on the best one."""
    tried = []
    for axes in search.meshes(len(chips.devices)):
        try:
            tried.append((axes, compiled(programs.on(axes), "train")))
        except ValueError as error:
            say(f"--mesh {report.axes_text(axes)}: {error}")
    if not tried:
        raise ValueError(f"no mesh of {chips.name} divides a batch of {programs.config.training.batch_size}")
    best = search.best(tried, chips)
    report.say_meshes(tried, best, chips)
    return programs.on(best)


def compiled(programs: Programs, name: str) -> Measured:
    """Compiles a program, and prints a line, since it takes minutes."""
    resident = programs.resident()
    one = measure(name, programs.lower(name), resident)
    size = programs.config.training.batch_size
    say(
        f"compiled {name} for --mesh {report.axes_text(programs.axes)} --batch-size {size}: "
        f"{report.gib(one.total)} GiB per chip, {one.compile_seconds:.0f} s to compile"
    )
    return one


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse())
