"""The owner's side of `server`: starts processes, reads what they say and waits for their end."""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PATIENCE = 600.0  # seconds after which a process counts as hanging
FORKS = {"OPENBLAS_NUM_THREADS": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # no thread before a fork
STREAMS = ("out", "err", "reports")


class Start:
    """One process, which may be disturbed while it runs.

    Attributes:
      pid: its process id.
      said: what it wrote so far, by stream ("out", "err" and "reports").
      status: exit status, or minus the signal that ended it; None before its end.
      late: whether it had to be killed because it took too long.
    """

    def __init__(self, channel: socket.socket, request: dict[str, Any]):
        pipes = [os.pipe() for _ in STREAMS]
        socket.send_fds(channel, [json.dumps(request).encode()], [write for _, write in pipes])
        for _, write in pipes:
            os.close(write)
        self._channel, self._selector = channel, selectors.DefaultSelector()
        for name, (read, _) in zip(STREAMS, pipes, strict=True):
            self._selector.register(read, selectors.EVENT_READ, name)
        self.said, self.status, self.late = dict.fromkeys(STREAMS, ""), None, False
        self.pid, self.began = json.loads(channel.recv(2**16))["pid"], time.monotonic()

    def numbers(self, word: str) -> list[int]:
        """Returns the numbers of the complete reports that begin with the word."""
        whole = self.said["reports"].rpartition("\n")[0].splitlines()
        return [int(line.split()[1]) for line in whole if line.split()[0] == word]

    def listen(self, until: Callable[[], bool], seconds: float = PATIENCE) -> bool:
        """Reads what the process says until a condition holds; False if it ended, or the time is over, before."""
        end = time.monotonic() + seconds
        while not until():
            left = end - time.monotonic()
            if left <= 0 or not self.running():
                return False
            for key, _ in self._selector.select(min(left, 0.5)):
                self._read(key)
        return True

    def running(self) -> bool:
        """Whether the process has not closed its streams."""
        return bool(self._selector.get_map())

    def end(self, seconds: float = PATIENCE) -> int:
        """Waits for the end of the process, and kills it if it takes too long; returns the status."""
        if not self.listen(lambda: not self.running(), seconds):
            self.late = True
            self.send(signal.SIGKILL)
            self.listen(lambda: not self.running(), 10.0)
        self.status = json.loads(self._channel.recv(2**16))["status"]
        self._selector.close()
        return self.status

    def send(self, number: int) -> None:
        """Sends a signal, if the process is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def _read(self, key: selectors.SelectorKey) -> None:
        content = os.read(key.fd, 2**16)
        self.said[key.data] += content.decode("utf-8", "replace")
        if not content:
            self._selector.unregister(key.fd)
            os.close(key.fd)


@contextlib.contextmanager
def server(cache: Path) -> Iterator[Callable[..., Start]]:
    """Runs a server, which is gone when the context ends; yields a function that starts a process.

    Args:
      cache: folder of compiled programs, so that only the first start compiles.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = os.environ | FORKS | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "experiments.soak.server", str(theirs.fileno())]
    with ours, subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        try:
            yield lambda **request: Start(ours, request)
        finally:
            ours.close()
            process.wait(60)
