"""`python -m experiments.translation.packed --workdir DIR`: examples per second with packed rows and without.

It takes the options of a run and times its training steps of mcl on the first batches of an epoch, in turns: as they
are, and with --pack. It writes nothing. Keep the machine idle.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from experiments.common.task import Task
from experiments.common.training import make_step
from experiments.translation.config import Config, parse
from experiments.translation.task import load
from mcl_jax import data
from mcl_jax.command_line import errors_in_a_line
from mcl_jax.console import say, table

BATCHES, ROUNDS = 4, 5


def epoch_of(task: Task, config: Config) -> Callable[[], float]:
    """Returns a function that takes the steps of the first batches and returns their examples per second."""
    items = task.encode(task.records("train"))
    loss, optimizer = config.objective_of("mcl"), config.optimizer_of("mcl").make(BATCHES * (ROUNDS + 1))
    batches = data.train_batches(items.encoded, config.batches, epochs=1, pack=config.training.rows_multiple)
    inputs = [task.inputs(items, batch) for batch in itertools.islice(batches, BATCHES)]
    step = make_step(task, "mcl", loss, optimizer)
    state = task.initial_state("mcl", optimizer, loss, None)

    def run() -> float:
        nonlocal state
        start, examples = time.perf_counter(), []
        for batch in inputs:
            state, metrics = step(state, batch)
            examples.append(metrics["examples"])
        total = sum(map(float, jax.block_until_ready(examples)))
        return total / (time.perf_counter() - start)

    return run


def main(config: Config) -> None:
    """Times both ways in turns, after a round that compiles, and prints a table."""
    if config.training.pack:
        raise ValueError("this command measures with --pack and without it, so leave it out")
    task = load(config)
    ways = {"rows of one example": config, "packed rows": config.replace(pack=True)}
    runs: dict[str, Any] = {name: epoch_of(task, of_way) for name, of_way in ways.items()}
    for name, run in runs.items():
        run()  # compiles for each shape
        say(f"{name}: compiled")
    rates = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            rates[name].append(run())
    first, *_ = rates.values()
    rows = []
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, first, strict=True))
        rows.append([name, statistics.median(values), f"{min(values):.4g} to {max(values):.4g}", ratio])
    table(f"Training steps, K = {config.num_hypotheses}", ["", "examples per second", "range", "ratio"], rows)


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse())
