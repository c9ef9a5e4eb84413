"""A long run: memory and step time must stay flat."""

import itertools
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.soak import toy

WARM = 500  # steps after which the memory counts
MEMORY_BOUND = 0.05  # growth of the memory from its least size since then to the end, as a share
TIME_BOUND = 0.25  # growth of the median step time from the first fifth to the last, as a share
OWN = ("RssAnon", "VmSwap")  # memory that is this process's alone, in RAM or not: a busy system cannot take it away


def train(folder: Path, workdir: Path, steps: int, report: Callable[[str], None]) -> None:
    """Trains without disturbance; reports the time and the memory after each step, which `summary` reads.

    Args:
      folder: what `toy.prepare` wrote.
      workdir: the run directory.
      steps: number of steps.
      report: called with "at STEP SECONDS RESIDENT OWN" (KiB) after each step, and with what `toy.train` reports.
    """

    def timed(line: str) -> None:
        report(line)
        if line.startswith("step "):
            report(f"at {line.split()[1]} {time.perf_counter():.6f} {kib('VmRSS')} {sum(map(kib, OWN))}")

    toy.train(folder, workdir, steps, timed)


def kib(name: str) -> int:
    """Returns a size of this process in KiB, as Linux counts it."""
    return int(re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1])


def summary(reports: str) -> dict[str, Any]:
    """Returns memory and step times, from the reports of a run of at least 10 steps."""
    rows = [[float(word) for word in line.split()[1:]] for line in reports.splitlines() if line.startswith("at ")]
    _, seconds, *memory = zip(*rows, strict=True)
    times = [after - before for before, after in itertools.pairwise(seconds)]
    fifth, warm = max(1, len(times) // 5), min(WARM, len(rows) // 2)
    first, last = statistics.median(times[:fifth]), statistics.median(times[-fifth:])
    sizes = {f"{name}_memory": growth(kind, warm) for name, kind in zip(("resident", "own"), memory, strict=True)}
    return {
        "steps": len(rows),
        "warm_steps": warm,
        **sizes,
        "memory_bound": MEMORY_BOUND,
        "memory_is_flat": all(size["growth"] <= MEMORY_BOUND for size in sizes.values()),
        "median_ms_of_the_first_fifth": round(1000 * first, 3),
        "median_ms_of_the_last_fifth": round(1000 * last, 3),
        "time_growth": round(last / first - 1, 4),
        "time_bound": TIME_BOUND,
        "time_is_flat": last / first - 1 <= TIME_BOUND,
    }


def growth(memory: tuple[float, ...], warm: int) -> dict[str, float]:
    """Returns the memory after the warm steps, the least since, and that at the end in MiB; growth is from the least.

    What compilation took may be freed late, and must not hide what grows meanwhile.
    """
    before, least, after = memory[warm - 1], min(memory[warm - 1 :]), memory[-1]
    return {
        "mib_after_warm_steps": round(before / 1024, 1),
        "mib_least": round(least / 1024, 1),
        "mib_at_the_end": round(after / 1024, 1),
        "growth": round(after / least - 1, 4),
    }
