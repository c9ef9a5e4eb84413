"""Reading of answers to be scored, one JSON object per line.

    {"id": "17", "answers": ["Ein Haus.", "Das Haus."], "references": ["Das Haus."], "mode": "formal", "winner": 1}

`mode` (a name or number) and `winner` (the index of a hypothesis, from 0) are optional; specialisation needs them.
Other keys are ignored.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcl_jax.json_io import check_unicode, parse
from mcl_jax.metrics.text import written

NEEDED = ("id", "answers", "references")


@dataclass(frozen=True)
class Item:
    """K answers to one input, and R references.

    Attributes:
      id: a name or number.
      answers: one answer per hypothesis; may be blank.
      references: right answers, at least one of them not blank.
      mode: the true mode of the item, if known.
      winner: index of the hypothesis that the model assigns to the item, if known.
    """

    id: str | int
    answers: tuple[str, ...]
    references: tuple[str, ...]
    mode: str | int | None = None
    winner: int | None = None


def read_items(path: str | Path) -> list[Item]:
    """Reads the items of a JSONL file or a pipe; empty lines are skipped.

    Raises:
      ValueError: if a line is broken, lacks a key, has a value of the wrong type, or repeats an id; names file and
        line.
      OSError: if the file cannot be read; names it.
    """
    items, line_of = [], {}
    if not Path(path).exists():
        raise ValueError(f"{path} must be a file with one JSON object per line, but there is no such file")
    if Path(path).is_dir():
        raise ValueError(f"{path} must be a file with one JSON object per line, but it is a folder")
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                item = _item(_parse(line, first=number == 1))
                if item.id in line_of:
                    raise ValueError(f"every id must be unique, but line {line_of[item.id]} has {item.id!r} already")
            except ValueError as error:
                raise ValueError(f"{path} line {number}: {error}") from None
            line_of[item.id] = number
            items.append(item)
    if not items:
        raise ValueError(f"{path} must hold at least one item, got an empty file")
    return items


def _parse(line: bytes, first: bool) -> dict[str, Any]:
    try:
        entry = parse(line.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"must be UTF-8 ({error})") from None
    except ValueError as error:
        raise ValueError(f"must be one JSON object ({error})") from None
    if not isinstance(entry, dict):
        raise ValueError(f"must be a JSON object {{...}}, got {type(entry).__name__}")
    return entry


def _item(entry: dict[str, Any]) -> Item:
    for name in NEEDED:
        if name not in entry:
            near = difflib.get_close_matches(name, entry, n=1)
            hint = f"; did you mean {name!r} instead of {near[0]!r}?" if near else ""
            raise ValueError(f"must have the key {name!r}, got {sorted(entry)}{hint}")
    for name in ("answers", "references"):
        _check_texts(name, entry[name])
    if not written(entry["references"]):
        raise ValueError("references must contain at least 1 text that is not blank")
    _check_name("id", entry["id"])
    if entry.get("mode") is not None:
        _check_name("mode", entry["mode"])
    return Item(
        entry["id"],
        tuple(entry["answers"]),
        tuple(entry["references"]),
        entry.get("mode"),
        _winner(entry.get("winner"), len(entry["answers"])),
    )


def _check_texts(name: str, texts: Any) -> None:
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} must be a list of at least 1 text, got {texts!r}")
    for text in texts:
        check_unicode(text, name)


def _check_name(name: str, value: Any) -> None:
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise ValueError(f"{name} must be text or an integer, got {value!r}")
    if isinstance(value, str):
        check_unicode(value, name)


def _winner(winner: Any, num_answers: int) -> int | None:
    if winner is None:
        return None
    if not isinstance(winner, int) or isinstance(winner, bool) or not 0 <= winner < num_answers:
        raise ValueError(f"winner must be the index of an answer, 0 to {num_answers - 1}, got {winner!r}")
    return winner
