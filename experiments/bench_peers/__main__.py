"""Command line of the comparison: `python -m experiments.bench_peers --help`. Keep the machine idle while it runs."""

import os
import platform
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from experiments.bench_peers import measure, ours, report
from experiments.bench_peers.config import OURS, PEER, QUICK, Config
from experiments.bench_peers.sides import Side
from experiments.common.options import parse_sized
from mcl_jax.command_line import attempt, errors_in_a_line
from mcl_jax.console import plain, say
from mcl_jax.json_io import to_json, write_json

BUSY = 0.3  # load per core from which on the machine is not idle


def main(config: Config) -> dict[str, Any]:
    """Measures everything; returns what is written to --json."""

    def tell(line: str) -> None:
        say(plain(line, "dim"))

    limit_cores(config.threads)
    result = {"config": to_json(config, "config"), "machine": machine()}
    with tempfile.TemporaryDirectory(prefix="bench-peers-") as name:
        folder = Path(name)
        result["base"] = ours.make(config, folder)
        vocab_size, rows = result["base"]["vocab"], []
        with ExitStack() as stack:
            sides = {side: stack.enter_context(Side(side, config, folder)) for side in (OURS, PEER)}
            result["sides"] = {side: process.ask(do="about") for side, process in sides.items()}
            if "train" in config.parts:
                rows += measure.training(config, sides, vocab_size, tell)
            if "decode" in config.parts:
                rows += measure.decoding(config, sides, vocab_size, tell)
        peaks = measure.memory(config, folder, vocab_size, tell) if "memory" in config.parts else {}
    rows = [row | {"peak_bytes": peaks.get((row["way"], row["k"], row.get("t")))} for row in report.with_ratios(rows)]
    result["machine"]["load_after"] = os.getloadavg()[0]
    return result | {"rows": rows, "peaks": [[*cell, peak] for cell, peak in peaks.items()]}


def limit_cores(threads: int | None) -> None:
    """Limits this process, and those that it starts, to so many cores; both libraries use as many threads."""
    if threads is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def machine() -> dict[str, Any]:
    """Describes the machine and its load before the measurement; warns of a load."""
    load = os.getloadavg()[0]
    if load > BUSY * os.cpu_count():
        say(
            plain(f"The load is {load:.1f} already. Torch waits for its slowest thread, so no ratio holds here.", "red")
        )
    return {"cores": os.cpu_count(), "machine": platform.machine(), "load_before": load}


def title_of(result: dict[str, Any]) -> str:
    """Describes sizes, machine, versions and load in one line."""
    config, base, about = result["config"], result["base"], result["sides"]
    versions = ", ".join(f"{name} {number}" for side in about.values() for name, number in side["versions"].items())
    threads = "/".join(str(side["threads"]) for side in about.values())
    load = "{load_before:.1f} before and {load_after:.1f} after".format(**result["machine"])
    return (
        f"{base['family']} of {base['parameters'] / 1e6:.3g}M, B={config['batch']} r={config['rank']} float32; "
        f"{result['machine']['cores']} cores, {threads} threads, load {load}; {versions}"
    )


def parse(args: list[str]) -> Config:
    """Parses the command line; with --quick the defaults are those of the small sizes."""
    return parse_sized(QUICK, args, "python -m experiments.bench_peers")


def cli(args: list[str]) -> None:
    """Runs the command line, writes the files and prints the tables."""
    with errors_in_a_line():
        config = parse(args)
        result = main(config)
        if config.json is not None:
            write_json(config.json, result)
        title, rows = title_of(result), result["rows"]
        if config.figure is not None and rows:
            with attempt(str(config.figure)):
                report.figure(rows, title, config.figure)
        report.show(rows)
        say(title)


if __name__ == "__main__":
    cli(sys.argv[1:])
