"""Peak memory of one row, measured in a separate process, since a peak never decreases."""

import dataclasses
import json
import resource
import subprocess
import sys
from pathlib import Path

import jax

from experiments.bench_head import programs, variants
from experiments.bench_head.config import Config

Cell = tuple[str, int, int, str]  # variant, K, rank, mode


def cells_with_peak(config: Config) -> list[Cell]:
    """Returns the rows whose peak memory is measured."""
    if not config.subprocess:
        return []
    rows = [(v, k, rank, mode) for rank in config.ranks for mode in config.modes for v, k in config.cells(mode)]
    if config.rss == "all":
        return rows
    first = (config.ranks[0], "train" if "train" in config.modes else "forward")
    return [row for row in rows if row[2:] == first and (row[1] == config.summary_k or row[:2] == ("all", 1))]


def peak_memory(config: Config, cell: Cell) -> dict[str, int]:
    """Measures the peak memory of a new process that makes the model and takes two steps.

    Returns:
      peak_rss_bytes of the host (including compilation), and peak_device_bytes if the device counts them.
    Raises:
      RuntimeError: if the process fails; quotes the end of its output.
    """
    request = json.dumps(dataclasses.asdict(dataclasses.replace(config, json=None, figure=None)) | {"cell": cell})
    command = [sys.executable, "-m", "experiments.bench_head.peak", request]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if done.returncode:
        raise RuntimeError(f"the process that measures the peak memory of {cell} failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_rss_bytes() -> int:
    """Returns the peak resident memory of this process.

    On Linux, ru_maxrss would be wrong: across fork and exec it starts at the peak of the parent process.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def answer(request: dict) -> dict[str, int]:
    """Measures the peak memory of the current process, which is the new one."""
    variant, k, rank, mode = request.pop("cell")
    config = Config(**request)
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    program = programs.compile_program(variant, mode, variants.make_setup(config, rank, k), k)
    for _ in range(2):
        program.run()
    device = jax.local_devices()[0].memory_stats() or {}
    on_device = {"peak_device_bytes": device["peak_bytes_in_use"]} if "peak_bytes_in_use" in device else {}
    return {"peak_rss_bytes": peak_rss_bytes()} | on_device


if __name__ == "__main__":
    print(json.dumps(answer(json.loads(sys.argv[1]))))
