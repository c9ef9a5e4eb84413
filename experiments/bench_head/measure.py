"""Clock and memory: programs compiled once, run in rounds, and peak memory in processes of their own."""

import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.bench_head import variants
from experiments.bench_head.config import Config
from mcl_jax import hypotheses

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}  # ‖gradient − reference‖ / ‖reference‖


@dataclasses.dataclass(frozen=True)
class Program:
    """One step, compiled, with the state that it carries on.

    Attributes:
      run: takes one step and waits for it.
      temp_bytes: XLA's temporaries (activations, logits) while it runs; None where XLA does not say. For `separate`
        those of one model, since K steps one after another reuse them.
      argument_bytes: what it is given: weights, adapters, optimizer state, batch; of all K models for `separate`.
    """

    run: Callable[[], Any]
    temp_bytes: int | None
    argument_bytes: int | None


# --------------------------------------------------------------------------------------------------------- Programs


def compile_program(variant: str, mode: str, setup: variants.Setup, num_hypotheses: int) -> Program:
    """What is timed for a row.

    train: forward, backward, clip, AdamW update. For `separate` K such steps of K models (weights of their own), each
    maximum likelihood on the whole batch: what K fine-tunes on their own cost, without the forward passes that a
    choice of winners would add. forward: [K, B] log-likelihoods, by K calls for `separate`.
    """
    adapters = setup.adapters(num_hypotheses)
    if variant == "separate":
        alone = [hypotheses.select(adapters, slice(k, k + 1)) for k in range(num_hypotheses)]
        models = [(setup.params_of(k), alone[k]) for k in range(num_hypotheses)]
    else:
        models = [(setup.params, adapters)]
    return (_train if mode == "train" else _forward)(variant, setup, num_hypotheses, models)


def _train(variant, setup, num_hypotheses, models):
    step = variants.make_step(variant, setup, num_hypotheses)
    batch = dict(setup.batch)
    if variant == "separate":
        batch["weight"] = jnp.ones(batch["tokens"].shape[0])
    states = [setup.state(adapters, params) for params, adapters in models]
    compiled = step.lower(states[0], batch).compile()
    rests = [step.prepare(state, batch)[1] for state in states]  # all but the params, which are not donated

    def run():
        for i, (params, _) in enumerate(models):
            rests[i], _ = jax.block_until_ready(compiled(params, rests[i], batch))

    return _program(run, compiled, len(models))


def _forward(variant, setup, num_hypotheses, models):
    ways = {"all": variants.vmapped, "grouped_conv": variants.grouped_convolutions}
    log_likelihoods = ways.get(variant, variants.looped)(setup)
    compiled = jax.jit(log_likelihoods).lower(*models[0], setup.batch).compile()

    def run():
        return [jax.block_until_ready(compiled(params, adapters, setup.batch)) for params, adapters in models]

    return _program(run, compiled, len(models))


def _program(run, compiled, copies):
    memory = compiled.memory_analysis()
    if memory is None:
        return Program(run, None, None)
    return Program(run, memory.temp_size_in_bytes, copies * memory.argument_size_in_bytes)


# ----------------------------------------------------------------------------------------------------- Same gradient


def check_gradients(config: Config, setup: variants.Setup, log: Callable[[str], None] = lambda line: None) -> None:
    """Compares the gradient of every variant with that of `all`, for every K, in full matmul precision.

    Raises:
      ValueError: if one differs by more than the tolerance, relative to the norm of the gradient.
    """
    with jax.default_matmul_precision("highest"):
        for k in config.all_ks:
            adapters = setup.adapters(k)
            reference = variants.gradient("all", setup, adapters)
            errors = {}
            for variant in (v for v in config.variants if v != "all"):
                errors[variant] = relative_error(variants.gradient(variant, setup, adapters), reference)
                if not errors[variant] <= TOLERANCE[config.dtype]:
                    raise ValueError(
                        f"the gradient of {variant!r} at K={k} differs from that of 'all' by {errors[variant]:.2e} of "
                        f"its norm, more than {TOLERANCE[config.dtype]:.0e}: its time would mean nothing"
                    )
            log(f"K={k}: gradients equal " + ", ".join(f"{name} {error:.0e}" for name, error in errors.items()))


def relative_error(gradient: Any, reference: Any) -> float:
    """‖gradient − reference‖ / ‖reference‖ over all leaves."""
    difference = jax.tree.map(lambda g, r: g - r, gradient, reference)
    return float(optax.tree.norm(difference) / optax.tree.norm(reference))


# -------------------------------------------------------------------------------------------------------------- Time


def rounds(programs: Sequence[Program], warmup: int, repeats: int, tick: Callable[[], None] = lambda: None):
    """Seconds of each program in each timed round. A round runs every program once (A B C A B C), so drift cancels.

    Returns:
      One list of `repeats` seconds for each program.
    """
    seconds = [[] for _ in programs]
    for i in range(warmup + repeats):
        for program, times in zip(programs, seconds, strict=True):
            start = time.perf_counter()
            program.run()
            if i >= warmup:
                times.append(time.perf_counter() - start)
            tick()
    return seconds


def time_cells(
    config: Config, setup: variants.Setup, mode: str, log=lambda line: None, tick=lambda: None
) -> list[dict]:
    """Rows of one rank and mode. All their programs are held at once, their activations one at a time."""
    cells, rank, programs = config.cells(mode), setup.model.config.rank, []
    for variant, k in cells:
        start = time.perf_counter()
        programs.append(compile_program(variant, mode, setup, k))
        log(f"compiled {variant} K={k} {mode} r={rank} in {time.perf_counter() - start:.1f} s")
    seconds = rounds(programs, config.warmup, config.repeats, tick)
    mle = statistics.median(seconds[cells.index(("all", 1))])
    return [
        {
            "variant": variant,
            "k": k,
            "rank": rank,
            "mode": mode,
            "seconds_median": statistics.median(times),
            "seconds_min": min(times),
            "seconds_max": max(times),
            "temp_bytes": program.temp_bytes,
            "argument_bytes": program.argument_bytes,
            "relative_to_mle": statistics.median(times) / mle,
        }
        for (variant, k), program, times in zip(cells, programs, seconds, strict=True)
    ]


# ------------------------------------------------------------------------------------------------------- Peak memory


def cells_with_peak(config: Config) -> list[tuple[str, int, int, str]]:
    """(variant, K, rank, mode) of the rows whose peak memory is measured."""
    if not config.subprocess:
        return []
    rows = [(v, k, rank, mode) for rank in config.ranks for mode in config.modes for v, k in config.cells(mode)]
    if config.rss == "all":
        return rows
    first = (config.ranks[0], config.modes[0] if "train" not in config.modes else "train")
    return [row for row in rows if row[2:] == first and (row[1] == config.summary_k or row[:2] == ("all", 1))]


def peak_memory(config: Config, variant: str, k: int, rank: int, mode: str) -> dict:
    """Peak memory of a fresh process that makes the model and takes two steps.

    Returns:
      peak_rss_bytes, of the host (compilation included); peak_device_bytes too where the device keeps count.
    Raises:
      RuntimeError: if the process fails; holds what it wrote last.
    """
    config = dataclasses.replace(config, json=None, figure=None)
    request = json.dumps(dataclasses.asdict(config) | {"cell": (variant, k, rank, mode)})
    command = [sys.executable, "-m", "experiments.bench_head.measure", request]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if done.returncode:
        raise RuntimeError(f"peak memory of {variant} K={k} r={rank} {mode}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_rss_bytes() -> int:
    """Most memory this process has had resident.

    Not ru_maxrss on Linux: across fork and exec that begins at the peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if lines:
            return int(lines[0].split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _answer(request: dict) -> dict:
    variant, k, rank, mode = request.pop("cell")
    config = Config(**request)
    program = compile_program(variant, mode, variants.make_setup(config, rank, k), k)
    for _ in range(2):
        program.run()
    device = jax.local_devices()[0].memory_stats() or {}
    found = {"peak_rss_bytes": peak_rss_bytes()}
    return found | ({"peak_device_bytes": device["peak_bytes_in_use"]} if "peak_bytes_in_use" in device else {})


if __name__ == "__main__":
    print(json.dumps(_answer(json.loads(sys.argv[1]))))
