"""`python -m experiments.gpu_check --json FILE`: tests, equalities, costs and a killed run on one GPU, in ten minutes.

Each section runs in a process of its own, so that one that fails costs itself alone, and the file is written after
each. It needs no network and no extra of this package; Hugging Face is compared with where torch, transformers and peft
are installed.
"""

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax

from mcl_jax.console import say
from mcl_jax.json_io import to_json, write_json

SECTIONS = {  # (seconds at most, environment); what can fail comes before what is only measured
    "hardware": (60, {}),
    "equal": (240, {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}),
    "resume": (150, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}),
    "tests": (300, {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}),
    "attention": (60, {}),
    "train": (200, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}),
    "train_7b": (220, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}),
    "decode": (200, {}),
}
RESULT = "gpu_check result: "


def main(options: argparse.Namespace) -> int:
    """Runs the sections; returns the exit status: 1 if one failed."""
    began, results = time.monotonic(), {}
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    for name in options.sections:
        left = options.seconds - (time.monotonic() - began)
        results[name] = run(name, options, min(left, SECTIONS[name][0])) if left > 20 else {"skipped": "no time left"}
        if options.json:
            write_json(options.json, to_json(results, non_finite="null"))
        say(f"{name}: {json.dumps(results[name])[:1500]}")
    return summarise(results)


def summarise(results: dict[str, dict[str, Any]]) -> int:
    """Prints one line for each section; returns the exit status."""
    outcomes = {name: next((o for o in ("error", "skipped") if o in r), "passed") for name, r in results.items()}
    for name, outcome in outcomes.items():
        say(f"{name:<10} {outcome.replace('error', 'FAILED'):<8} {results[name].get('section_seconds', '')}")
    for outcome, words in {"error": "failed", "skipped": "skipped, no time left"}.items():
        names = [name for name in outcomes if outcomes[name] == outcome]
        if names:
            say(f"{words}: {', '.join(names)}")
    if set(outcomes.values()) == {"passed"}:
        say("all sections passed")
    return int("error" in outcomes.values())


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
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    late = False
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as process:
        try:
            printed, complaints = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            late = True
            _end(process)
            printed, complaints = process.communicate()
        except BaseException:
            _end(process)
            raise
    result = _result(printed)
    if late:
        result |= {"error": f"stopped after {seconds:.0f} s", "output": (printed + complaints)[-1000:]}
    elif process.returncode:
        result["error"] = complaints.strip()[-2000:] or f"exit status {process.returncode}"
    return result | {"section_seconds": round(time.monotonic() - started, 1)}


def _end(process: subprocess.Popen) -> None:
    """Kills a section with all that it started, which would hold memory of the GPU."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _result(output: str) -> dict[str, Any]:
    whole = output[: output.rfind("\n") + 1]  # a section that is stopped may leave half a line
    lines = [line.removeprefix(RESULT) for line in whole.splitlines() if line.startswith(RESULT)]
    return json.loads(lines[-1]) if lines else {}


def section(name: str, *, quick: bool) -> None:
    """Runs one section here, and prints what it has so far after each of its steps."""
    if not quick and jax.default_backend() == "cpu":
        raise SystemExit("gpu-check needs a GPU, and jax found none; --quick tries the script on a CPU")
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
