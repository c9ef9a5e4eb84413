"""The tests of the core, on the GPU."""

import importlib.util
import os
import re
import subprocess
import sys
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


def steps(quick: bool) -> Iterator[dict[str, Any]]:
    """Yields the counts and the names of failed tests; raises an AssertionError if there are any."""
    parallel = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    files = FILES[:1] if quick else FILES
    command = [sys.executable, "-m", "pytest", "-m", "not slow", "--tb=line", "-p", "no:cacheprovider"]
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    environment = os.environ | {"JAX_PLATFORMS": platform}  # tests run on a CPU unless told otherwise
    done = subprocess.run([*command, *parallel, *files], env=environment, capture_output=True, text=True, timeout=190)
    counts = re.findall(r"^.*\b\d+ (?:passed|failed).*$", done.stdout, flags=re.M)
    failed = re.findall(r"^(?:FAILED|ERROR) (.*)$", done.stdout, flags=re.M)
    yield {
        "summary": counts[-1:] or done.stderr[-500:],
        "failed": [name[:200] for name in failed][:40],
        "exit": done.returncode,
    }
    assert done.returncode == 0, f"pytest ended with status {done.returncode}"
