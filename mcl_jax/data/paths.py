"""One file, one name: files of a folder are told by what they are, however a path to them is written.

`a.png`, `./a.png`, `sub/../a.png`, an absolute path, a link to it, and `A.PNG` where case does not count are one file.
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
      path: to open it.
      name: its path in the folder, without `.` and `..`.
      identity: the same for every name of one file, links included; the name, if there is no such file.
      is_file: whether there is one.
    """

    path: Path
    name: str
    identity: Hashable
    is_file: bool


def locate(folder: Path | str, name: str) -> Located:
    """The file of this name in a folder; the path may be written in any way, and be absolute.

    A link in the folder may lead out of it, and counts as what it leads to.

    Raises:
      ValueError: for a path out of the folder.
    """
    folder, path = Path(folder), Path(folder) / name
    written = [] if ".." in Path(name).parts else [path]
    candidates = [*written, Path(os.path.realpath(path.parent)) / path.name]
    roots = (folder, folder.absolute(), folder.resolve())
    inside = ((path, root) for path in candidates for root in roots if path.is_relative_to(root) and path.name != "..")
    if (found := next(inside, None)) is None:
        raise ValueError(f"file {name!r} is not in the folder; needed a path inside of {str(folder)!r}")
    path, root = found
    key = path.relative_to(root).as_posix()
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # none there, or a name that no file can have
        return Located(path, key, key, is_file=False)
    return Located(path, key, (status.st_dev, status.st_ino), stat.S_ISREG(status.st_mode))


def checksum(folder: Path, names: Iterable[str]) -> str:
    """Changes when one of these files in the folder has another name, size or time."""
    found = hashlib.sha256()
    for name in sorted(set(names)):
        status = (folder / name).stat()
        found.update(os.fsencode(f"{name} {status.st_size} {status.st_mtime_ns}\n"))
    return found.hexdigest()[:16]
