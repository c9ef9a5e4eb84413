"""The kinds of disturbances while a process runs, the moment of each, and how the process must end."""

import dataclasses
import random
import signal
from collections.abc import Callable
from typing import Any

from experiments.soak import disk
from experiments.soak.process import Start

DONE, STOPPED, SIGTERM_EARLY = 0, 1, -signal.SIGTERM  # a signal may come when all is done
SAVED = 143  # after SIGTERM, once everything is saved


@dataclasses.dataclass(frozen=True)
class Moment:
    """A moment in a process: some seconds after a report came for the n-th time, or after the start.

    Attributes:
      word: first word of the report, see `toy.train`; "" is the start.
      count: n.
      seconds: seconds after that.
    """

    word: str
    count: int
    seconds: float

    def wait(self, start: Start) -> bool:
        """Waits for it; False if the process ends earlier."""
        if self.word and not start.listen(lambda: len(start.numbers(self.word)) >= self.count):
            return False
        start.listen(lambda: False, self.seconds)
        return start.running()


def draw_moment(rng: random.Random, start_seconds: float) -> Moment:
    """Draws a moment: one in five while the process starts, else near a step or the checkpoint after an evaluation."""
    if rng.random() < 0.2:
        return Moment("", 0, rng.uniform(0.0, start_seconds))
    word, most = rng.choice((("step", 12), ("evaluated", 4)))
    return Moment(word, rng.randint(1, most), rng.random() * rng.choice((0.0, 0.01, 0.1, 0.5)))


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of disturbance.

    Attributes:
      act: does it to a running process; None if the request of the process does it.
      statuses: how the process may end.
      says: words of the message of a process that stops with an error.
      request: further entries of the request of the process.
    """

    act: Callable[[Start, disk.Disk, random.Random], None] | None
    statuses: tuple[int, ...]
    says: tuple[str, ...] = ()
    request: Callable[[random.Random], dict[str, Any]] = lambda rng: {}


def _fill(start: Start, where: disk.Disk, rng: random.Random) -> None:
    where.fill(rng.choice((0, rng.randrange(2**14), rng.randrange(2**19))))


def _nan(where: str) -> Kind:
    # Before the end of the shortest way through a run, so that the step is reached.
    return Kind(None, (STOPPED,), ("step {nan}",), lambda rng: {"nan_after": rng.randrange(9), "nan_in": where})


KINDS = {
    "SIGKILL": Kind(lambda start, where, rng: start.send(signal.SIGKILL), (-signal.SIGKILL, DONE)),
    "SIGTERM": Kind(lambda start, where, rng: start.send(signal.SIGTERM), (SAVED, SIGTERM_EARLY, DONE)),
    "full disk": Kind(_fill, (STOPPED, DONE), ("No space left on device",)),
    "file size limit": Kind(
        lambda start, where, rng: disk.limit_files(start.pid, rng.choice((0, rng.randrange(2**13)))),
        (STOPPED, DONE),
        ("File too large",),
    ),
    "NaN loss": _nan("loss"),
    "NaN gradient": _nan("gradient"),
}
UNDISTURBED = Kind(None, (DONE,))


def complaints(kind: Kind, start: Start) -> list[str]:
    """Returns what is wrong with the end of a process."""
    out, err, status = start.said["out"], start.said["err"], start.status
    wrong = ["it hung and had to be killed"] * start.late
    if "Traceback" in out + err:
        wrong.append("it printed a traceback")
    if status not in kind.statuses:
        wrong.append(f"it ended with status {status} instead of {' or '.join(map(str, kind.statuses))}")
    lines = err.splitlines()
    if status == STOPPED and not (len(lines) == 1 and lines[0].startswith("error: ")):
        wrong.append(f"it must say why in one line, but its standard error has {len(lines)}")
    if status != STOPPED and lines:
        wrong.append("it wrote to standard error")
    if status == STOPPED:
        numbers = {"nan": next(iter(start.numbers("nan")), None)}
        wrong += [f"its error does not say {word!r}" for word in _filled(kind.says, numbers) if word not in err]
    return wrong


def _filled(words: tuple[str, ...], numbers: dict[str, Any]) -> list[str]:
    return [word.format(**numbers) for word in words]
