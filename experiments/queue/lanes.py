"""Runs jobs side by side, each in a process of its own, and stops those that run when the time is over."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from experiments.queue.jobs import Job

POLL = 0.2  # seconds between two looks at the processes
PATIENCE = 120.0  # seconds for a job to save its state after SIGTERM
SAVED = 128 + signal.SIGTERM  # exit status of a run that was stopped and resumes
SIGNALS = (signal.SIGTERM, signal.SIGINT)
Status = Literal["finished", "failed", "stopped"]


@dataclasses.dataclass(frozen=True)
class Ended:
    """What became of a job.

    Attributes:
      status: "finished", "failed", or "stopped" if the time was over; a stopped run resumes.
      seconds: how long it ran.
      said: the last line that it wrote, if it failed.
    """

    status: Status
    seconds: float
    said: str = ""


class Lanes:
    """Runs at most so many jobs at a time.

    Args:
      out: folder of the run directories; what a job writes is in OUT/NAME.log.
      lanes: number of jobs at a time.
      environment: environment of the jobs.
      ended: called with each job and what became of it.
    """

    def __init__(self, out: Path, lanes: int, environment: Mapping[str, str], ended: Callable[[Job, Ended], None]):
        self.out, self.lanes, self.environment, self.ended = out, lanes, dict(environment), ended
        self.running: dict[Job, tuple[subprocess.Popen, float]] = {}
        self.over = threading.Event()

    def run(self, jobs: Sequence[Job], seconds: float | None) -> list[Job]:
        """Runs the jobs in order, until all have ended or the time is over; SIGTERM and SIGINT end it, too.

        Returns:
          The jobs that were not started.
        """
        waiting, end = list(jobs), None if seconds is None else time.monotonic() + seconds
        before = {number: signal.signal(number, lambda *_: self.over.set()) for number in SIGNALS}
        try:
            while (waiting or self.running) and not self.over.is_set() and (end is None or time.monotonic() < end):
                while waiting and len(self.running) < self.lanes:
                    self._start(waiting.pop(0))
                self.over.wait(POLL)
                self._look()
            self._stop()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for process, _ in self.running.values():
                process.kill()
        return waiting

    def _log(self, job: Job) -> Path:
        return self.out / f"{job.name}.log"

    def _start(self, job: Job) -> None:
        command = [sys.executable, "-m", job.module, "--workdir", str(self.out / job.name), *job.options]
        with self._log(job).open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )
        self.running[job] = process, time.monotonic()

    def _look(self, stopping: bool = False) -> None:
        """Notes the jobs that have ended."""
        for job, (process, began) in list(self.running.items()):
            if (code := process.poll()) is None:
                continue
            del self.running[job]
            status: Status = "finished" if code == 0 else "failed"
            if stopping and code in (SAVED, -signal.SIGTERM):
                status = "stopped"
            said = _last_line(self._log(job)) if status == "failed" else ""
            self.ended(job, Ended(status, time.monotonic() - began, said))

    def _stop(self) -> None:
        """Asks the jobs that run to save their state and end, and waits for that."""
        for process, _ in self.running.values():
            os.killpg(process.pid, signal.SIGTERM)
        end = time.monotonic() + PATIENCE
        while self.running and time.monotonic() < end:
            time.sleep(POLL)
            self._look(stopping=True)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")
