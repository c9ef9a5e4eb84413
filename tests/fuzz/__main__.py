"""Draws inputs for every target and counts what came of them; ends with status 1 if there was a fault.

python -m tests.fuzz                          # 10,000 inputs in all
python -m tests.fuzz --inputs 500 --only gguf --seed 7
"""

import argparse
import logging
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
TESTS = Path(__file__).parents[1]
sys.path[1:1] = [str(TESTS / folder) for folder in ("", "models", "data")]

from mcl_jax.json_io import write_json  # noqa: E402
from tests.fuzz import functions, media_files, model_folders, run_files, tables, text_files, weight_files  # noqa: E402
from tests.fuzz.targets import limit_memory, run  # noqa: E402

GROUPS = (text_files, tables, weight_files, media_files, run_files, model_folders, functions)
TARGETS = [target for group in GROUPS for target in group.TARGETS]
COLUMNS = ("inputs", "read", "refused", "held", "seconds", "slowest_seconds", "peak_memory_mb")


def main() -> None:
    """Runs the targets."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="number of inputs of all targets together")
    parser.add_argument("--only", nargs="*", default=[], help="names of targets, or parts of them")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same inputs")
    parser.add_argument("--json", type=Path, default=Path("runs/fuzz.json"), help="file for the counts")
    options = parser.parse_args()
    chosen = [t for t in TARGETS if not options.only or any(part in t.name for part in options.only)]
    if not chosen:
        parser.error(f"--only must name one of {', '.join(t.name for t in TARGETS)}")
    limit_memory()
    logging.disable(logging.CRITICAL)  # libraries tell of every damaged file
    shares, results = sum(t.share for t in chosen), {}
    print(f"{'':20}" + "".join(f"{name:>16}" for name in COLUMNS) + f"{'faults':>8}")
    for target in chosen:
        number = max(1, round(options.inputs * target.share / shares))
        result = run(target, number, options.seed, options.json.with_suffix(""))
        results[target.name] = result
        print(
            f"{target.name:20}"
            + "".join(f"{result.get(name, 0):>16}" for name in COLUMNS)
            + f"{len(result['faults']):>8}",
            flush=True,
        )
        for fault in result["faults"]:
            print(f"{fault['times']} times, see {fault['input']}:\n{fault['error']}", file=sys.stderr, flush=True)
    total = {name: sum(result.get(name, 0) for result in results.values()) for name in COLUMNS[:4]}
    total["faults"] = sum(len(result["faults"]) for result in results.values())
    print(", ".join(f"{number} {name}" for name, number in total.items()))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.json, {"seed": options.seed, "total": total, "targets": results})
    raise SystemExit(1 if total["faults"] else 0)


if __name__ == "__main__":
    main()
