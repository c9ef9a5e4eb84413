"""Debian packages as a source of data: fetched and unpacked into a cache folder, with apt and dpkg but without root."""

import shutil
import subprocess
from pathlib import Path


def fetch_package(package: str, cache_dir: Path | str, contents: str, argument: str) -> Path:
    """Gets a Debian package and unpacks it, unless that was done before.

    Args:
      package: such as "sword-text-kjv".
      cache_dir: where to; the package gets a folder of its own there.
      contents: the folder of the package that holds the data, such as "usr/share/sword".
      argument: what takes such a folder from one who has no apt, for the message.
    Returns:
      The folder `contents` of the unpacked package.
    Raises:
      RuntimeError: if that fails; says by which commands one can get the package elsewhere.
    """
    folder = Path(cache_dir).absolute() / package
    if (folder / contents).is_dir():
        return folder / contents
    partial = folder.with_name(package + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _command(["apt-get", "download", package], partial)
        deb = next(partial.glob(f"{package}_*.deb"))
        _command(["dpkg", "-x", deb.name, "."], partial)
        deb.unlink()
        if not (partial / contents).is_dir():
            raise RuntimeError(f"it has no folder {contents}")
    except (OSError, RuntimeError, StopIteration) as error:
        raise RuntimeError(
            f"could not get {package}: {error}\nGet it by `apt-get download {package} && dpkg -x {package}_*.deb "
            f"FOLDER` (after `apt-get update`), and pass FOLDER/{contents} as {argument}."
        ) from error
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder / contents


def _command(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` ended with {done.returncode}: {done.stderr.strip()[-500:]}")
