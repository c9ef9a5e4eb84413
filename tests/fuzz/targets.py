"""What a fuzz target is, and how its inputs are drawn, watched and counted."""

import collections
import contextlib
import dataclasses
import faulthandler
import io
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis.strategies import SearchStrategy

HANG = 300  # seconds after which an input counts as a hang: its stack is printed, and the process ends
SLOW = 20  # seconds of this process that an input may take, to compile or to read
READ, REFUSED, HELD = "read", "refused", "held"
# Errors whose messages are written for users; see mcl_jax.command_line.
REFUSALS = (ValueError, OSError)


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader or a function, and the inputs that it gets.

    Attributes:
      name: its name in the table.
      inputs: makes the strategy that draws them.
      check: takes an empty folder and an input, and returns what came of it: "read", "refused", or "held" if the
        invariants of a function held. It raises an error for a fault.
      share: its part of all inputs, relative to the other targets.
    """

    name: str
    inputs: Callable[[], SearchStrategy]
    check: Callable[[Path, Any], str]
    share: float = 1.0


class Fault(AssertionError):
    """A reader that did something that it must not."""


def refused(error: BaseException, *names: str) -> str:
    """Returns "refused" for an error that a reader may raise.

    Raises:
      Fault: if its message names none of the files, or memory ran out on the way to it.
    """
    cause = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            raise Fault(f"memory ran out: {error!r}") from error
        cause = cause.__cause__ or cause.__context__
    if not any(name in str(error) for name in names):
        raise Fault(f"the message must name one of {names}, got {error!r}") from error
    return REFUSED


def reads(read: Callable[[], Any], *names: str, also: tuple[type[BaseException], ...] = ()) -> tuple[str, Any]:
    """Calls a reader; returns ("read", its result) or ("refused", None).

    Args:
      read: the call.
      *names: the message of an error must contain one of them.
      also: errors that this reader may raise besides ValueError and OSError.
    """
    try:
        return READ, read()
    except (*REFUSALS, *also) as error:
        return refused(error, *names), None


def limit_memory(spare: int = 3 * 2**30) -> None:
    """Lets this process allocate so many bytes more than it has now, so that a file cannot ask for a terabyte."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + spare
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def run(target: Target, inputs: int, seed: int, kept: Path) -> dict[str, Any]:
    """Draws inputs for a target; returns counts, times and the faults that it found.

    Args:
      target: the target.
      inputs: how many to draw.
      seed: the same seed draws the same inputs.
      kept: folder for the inputs that show a fault, the first of each kind.
    """
    counts, longest, faults, started = collections.Counter(), [0.0], {}, time.monotonic()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=inputs,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @hypothesis.given(target.inputs())
    def draw(value: Any) -> None:
        begin = time.process_time()
        try:
            outcome = _outcome(target, value)
            if (took := time.process_time() - begin) > SLOW:
                raise Fault(f"an input took {took:.0f} s")
        except Exception as error:
            outcome = "fault"
            if (kind := _kind(error)) not in faults:
                faults[kind] = {
                    "times": 0,
                    "input": str(_keep(kept, target, len(faults), value)),
                    "error": _traceback(error),
                }
            faults[kind]["times"] += 1
        longest[0] = max(longest[0], time.process_time() - begin)
        counts.update(["inputs", outcome])

    draw()
    return {
        **counts,
        "faults": list(faults.values()),
        "seconds": round(time.monotonic() - started, 1),
        "slowest_seconds": round(longest[0], 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _outcome(target: Target, value: Any) -> str:
    """Checks one input in an empty folder, in silence. A hang prints its stack and ends the process."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        faulthandler.dump_traceback_later(HANG, exit=True, file=sys.__stderr__)
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return target.check(Path(folder), value)
        except (KeyboardInterrupt, Exception):
            raise
        except BaseException as error:  # panics of libraries in Rust, SystemExit
            raise Fault(f"{type(error).__name__} is no Exception: {error}") from error
        finally:
            faulthandler.cancel_dump_traceback_later()


def _kind(error: BaseException) -> tuple[str, str]:
    """Returns what tells faults apart: the type, and the last line of ours that it passed."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
    return type(error).__name__, "".join(f"{f.filename}:{f.lineno}" for f in frames[-1:])


def _traceback(error: BaseException) -> str:
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(line[:300] for line in lines[-24:])


def _keep(kept: Path, target: Target, number: int, value: Any) -> Path:
    """Writes an input into a file, as bytes or as Python."""
    kept.mkdir(parents=True, exist_ok=True)
    file = kept / f"{target.name.replace(' ', '_')}-{number}"
    file.write_bytes(value if isinstance(value, bytes) else repr(value).encode("utf-8", "backslashreplace"))
    return file
