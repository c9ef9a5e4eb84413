"""Benchmark of the time to the first training step, `python -m experiments.bench_start`. Keep the machine idle.

Each start is a process of its own. Every round starts without JAX's compilation cache, with an empty one, and with the
one that the start before has filled.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import field
from pathlib import Path
from typing import Any

from experiments.common.options import COUNT, Options, parse
from mcl_jax.command_line import attempt, errors_in_a_line
from mcl_jax.console import Progress, table
from mcl_jax.json_io import to_json, write_json

PARTS = ("import", "read", "adapters", "first step", "second step")
CACHES = ("none", "empty", "filled")
CACHE_VARIABLES = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Seconds from the start of Python to the first training step of LoRA-MCL, and of each part of it."""

    base: Path | None = None
    """Hugging Face folder or GGUF file of the base model; SmolLM2-135M by default."""
    num_hypotheses: int = field(default=2, metadata=COUNT)
    """Number K of hypotheses."""
    batch: int = field(default=8, metadata=COUNT)
    """Number of examples per step."""
    length: int = field(default=64, metadata=COUNT)
    """Length of each example in tokens."""
    rank: int = field(default=8, metadata=COUNT)
    """Rank of the adapters."""
    scan: bool = True
    """Scan the layers, as training does by default: one layer is compiled instead of all."""
    repeats: int = field(default=5, metadata=COUNT)
    """Number of rounds."""
    json: Path | None = None
    """File for the results."""

    def __post_init__(self):
        self.check()
        if self.json is not None and not self.json.absolute().parent.is_dir():
            raise ValueError(f"--json must be a file in an existing folder, got {self.json}")


def started(config: Config, cache: Path | None) -> dict[str, float]:
    """Starts one process; returns the seconds of its parts.

    Args:
      config: the configuration.
      cache: folder of the compilation cache; None for none.
    Raises:
      RuntimeError: if the process fails; with the last line that it wrote.
    """
    environment = {name: value for name, value in os.environ.items() if name not in CACHE_VARIABLES}
    if cache is not None:
        environment |= dict(zip(CACHE_VARIABLES, (str(cache), "0"), strict=True))
    names = ("num_hypotheses", "batch", "length", "rank", "scan")
    options = {name: getattr(config, name) for name in names} | {"base": config.base and str(config.base)}
    command = [sys.executable, "-m", "experiments.bench_start.child", json.dumps(options)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    if found.returncode:
        raise RuntimeError(f"a start failed: {(found.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(found.stdout.splitlines()[-1])


def measure(config: Config) -> dict[str, list[dict[str, float]]]:
    """Returns the seconds of all rounds, by the state of the cache."""
    rounds: dict[str, list[dict[str, float]]] = {cache: [] for cache in CACHES}
    with Progress(config.repeats, description="rounds") as progress:
        for done in range(config.repeats):
            with tempfile.TemporaryDirectory(prefix="bench-start-") as folder:
                for cache in CACHES:
                    rounds[cache].append(started(config, None if cache == "none" else Path(folder)))
            progress.update(done + 1)
    return rounds


def rows(rounds: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Returns the median, least and most seconds of each part, and of all parts to the end of the first step."""
    upto = PARTS[: PARTS.index("first step") + 1]
    found = []
    for cache, starts in rounds.items():
        of = {part: [one[part] for one in starts] for part in PARTS}
        of["to the first step"] = [sum(one[part] for part in upto) for one in starts]
        for part, seconds in of.items():
            spread = {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}
            found.append({"cache": cache, "part": part} | spread)
    return found


def main(config: Config) -> None:
    """Measures, writes --json, and prints the table."""
    load = os.getloadavg()[0]
    rounds = measure(config)
    found = rows(rounds)
    if config.json is not None:
        with attempt(str(config.json)):
            machine = {"cores": os.cpu_count(), "load_before": load}
            write_json(config.json, {"config": to_json(config, "config"), "machine": machine, "rows": found})
    shown = {(row["cache"], row["part"]): _shown(row) for row in found}
    parts = list(dict.fromkeys(row["part"] for row in found))
    title = f"Seconds, median (range) of {config.repeats}; {os.cpu_count()} cores, load {load:.1f} before"
    head = ["part", *(f"cache: {cache}" for cache in CACHES)]
    table(title, head, [[part, *(shown[cache, part] for cache in CACHES)] for part in parts])


def _shown(row: dict[str, Any]) -> str:
    return f"{row['median']:.1f} ({row['least']:.1f} to {row['most']:.1f})"


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse(Config))
