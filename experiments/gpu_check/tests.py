"""The tests of the core, on the GPU."""

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax

FILES = (
    "tests/test_objectives.py",
    "tests/test_likelihood.py",
    "tests/test_hypotheses.py",
    "tests/test_training.py",
    "tests/models/test_attention.py",
    "tests/test_moe.py",
    "tests/test_generation.py",
    "tests/test_checkpoint.py",
)


SECONDS = 285  # less than the section may take, so that what ran is reported
# Flags of XLA for the tests that an expression of pytest selects. Autotuning would try several kernels for each small
# product. A resumed run equals a whole one bit for bit only where sums have one order; but then products take a
# workspace of 32 MiB, which would hide what the tests of memory measure.
PARTS = {
    "not memory": "--xla_gpu_autotune_level=0 --xla_gpu_deterministic_ops=true",
    "memory": "--xla_gpu_autotune_level=0",
}
NONE_SELECTED = 5  # exit status of pytest


def steps(quick: bool) -> Iterator[dict[str, Any]]:
    """Yields the counts and the names of failed tests; raises an AssertionError if some failed or had no time."""
    workers = max(1, (os.cpu_count() or 1) - 2)  # the tests compile many small programs, which takes processors
    parallel = ["-n", str(workers)] if importlib.util.find_spec("xdist") else []
    files = FILES[:1] if quick else FILES
    command = [sys.executable, "-m", "pytest", "-vv", "-m", "not slow", "--tb=line", "-p", "no:cacheprovider"]
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())  # tests run on a CPU unless told so
    began, printed, ended = time.monotonic(), "", {}
    for selected, flags in PARTS.items():
        environment = {"JAX_PLATFORMS": platform, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
        options = {"env": os.environ | environment, "capture_output": True, "text": True}
        try:
            left = SECONDS - (time.monotonic() - began)
            done = subprocess.run([*command, *parallel, "-k", selected, *files], **options, timeout=left)
            printed += done.stdout
            if done.returncode not in (0, NONE_SELECTED):
                ended[selected] = f"pytest ended with status {done.returncode}"
        except subprocess.TimeoutExpired as late:
            printed += (late.stdout or b"").decode()
            ended[selected] = f"pytest was stopped after {SECONDS} s"
            break
    yield outcome(printed) | {"ended": ended}
    assert not ended, ended


def outcome(printed: str) -> dict[str, Any]:
    """Counts the tests that passed and names those that failed in what `pytest -vv` printed, also if it was stopped."""
    one_process = re.findall(r"^(\S+::.*?) (PASSED|FAILED|ERROR)\b", printed, flags=re.M)
    several = re.findall(r"^\[gw\d+\] \[ *\d+%\] (PASSED|FAILED|ERROR) (\S+::.*?) *$", printed, flags=re.M)
    results = dict([*one_process, *((name, result) for result, name in several)])
    failed = sorted(name[:200] for name, result in results.items() if result != "PASSED")
    return {"passed": len(results) - len(failed), "failed": failed[:40]}
