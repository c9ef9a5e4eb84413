"""A lock that gives a directory one owner at a time. A second process is told who the owner is.

The owner holds an operating-system lock on DIR/lock, which is released however the process ends. It also writes a
record into that file that says who it is and, every few seconds, that it is alive. The lock alone decides between
processes on one machine, and between machines whose file system shares locks, such as NFS. Some object stores and
cluster file systems do not share locks: there, a process that finds another machine's record watches for a while
whether the record still changes.
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
from mcl_jax.json_io import naming, parse

try:
    import fcntl
except ImportError:  # Windows: only the record decides
    fcntl = None

HOST = socket.gethostname()
BEAT = 5.0  # seconds between signs of life
PATIENCE = 30.0  # seconds without a sign of life after which an owner on another machine counts as dead
LENGTH = 512  # bytes of a record; all records have the same length, so that a new one overwrites the old one completely


class DirectoryInUse(RuntimeError):
    """Another process, or another part of this one, owns the directory."""


class DirectoryLock:
    """The lock of an existing directory.

    Args:
      directory: the directory to own.
      beat: seconds between two signs of life.
      patience: seconds without a sign of life after which an owner on another machine counts as dead.
    """

    def __init__(self, directory: Path, *, beat: float = BEAT, patience: float = PATIENCE):
        self.directory, self.path = directory, directory / "lock"
        self._beat, self._patience = beat, patience
        self._file: int | None = None
        self._released, self._writing = threading.Event(), threading.Lock()

    def acquire(self) -> None:
        """Makes this process the owner. Takes over the lock of a dead owner.

        Raises:
          DirectoryInUse: if another process owns the directory; names its process id and host.
          OSError: if the directory cannot be written to.
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
        """Releases the directory if this very process owns it, not a parent that forked it."""
        if self._file is None or self._pid != os.getpid():
            return
        self._released.set()
        with self._writing:
            with contextlib.suppress(OSError):
                self.path.unlink()  # first, so that nobody locks a file that is about to disappear
            _held.discard(self._file)
            os.close(self._file)
            self._file = None

    def _try(self) -> bool:
        """Tries to take the lock; False if the owner has just left, so that another attempt may succeed."""
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
            if _is_dead(self._read()):  # a child that it forked has yet to release the lock
                time.sleep(0.05)
                return False
            raise DirectoryInUse(self._describe_owner()) from None
        self._file = file
        return True

    def _lives(self, owner: dict[str, Any]) -> bool:
        """Whether the owner still updates its record, where the lock itself cannot tell."""
        process = f"process {owner['pid']} on {owner['host']}"
        say(f"{self.directory} was last used by {process}. Waiting {self._patience:.0f} s to see whether it is alive.")
        end = time.monotonic() + self._patience
        while time.monotonic() < end:
            time.sleep(min(1.0, self._patience / 10))
            if self._read() not in (owner, None):
                return True
        return False

    def _describe_owner(self) -> str:
        owner = self._read()
        for _ in range(20):  # the owner may not have written its record yet
            if owner is None:
                time.sleep(0.05)
                owner = self._read()
        who = (
            "another process" if owner is None else f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
        )
        return f"{self.directory} is in use by {who}; wait until it ends, or choose another directory"

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _read(self) -> dict[str, Any] | None:
        """Reads the owner's record, None if there is none. Opens the file anew, as network file systems require."""
        try:
            owner = parse(self.path.read_text(encoding="utf-8"))
            whole = {"pid", "host", "since"} <= owner.keys() and isinstance(owner["pid"], int)
            return owner if whole and 0 < owner["pid"] < 2**31 else None
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
            with self._writing, contextlib.suppress(OSError):  # the disk may be full for a while
                if self._file is not None:
                    self._write(beats)


def _is_dead(owner: dict[str, Any] | None) -> bool:
    """Whether the owner was a process on this machine that has ended."""
    if owner is None or owner["host"] != HOST:
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # alive, and owned by another user
        return False
    return False


def _lock(file: int) -> bool:
    """Locks an open file until it is closed; returns False if the file system has no locks.

    Raises:
      BlockingIOError: if another process holds the lock.
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


_held: set[int] = set()  # descriptors of the locked files


def _forget() -> None:
    """Releases the parent's locks in a forked child, which would otherwise hold them after the parent's death."""
    for file in _held:
        os.close(file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
