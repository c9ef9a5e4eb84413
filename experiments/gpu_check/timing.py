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


def seconds_of(function: Callable[..., Any], *arguments: Any, repeats: int = 10) -> Timed:
    """Times a function after two calls that do not count."""
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - started)
    return summary(times[2:])
