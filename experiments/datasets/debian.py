"""Data from Debian packages, fetched and unpacked into a cache folder with apt and dpkg, but without root."""

import shutil
import subprocess
from pathlib import Path


def fetch_package(package: str, cache_dir: Path | str, contents: str, argument: str) -> Path:
    """Fetches and unpacks a Debian package, unless that was done before.

    Args:
      package: name of the package, such as "sword-text-kjv".
      cache_dir: folder in which the package gets its own folder.
      contents: folder of the package with the data, such as "usr/share/sword".
      argument: name of the option that accepts a local folder, for error messages.
    Returns:
      The folder `contents` of the unpacked package.
    Raises:
      RuntimeError: if the package cannot be fetched or unpacked; gives the commands to get it elsewhere.
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
            f"the Debian package {package} cannot be fetched: {error}\nFetch it with `apt-get download {package} && "
            f"dpkg -x {package}_*.deb FOLDER` (after `apt-get update`), and pass FOLDER/{contents} as {argument}."
        ) from error
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder / contents


def _command(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` ended with {done.returncode}: {done.stderr.strip()[-500:]}")
