"""A long run: memory and step time must stay flat."""

import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from experiments.soak import toy

WARM = 500  # steps after which the memory counts
MEMORY_BOUND = 0.05  # growth of the memory from then to the end, as a share
TIME_BOUND = 0.25  # growth of the median step time from the first fifth to the last, as a share


def train(folder: Path, workdir: Path, steps: int, report: Callable[[str], None]) -> None:
    """Trains without disturbance; reports the time and the memory after each step, which `summary` reads.

    Args:
      folder: what `toy.prepare` wrote.
      workdir: the run directory.
      steps: number of steps.
      report: called with "at STEP SECONDS BYTES" after each step, and with what `toy.train` reports.
    """
    process = psutil.Process()

    def timed(line: str) -> None:
        report(line)
        if line.startswith("step "):
            report(f"at {line.split()[1]} {time.perf_counter():.6f} {process.memory_info().rss}")

    toy.train(folder, workdir, steps, timed)


def summary(reports: str) -> dict[str, Any]:
    """Returns memory and step times, from the reports of a run of at least 10 steps."""
    rows = [line.split()[1:] for line in reports.splitlines() if line.startswith("at ")]
    seconds, memory = [float(row[1]) for row in rows], [int(row[2]) for row in rows]
    times = [after - before for before, after in itertools.pairwise(seconds)]
    fifth, warm = max(1, len(times) // 5), min(WARM, len(rows) // 2)
    first, last = statistics.median(times[:fifth]), statistics.median(times[-fifth:])
    growth, slower = memory[-1] / memory[warm - 1] - 1, last / first - 1
    return {
        "steps": len(rows),
        "warm_steps": warm,
        "mib_after_warm_steps": round(memory[warm - 1] / 2**20, 1),
        "mib_at_the_end": round(memory[-1] / 2**20, 1),
        "mib_most": round(max(memory[warm - 1 :]) / 2**20, 1),
        "memory_growth": round(growth, 4),
        "memory_bound": MEMORY_BOUND,
        "memory_is_flat": growth <= MEMORY_BOUND,
        "median_ms_of_the_first_fifth": round(1000 * first, 3),
        "median_ms_of_the_last_fifth": round(1000 * last, 3),
        "time_growth": round(slower, 4),
        "time_bound": TIME_BOUND,
        "time_is_flat": slower <= TIME_BOUND,
    }
