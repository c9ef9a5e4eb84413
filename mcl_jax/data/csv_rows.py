"""Rows of a published CSV file. A row that is broken is left out by its line, and costs no row that is whole.

What is found in such files, and what becomes of it, where the last column is a caption:

    7,abc,30,A dog barks, a man laughs     a comma without quotes: five fields, the row is left out
    8,def,40,"A dog barks                  a quote that never closes: the row is left out, the next one is read
    9,ghi,50,A dog barks                   a caption that goes on in the next line: half of it is no caption, so that
    and a man laughs                       both lines are left out
    10,jkl,60,"A dog barks                 the same in quotes: one caption, as CSV has it
    and a man laughs"
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

MOST_LINES = 20  # of one row
Marks = Mapping[str, str]


def read_rows(
    path: Path, columns: tuple[str, ...], marks: Marks, left_out: list[tuple[str, str]]
) -> list[dict[str, str]]:
    """The whole rows of a CSV file with a header, by column.

    Args:
      path: the file, UTF-8.
      columns: that are needed; there may be others.
      marks: of some columns, a regular expression that every value matches. They tell the beginning of a row from the
        rest of a broken one: the first column of them is the one that rows begin with.
      left_out: gets the lines that are left out, "NAME, line 7", and why.
    Raises:
      ValueError: for a file that is not UTF-8, or without these columns; names it.
    """
    lines = list(io.StringIO(_decoded(path), newline=""))  # split at \n, \r and \r\n, as in CSV
    header = (_fields(lines[0]) if lines else None) or []
    if any(header.count(column) != 1 for column in columns):
        raise ValueError(f"{path}: needed the columns {', '.join(columns)}, got {header}")
    patterns = {header.index(column): re.compile(pattern) for column, pattern in marks.items()}
    kept: dict[int, dict[str, str]] = {}
    leave_out = lambda number, why: left_out.append((f"{path.name}, line {number}", why))
    before = 0
    for number, fields in _rows(lines, patterns):
        if fields is None:
            leave_out(number, "quotes that do not match" if '"' in lines[number - 1] else "not a row of CSV")
        elif problem := _problem(fields, header, patterns):
            if before in kept and _is_rest(fields, header, patterns):
                del kept[before]
                leave_out(before, "a row that goes on in the next line, without quotes")
            leave_out(number, problem)
        else:
            kept[number] = dict(zip(header, fields, strict=True))
        before = number
    return list(kept.values())


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: needed UTF-8, got {error} in line {line}") from None


def _rows(lines: list[str], patterns: dict[int, re.Pattern]) -> Iterator[tuple[int, list[str] | None]]:
    """The number of the first line and the fields of every row below the header; None for one that is broken."""
    start = 1
    while start < len(lines):
        if not lines[start].strip():
            start += 1
            continue
        text, fields, end = "", None, start
        while fields is None and end < min(start + MOST_LINES, len(lines)):
            if end > start and _begins(lines[end], patterns):
                break  # another row begins here: the quotes of this one do not close
            text += lines[end]
            end += 1
            fields = _fields(text)
        yield start + 1, fields
        start = start + 1 if fields is None else end


def _fields(text: str) -> list[str] | None:
    """The fields of one row, None if it is none: quotes are open, or something follows a closed one."""
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def _begins(line: str, patterns: dict[int, re.Pattern]) -> bool:
    """Whether a line may be the beginning of a row, whether or not its quotes match."""
    try:
        return _matches(next(csv.reader([line.strip()]), []), patterns)
    except csv.Error:
        return False


def _matches(fields: list[str], patterns: dict[int, re.Pattern]) -> bool:
    """Whether these may be the fields of a row."""
    return all(place < len(fields) and pattern.fullmatch(fields[place]) for place, pattern in patterns.items())


def _problem(fields: list[str], header: list[str], patterns: dict[int, re.Pattern]) -> str | None:
    if len(fields) != len(header):
        return f"needed {len(header)} fields, got {len(fields)}"
    wrong = next((place for place, pattern in patterns.items() if not pattern.fullmatch(fields[place])), None)
    return None if wrong is None else f"{header[wrong]} is {fields[wrong]!r}, which cannot be"


def _is_rest(fields: list[str], header: list[str], patterns: dict[int, re.Pattern]) -> bool:
    """Whether a broken row is the rest of the row before it: it does not begin as a row does."""
    first, pattern = next(iter(patterns.items()))
    begins = first < len(fields) and pattern.fullmatch(fields[first])
    return not begins or (len(fields) < len(header) and not _matches(fields, patterns))
