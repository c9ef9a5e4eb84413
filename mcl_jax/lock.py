"""One owner of a directory at a time: whoever comes second is told who is there.

The owner holds a lock of the system on DIR/lock, which ends with its process however that ends, and writes there who it
is and, every few seconds, that it is alive. The lock alone decides between processes of one machine, and between
machines on file systems that share locks, such as NFS. Elsewhere (some object stores and cluster file systems) it says
nothing of other machines: then whoever finds another machine's record looks for a while whether it goes on.
"""

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from mcl_jax.console import say
from mcl_jax.json_io import naming

try:
    import fcntl
except ImportError:  # Windows: the record alone decides
    fcntl = None

HOST = socket.gethostname()
BEAT = 5.0  # seconds between signs of life
PATIENCE = 30.0  # seconds without one after which an owner on another machine is dead
LENGTH = 512  # of a record in bytes: all have the same, so that one replaces another as a whole


class DirectoryInUse(RuntimeError):
    """Another process, or another part of this one, owns the directory."""


class DirectoryLock:
    """The lock of a directory, which must be there.

    Args:
      directory: what is owned.
      beat, patience: seconds, see above.
    """

    def __init__(self, directory: Path, *, beat: float = BEAT, patience: float = PATIENCE):
        self.directory, self.path = directory, directory / "lock"
        self._beat, self._patience = beat, patience
        self._file: int | None = None
        self._released, self._writing = threading.Event(), threading.Lock()

    def acquire(self) -> None:
        """Makes this process the owner. A lock whose owner is dead is taken over.

        Raises:
          DirectoryInUse: names the owner's process and host.
          OSError: if nothing can be written here.
        """
        end = time.monotonic() + self._patience
        with naming(self.path):
            while not self._try():
                if time.monotonic() > end:
                    raise DirectoryInUse(self._describe_owner())
            self._pid, self._since = os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S")
            self._write(beats=0)
        _held.add(self._file)
        threading.Thread(target=self._live, name="lock", daemon=True).start()

    def release(self) -> None:
        """Gives the directory up, if it is ours and not that of the process that forked us."""
        if self._file is None or self._pid != os.getpid():
            return
        self._released.set()
        with self._writing:
            with contextlib.suppress(OSError):
                self.path.unlink()  # first, so that nobody locks a file that is about to go
            _held.discard(self._file)
            os.close(self._file)
            self._file = None

    def _try(self) -> bool:
        """Whether we own it now; if not, its owner has just left, and another attempt may succeed."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            told_apart = _lock(file)
            owner = self._read()
            if owner and (owner["host"] != HOST or not told_apart) and self._lives(owner):
                raise BlockingIOError
            if not self._is_current(file):
                os.close(file)
                return False
        except BlockingIOError:
            os.close(file)
            if _is_dead(self._read()):  # a process that it forked has yet to let its lock go
                time.sleep(0.05)
                return False
            raise DirectoryInUse(self._describe_owner()) from None
        self._file = file
        return True

    def _lives(self, owner: dict[str, Any]) -> bool:
        """Whether an owner that the lock says nothing of goes on writing its record."""
        process = f"process {owner['pid']} on {owner['host']}"
        say(f"{self.directory} was last used by {process}: waiting {self._patience:.0f} s to see whether it is alive.")
        end = time.monotonic() + self._patience
        while time.monotonic() < end:
            time.sleep(min(1.0, self._patience / 10))
            if self._read() not in (owner, None):
                return True
        return False

    def _describe_owner(self) -> str:
        owner = self._read()
        for _ in range(20):  # it may have come this very moment
            if owner is None:
                time.sleep(0.05)
                owner = self._read()
        who = (
            "another process" if owner is None else f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
        )
        return f"{self.directory} is in use by {who}: wait until it ends, or choose another directory"

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _read(self) -> dict[str, Any] | None:
        """The owner's record, opened anew as network file systems need it; None if there is none."""
        try:
            owner = json.loads(self.path.read_bytes())
            return owner if {"pid", "host", "since"} <= owner.keys() else None
        except (OSError, ValueError, AttributeError):
            return None

    def _write(self, beats: int) -> None:
        record = {"pid": self._pid, "host": HOST, "since": self._since, "beats": beats}
        os.lseek(self._file, 0, os.SEEK_SET)
        os.write(self._file, json.dumps(record).ljust(LENGTH).encode())
        os.fsync(self._file)

    def _live(self) -> None:
        beats = 0
        while not self._released.wait(self._beat):
            beats += 1
            with self._writing, contextlib.suppress(OSError):  # of a disk that is full now
                if self._file is not None:
                    self._write(beats)


def _is_dead(owner: dict[str, Any] | None) -> bool:
    """Whether an owner was a process of this machine and is gone."""
    if owner is None or owner["host"] != HOST:
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's, and alive
        return False
    return False


def _lock(file: int) -> bool:
    """Locks an open file until it is closed; False where the file system has no locks.

    Raises:
      BlockingIOError: if another process has it.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


_held: set[int] = set()  # files that are locked


def _forget() -> None:
    """In a forked child, which would go on holding its parent's locks after the parent's death."""
    for file in _held:
        os.close(file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
