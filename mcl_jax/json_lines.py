"""Files of JSON lines that a training appends to, robust against a kill or a full disk."""

import json
import os
from pathlib import Path
from typing import Any

from mcl_jax.json_io import HALVES, naming, parse


def read(path: Path) -> list[str]:
    """Reads the lines of a file; none if there is no file. Removes an incomplete last line, in the file too.

    Raises:
      ValueError: if a complete line is no JSON object; names it.
    """
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    lines = content[:whole].decode("utf-8", "replace").split("\n")[:-1]
    for number, line in enumerate(lines, 1):
        try:
            value = parse(line)
        except ValueError as error:
            raise ValueError(f"line {number} of {path} is not JSON ({error}): {line[:80]!r}") from error
        if not isinstance(value, dict):
            raise ValueError(f"line {number} of {path} must be a JSON object, got {line[:80]!r}")
    if whole < len(content):
        with naming(path):
            os.truncate(path, whole)  # needs no disk space
    return lines


def append(path: Path, value: Any) -> None:
    """Appends a value of JSON's types as one line, completely or not at all.

    Raises:
      OSError: if the line cannot be written; names the file.
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
