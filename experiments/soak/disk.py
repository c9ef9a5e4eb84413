"""A small disk that can be filled, and what to do without one."""

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

SIZE = 4 * 2**20  # bytes of the disk; a run takes less than one of them
BALLAST = "ballast"


class Disk:
    """The folder of the runs.

    Attributes:
      folder: the folder.
      can_fill: whether it is a file system of its own, so that `fill` fills nothing else.
    """

    def __init__(self, folder: Path, *, can_fill: bool):
        self.folder, self.can_fill = folder, can_fill

    def fill(self, left: int) -> None:
        """Leaves so many bytes free."""
        with open(self.folder / BALLAST, "wb", buffering=0) as file, contextlib.suppress(OSError):
            missing = shutil.disk_usage(self.folder).free - left
            while missing > 0:
                missing -= file.write(bytes(min(missing, 2**16)))

    def free(self) -> None:
        """Undoes `fill`."""
        (self.folder / BALLAST).unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    """Mounts a small tmpfs on a new folder if that is allowed; else the folder is an ordinary one."""
    folder.mkdir()
    mounted = _quietly("mount", "-t", "tmpfs", "-o", f"size={SIZE}", "soak", str(folder))
    try:
        yield Disk(folder, can_fill=mounted)
    finally:
        if mounted:
            _quietly("umount", str(folder))


def limit_files(pid: int, size: int) -> None:
    """Lets no file of a process grow beyond a size in bytes: a write beyond it fails, as on a full disk."""
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, size))


def _quietly(*command: str) -> bool:
    if os.geteuid() != 0 or shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True).returncode == 0
