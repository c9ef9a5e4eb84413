"""Measurement of one rank and mode: checks every program, then times all of them in rounds."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from experiments.bench_head import variants
from experiments.bench_head.config import Config
from experiments.bench_head.programs import Program, compile_program

# ‖result − reference‖ / ‖reference‖. Accelerators multiply float32 in fewer bits unless told otherwise.
TOLERANCE = {("float32", True): 1e-4, ("float32", False): 2e-2, ("bfloat16", True): 5e-2, ("bfloat16", False): 5e-2}


def tolerance(config: Config) -> float:
    """Returns the allowed relative error against `all`: 1e-4 where float32 products are computed in float32."""
    exact = jax.default_backend() == "cpu" or config.matmul_precision == "highest"
    return TOLERANCE[config.dtype, exact]


def relative_error(result: Any, reference: Any) -> float:
    """Computes ‖result − reference‖ / ‖reference‖ over all leaves."""
    difference = jax.tree.map(lambda x, y: x - y, result, reference)
    return float(optax.tree.norm(difference) / optax.tree.norm(reference))


def check(variant: str, k: int, mode: str, result: Any, reference: Any, allowed: float) -> float:
    """Returns the relative error of a result.

    Raises:
      ValueError: if the error is larger than allowed.
    """
    error = relative_error(result, reference)
    if not error <= allowed:  # true for NaN as well
        result_name = "gradients" if mode == "train" else "log-likelihoods"
        raise ValueError(
            f"the {result_name} of {variant!r} at K={k} must equal those of 'all' up to {allowed:.0e} of their norm, "
            f"but differ by {error:.1e}, so the times cannot be compared"
        )
    return error


def checked_programs(
    config: Config, setup: variants.Setup, mode: str, log: Callable[[str], None] = lambda line: None
) -> list[Program]:
    """Compiles the program of every cell of a rank and mode, and checks that it computes the same as `all`.

    Raises:
      ValueError: if a program computes something else.
    """
    programs, references = [], {}
    for variant, k in config.cells(mode):
        start = time.perf_counter()
        program = compile_program(variant, mode, setup, k)
        result = program.first()
        if k not in references:
            references = {k: result if variant == "all" else compile_program("all", mode, setup, k).first()}
        error = check(variant, k, mode, result, references[k], tolerance(config))
        seconds = time.perf_counter() - start
        log(f"r={setup.model.config.rank} {mode} K={k} {variant}: error {error:.0e}, compiled in {seconds:.1f} s")
        programs.append(program)
    return programs


def rounds(
    programs: Sequence[Program],
    warmup: int,
    repeats: int,
    tick: Callable[[], None] = lambda: None,
    patience: float = float("inf"),
) -> list[list[float]]:
    """Times each program in each round. A round runs every program once (A B C A B C), so that drift cancels.

    A program whose first run takes longer than `patience` seconds is not run again; that single time counts.

    Returns:
      Times in seconds, by program.
    """
    seconds = [[] for _ in programs]
    given_up = set()
    for i in range(warmup + repeats):
        for number, (program, times) in enumerate(zip(programs, seconds, strict=True)):
            if number not in given_up:
                start = time.perf_counter()
                program.run()
                took = time.perf_counter() - start
                if i == 0 and took > patience:
                    given_up.add(number)
                if i >= warmup or number in given_up:
                    times.append(took)
            tick()
    return seconds


def rows_of(
    config: Config, rank: int, mode: str, programs: Sequence[Program], seconds: list[list[float]]
) -> list[dict]:
    """Makes one row per cell; `relative_to_mle` is the ratio of the median to that of `all` at K=1."""
    cells = config.cells(mode)
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
