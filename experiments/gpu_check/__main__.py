"""`python -m experiments.gpu_check --json FILE`: tests, equalities, costs and a killed run on one GPU, in ten minutes.

Each section runs in a process of its own, so that one that fails costs itself alone, and the file is written after
each. It needs no network and no extra of this package; Hugging Face is compared with where torch, transformers and peft
are installed.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mcl_jax.console import say
from mcl_jax.json_io import write_json

SECTIONS = {  # (seconds at most, environment)
    "hardware": (60, {}),
    "equal": (150, {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}),
    "attention": (60, {}),
    "train": (200, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}),
    "train_7b": (220, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}),
    "decode": (200, {}),
    "resume": (120, {}),
    "tests": (200, {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}),
}
RESULT = "gpu_check result: "


def main(options: argparse.Namespace) -> int:
    """Runs the sections; returns the exit status: 1 if one failed."""
    began, results = time.monotonic(), {}
    for name in options.sections:
        left = options.seconds - (time.monotonic() - began)
        results[name] = run(name, options, min(left, SECTIONS[name][0])) if left > 20 else {"skipped": "no time left"}
        if options.json:
            write_json(options.json, results)
        say(f"{name}: {json.dumps(results[name])[:1500]}")
    failed = [name for name, result in results.items() if "error" in result]
    say(f"failed: {', '.join(failed)}" if failed else "all sections passed")
    return bool(failed)


def run(name: str, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Runs a section in a process of its own; returns its result, or its error."""
    command = [
        sys.executable,
        "-m",
        "experiments.gpu_check",
        "--section",
        name,
        *(["--quick"] if options.quick else []),
    ]
    environment, started = os.environ | SECTIONS[name][1], time.monotonic()
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as late:
        printed = (late.stdout or b"").decode(errors="replace")
        partial = _result(printed)
        return partial | {"error": f"stopped after {seconds:.0f} s", "output": printed[-1000:]}
    result = _result(done.stdout)
    if done.returncode:
        result["error"] = done.stderr.strip()[-2000:] or f"exit status {done.returncode}"
    return result | {"section_seconds": round(time.monotonic() - started, 1)}


def _result(output: str) -> dict[str, Any]:
    lines = [line.removeprefix(RESULT) for line in output.splitlines() if line.startswith(RESULT)]
    return json.loads(lines[-1]) if lines else {}


def section(name: str, *, quick: bool) -> None:
    """Runs one section here, and prints what it has so far after each of its steps."""
    for result in importlib.import_module(f"experiments.gpu_check.{name}").steps(quick):
        print(RESULT + json.dumps(result), flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.gpu_check", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="what to run")
    parser.add_argument(
        "--seconds", type=float, default=560, help="time in all; sections that no longer fit are skipped"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script on a CPU")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    given = parse(sys.argv[1:])
    sys.exit(section(given.section, quick=given.quick) if given.section else main(given))
