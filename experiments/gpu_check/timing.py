"""Timing of compiled functions."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Timed(NamedTuple):
    """Seconds of a call.

    Attributes:
      median, least, most: over the repeats.
    """

    median: float
    least: float
    most: float


def summary(times: list[float]) -> Timed:
    """Summarises times in seconds."""
    return Timed(statistics.median(times), min(times), max(times))


def seconds_of(function: Callable[..., Any], *arguments: Any, repeats: int = 10, calls: int = 8) -> Timed:
    """Times one call of a function, after two rounds that do not count.

    A round enqueues many calls and waits once. Waiting for each would add the way to the GPU and back, a quarter of a
    millisecond on one H200, to calls that take one.
    """
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        for _ in range(calls):
            last = function(*arguments)
        jax.block_until_ready(last)
        times.append((time.perf_counter() - started) / calls)
    return summary(times[2:])
