"""Identity of files in a folder: one file has one name, however its path is written.

`a.png`, `./a.png`, `sub/../a.png`, an absolute path, a link to the file, and `A.PNG` on a disk that ignores case are
all the same file.
"""

import hashlib
import os
import stat
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import NamedTuple


class Located(NamedTuple):
    """A file in a folder.

    Attributes:
      path: path to open the file.
      name: its path inside the folder, without `.` and `..`.
      identity: equal for all names of the same file, including links; the name itself if there is no such file.
      is_file: whether the file exists.
    """

    path: Path
    name: str
    identity: Hashable
    is_file: bool


def locate(folder: Path | str, name: str) -> Located:
    """Finds the file with this name in a folder. The path may be written in any way, even absolute.

    A link in the folder may lead out of it and counts as its target.

    Raises:
      ValueError: if the path is outside the folder.
    """
    folder, path = Path(folder), Path(folder) / name
    written = [] if ".." in Path(name).parts else [path]
    candidates = [*written, Path(os.path.realpath(path.parent)) / path.name]
    roots = (folder, folder.absolute(), folder.resolve())
    inside = ((path, root) for path in candidates for root in roots if path.is_relative_to(root) and path.name != "..")
    path, root = next(inside, (None, None))
    if path is None:
        raise ValueError(f"file {name!r} is not in the folder; it must be a path inside {str(folder)!r}")
    key = path.relative_to(root).as_posix()
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # no such file, or a name that no file can have
        return Located(path, key, key, is_file=False)
    return Located(path, key, (status.st_dev, status.st_ino), stat.S_ISREG(status.st_mode))


def checksum(folder: Path, names: Iterable[str]) -> str:
    """Returns a checksum of the names, sizes and times of these files in the folder."""
    digest = hashlib.sha256()
    for name in sorted(set(names)):
        status = (folder / name).stat()
        digest.update(os.fsencode(f"{name} {status.st_size} {status.st_mtime_ns}\n"))
    return digest.hexdigest()[:16]
