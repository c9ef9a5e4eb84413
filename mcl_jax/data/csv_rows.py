"""Tolerant reading of published CSV files: a broken row is left out, with its line number, and the others are kept.

Published files contain such rows (the last column is a caption):

    7,abc,30,A dog barks, a man laughs     a comma without quotes gives five fields: the row is left out
    8,def,40,"A dog barks                  a quote that never closes: the row is left out, the next one is read
    9,ghi,50,A dog barks                   a caption that continues on the next line without quotes: both lines are
    and a man laughs                       left out
    10,jkl,60,"A dog barks                 the same in quotes: one caption, as in CSV
    and a man laughs"
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

MOST_LINES = 20  # largest number of lines of one row
Marks = Mapping[str, str]


def read_rows(
    path: Path, columns: tuple[str, ...], marks: Marks, left_out: list[tuple[str, str]]
) -> list[dict[str, str]]:
    """Reads the complete rows of a CSV file with a header.

    Args:
      path: the file, UTF-8.
      columns: required columns; there may be others.
      marks: column → regular expression that all its values match. They distinguish the beginning of a row from the
        rest of a broken one; the first of these columns must be the first of a row.
      left_out: receives the lines that are left out, "NAME, line 7", and the reasons.
    Returns:
      The rows, as dicts by column.
    Raises:
      ValueError: if the file is not UTF-8, or lacks a column; names it.
    """
    lines = list(io.StringIO(decoded(path), newline=""))  # splits at \n, \r and \r\n, as CSV does
    header = (_fields(lines[0]) if lines else None) or []
    if any(header.count(column) != 1 for column in columns):
        raise ValueError(f"{path} must have the columns {', '.join(columns)}, each once, got {header}")
    patterns = {header.index(column): re.compile(pattern) for column, pattern in marks.items()}
    kept: dict[int, dict[str, str]] = {}

    def leave_out(number: int, reason: str) -> None:
        left_out.append((f"{path.name}, line {number}", reason))

    before = 0
    for number, fields in _rows(lines, patterns):
        if fields is None:
            leave_out(number, "unmatched quotes" if '"' in lines[number - 1] else "not a CSV row")
        elif problem := _problem(fields, header, patterns):
            if before in kept and _is_rest(fields, header, patterns):
                del kept[before]
                leave_out(before, "a row that continues on the next line without quotes")
            leave_out(number, problem)
        else:
            kept[number] = dict(zip(header, fields, strict=True))
        before = number
    return list(kept.values())


def decoded(path: Path) -> str:
    """Returns the text of a file without its byte order mark.

    Raises:
      ValueError: if it is not UTF-8; names file and line.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path} must be UTF-8, got {error} in line {line}") from None


def _rows(lines: list[str], patterns: dict[int, re.Pattern]) -> Iterator[tuple[int, list[str] | None]]:
    """Yields the first line number and the fields of every row after the header; None for a broken row."""
    start = 1
    while start < len(lines):
        if not lines[start].strip():
            start += 1
            continue
        text, fields, end = "", None, start
        while fields is None and end < min(start + MOST_LINES, len(lines)):
            if end > start and _begins(lines[end], patterns):
                break  # another row begins here, so the quotes of this one never close
            text += lines[end]
            end += 1
            fields = _fields(text)
        yield start + 1, fields
        start = start + 1 if fields is None else end


def _fields(text: str) -> list[str] | None:
    """Parses one row; None if it is broken: a quote is open, or text follows a closed one."""
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def _begins(line: str, patterns: dict[int, re.Pattern]) -> bool:
    """Whether a line may be the beginning of a row, even if its quotes do not match."""
    try:
        return _matches(next(csv.reader([line.strip()]), []), patterns)
    except csv.Error:
        return False


def _matches(fields: list[str], patterns: dict[int, re.Pattern]) -> bool:
    """Whether these could be the fields of a row."""
    return all(place < len(fields) and pattern.fullmatch(fields[place]) for place, pattern in patterns.items())


def _problem(fields: list[str], header: list[str], patterns: dict[int, re.Pattern]) -> str | None:
    if len(fields) != len(header):
        return f"needed {len(header)} fields, got {len(fields)}"
    wrong = next((place for place, pattern in patterns.items() if not pattern.fullmatch(fields[place])), None)
    return None if wrong is None else f"{header[wrong]} is {fields[wrong]!r}, which is not valid"


def _is_rest(fields: list[str], header: list[str], patterns: dict[int, re.Pattern]) -> bool:
    """Whether a broken row is the rest of the previous row, because it does not begin like a row."""
    first, pattern = next(iter(patterns.items()))
    begins = first < len(fields) and pattern.fullmatch(fields[first])
    return not begins or (len(fields) < len(header) and not _matches(fields, patterns))
