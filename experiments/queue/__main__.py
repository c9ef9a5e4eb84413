"""`python -m experiments.queue --jobs FILE --out DIR`: runs many experiments side by side on one device.

One small model does not fill a GPU: its kernels are short, and its process compiles, reads and decodes in between.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import Any

from experiments.common.options import COUNT, Options, parse
from experiments.queue.jobs import Job, read_jobs
from experiments.queue.lanes import Ended, Lanes
from mcl_jax.command_line import errors_in_a_line
from mcl_jax.console import say
from mcl_jax.json_io import read_json_object, write_json

SERVER = "nvidia-cuda-mps-control"


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Runs many experiments side by side on one device, such as several seeds and methods of a small model on one GPU.

    All of them keep what they compile in one folder, so that a program compiles once and not for each seed. When the
    time is over, or at SIGTERM, those that run save their state. The same command runs what is not finished.
    """

    jobs: Path
    """File with a line for each job, NAME MODULE OPTIONS, such as "mcl-0 experiments.translation --seed 0".
    Lines are quoted as in a shell; # begins a comment."""
    out: Path
    """Folder of the run directories OUT/NAME, of what each job writes, OUT/NAME.log, and of queue.json."""
    lanes: int = field(default=1, metadata=COUNT)
    """Number of jobs at a time. Each needs a core to compile, and its part of the memory."""
    seconds: float | None = None
    """Seconds after which the jobs that run are stopped. The default is to run all."""
    compiled: Path | None = None
    """Folder for compiled programs. The default is OUT/compiled."""

    def __post_init__(self):
        self.check()
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"--seconds must be above 0, got {self.seconds:g}")


def environment(config: Config) -> dict[str, str]:
    """Returns the environment of the jobs: they share compiled programs, and take memory as they need it.

    What is set already stays.
    """
    shared = {
        "JAX_COMPILATION_CACHE_DIR": str((config.compiled or config.out / "compiled").absolute()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    return shared | os.environ


@contextmanager
def sharing_a_gpu(lanes: int) -> Iterator[dict[str, str]]:
    """Lets kernels of several processes run at the same time, by NVIDIA's server for that, if it is installed.

    Args:
      lanes: number of processes.
    Yields:
      What the environment of the processes needs; empty without the server, or if one runs already.
    """
    if lanes == 1 or shutil.which(SERVER) is None or "CUDA_MPS_PIPE_DIRECTORY" in os.environ:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:
        places = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        begun = subprocess.run([SERVER, "-d"], env=os.environ | places, capture_output=True)
        try:
            yield places if begun.returncode == 0 else {}
        finally:
            subprocess.run([SERVER], input=b"quit\n", env=os.environ | places, capture_output=True)


def main(config: Config) -> int:
    """Runs the queue; returns the exit status: 0 if all jobs are finished."""
    jobs = read_jobs(config.jobs)
    config.out.mkdir(parents=True, exist_ok=True)
    file = config.out / "queue.json"
    known: dict[str, Any] = read_json_object(file) if file.exists() else {}
    done = {job for job in jobs if known.get(job.name, {}).get("status") == "finished"}
    if changed := [job.name for job in done if known[job.name]["line"] != job.line]:
        raise ValueError(f"{config.jobs} has other options than when these jobs finished: {', '.join(sorted(changed))}")

    def ended(job: Job, result: Ended) -> None:
        known[job.name] = dataclasses.asdict(result) | {"line": job.line}
        write_json(file, known)
        tail = f": {result.said}" if result.said else ""
        say(f"{job.name} {result.status} after {result.seconds:.0f} s{tail}")

    with sharing_a_gpu(config.lanes) as places:
        lanes = Lanes(config.out, config.lanes, environment(config) | places, ended)
        left = lanes.run([job for job in jobs if job not in done], config.seconds)
    counts = Counter(known[job.name]["status"] for job in jobs if job.name in known and job not in left)
    say(", ".join(f"{counts[status]} {status}" for status in ("finished", "failed", "stopped")) + f", {len(left)} left")
    return 0 if counts["finished"] == len(jobs) else 1


if __name__ == "__main__":
    with errors_in_a_line():
        sys.exit(main(parse(Config)))
