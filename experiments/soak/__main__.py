"""`python -m experiments.soak --json FILE`: a training is disturbed at random moments, and must end as if it was not.

A toy language model trains in a process that is killed, stopped, left without disk space, given NaNs, or started on
damaged checkpoints and without its files. Every process must end with a known status, and with one clear line if it
stops by itself. Each run must end with adapters, optimizer and objective equal bit for bit to an undisturbed run. With
--long, a training of 5,000 steps must keep its memory and its step time.
"""

import argparse
import dataclasses
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.soak import long
from experiments.soak.campaign import Campaign, counts
from experiments.soak.disk import small_disk
from experiments.soak.process import Start, server
from mcl_jax.command_line import errors_in_a_line
from mcl_jax.console import say, table
from mcl_jax.hosts import STOPPED
from mcl_jax.json_io import to_json, write_json


@errors_in_a_line()
def main(options: argparse.Namespace) -> int:
    """Returns the exit status: 1 if something failed."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as name, server(Path(name) / "compiled") as launch:
        folder = Path(name)
        prepared = launch(action="prepare", folder=name)
        if prepared.end() != 0:
            raise RuntimeError(f"the files of the toy cannot be made: {prepared.said['err'][-500:]}")
        result, failed = (keep_going if options.long else disturb)(options, folder, launch)
    result["machine"] = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "python": sys.version.split()[0]}
    result["seconds"] = round(time.monotonic() - began, 1)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, to_json(result))
    return int(failed)


def disturb(options: argparse.Namespace, folder: Path, launch: Callable[..., Start]) -> tuple[dict[str, Any], bool]:
    """Disturbs runs; returns what is to be written, and whether something failed."""
    with small_disk(folder / "runs") as disk:
        choices = {"steps": options.steps, "seed": options.seed, "keep": options.keep}
        campaign = Campaign(launch, folder, disk, **choices)
        campaign.reference()
        campaign.disturb(options.disturbances)
    found = counts(campaign.events)
    total = {column: sum(row[column] for row in found.values()) for column in next(iter(found.values()))}
    total["most_lost"] = max(row["most_lost"] for row in found.values())
    rows = [(name, *row.values()) for name, row in (found | {"all": total}).items()]
    table("disturbances", ["kind", *(column.replace("_", " ") for column in total)], rows)
    runs, failures = campaign.runs, total["failures"]
    say(f"{runs['starts']} starts, {runs['equal']} of {runs['ended']} runs equal to an undisturbed one, bit for bit.")
    result = {"kinds": found, "all": total, "runs": runs, "full_disk": "tmpfs" if disk.can_fill else "not tried"}
    result |= {"seed": options.seed, "steps": options.steps}
    failed = bool(failures or runs["given_up"] or runs["equal"] < runs["ended"])
    return result | {"events": [dataclasses.asdict(event) for event in campaign.events]}, failed


def keep_going(options: argparse.Namespace, folder: Path, launch: Callable[..., Start]) -> tuple[dict[str, Any], bool]:
    """Trains for long; returns what is to be written, and whether something failed."""
    start = launch(action="long", folder=str(folder), workdir=str(folder / "long"), steps=options.long_steps)
    if start.end(seconds=float("inf")) != 0:
        raise RuntimeError(f"the long run ended with status {start.status}: {start.said['err'][-500:]}")
    result = long.summary(start.said["reports"])
    table(f"{result['steps']} steps", ["what", "value"], [(name, str(value)) for name, value in result.items()])
    return result, not (result["memory_is_flat"] and result["time_is_flat"])


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.soak", description=__doc__.partition(": ")[2])
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--disturbances", type=int, default=200, help="number of disturbances in all")
    parser.add_argument("--steps", type=int, default=60, help="steps of each run that is disturbed")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is done to the runs, and when")
    parser.add_argument("--keep", type=Path, help="folder for copies of runs that went wrong")
    parser.add_argument("--long", action="store_true", help="no disturbances: many steps with flat memory and time")
    parser.add_argument("--long-steps", type=int, default=5000, help="steps of --long")
    options = parser.parse_args(arguments)
    if options.disturbances < 1 or options.steps < 13 or options.long_steps < 10:
        parser.error("--disturbances must be at least 1, --steps at least 13 and --long-steps at least 10")
    return options


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))  # so that the small disk is unmounted
    sys.exit(main(parse(sys.argv[1:])))
