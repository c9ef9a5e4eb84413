"""JSON lines that a training adds to, and that a kill or a full disk may tear."""

import json
import os
from pathlib import Path
from typing import Any

from mcl_jax.json_io import HALVES, naming


def read(path: Path) -> list[str]:
    """The lines of a file, none if there is no file; a last one that a kill tore is cut off, in the file too.

    Raises:
      ValueError: if a line before the last is no JSON object; names it.
    """
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    lines = content[:whole].decode("utf-8", "replace").split("\n")[:-1]
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} of {path} is not JSON ({error}): {line[:80]!r}") from error
        if not isinstance(found, dict):
            raise ValueError(f"line {number} of {path} must be a JSON object, got {line[:80]!r}")
    if whole < len(content):
        with naming(path):
            os.truncate(path, whole)  # which needs no space on the disk
    return lines


def append(path: Path, value: Any) -> None:
    """Adds JSON types as a line, as a whole or not at all.

    Raises:
      OSError: names the file.
    """
    line = json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
    size = path.stat().st_size if path.exists() else 0
    with naming(path):
        try:
            with open(path, "a", encoding="utf-8", errors=HALVES) as file:
                file.write(line)
        except OSError:
            if path.exists():
                os.truncate(path, size)
            raise
