"""Your own one-to-many text: a JSON-lines file with one object per line.

    {"id": "7", "source": "a cat on a mat", "target": "un gato", "mode": "es", "split": "train"}
    {"id": "7", "source": "a cat on a mat", "target": "a cat", "mode": "en", "split": "train"}
    {"id": "8", "source": "a dog", "target": "un perro", "references": ["un can", {"target": "a dog", "mode": "en"}]}

`id` (text or an integer), `source` and `target` are required. Lines with the same id form one record: they share the
source and the split, and their targets are collected (an exact repetition counts once). `mode` names the kind of a
target. `split` is "train", "validation" or "test"; without it, a hash of the id decides. `references` are further right
answers for evaluation only: texts, or objects with `target` and `mode`. Other fields are ignored, unless their names
look like typos.
"""

import dataclasses
import difflib
import json
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

from mcl_jax.data.paths import Located
from mcl_jax.data.records import SPLITS, Corpus, Record, Target, describe_unknown, split_of
from mcl_jax.json_io import check_unicode, parse, write_text


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names of the fields of a line.

    Attributes:
      needed: required fields of a line.
      optional: optional fields of a line.
      subject: name of the input field, such as "source"; lines with the same id share its value.
      answer: name of the answer field, such as "target"; also in references that are objects.
      locate: finds the file of a subject, (folder, name) -> file, if subjects are files. Lines with the same file then
        form one record, with the id of the first line, and `id` is optional. None if subjects are texts.
    """

    needed: tuple[str, ...]
    optional: tuple[str, ...]
    subject: str
    answer: str
    locate: Callable[[Path, str], Located] | None = None


TEXT = Layout(("id", "source", "target"), ("mode", "split", "references"), "source", "target")


def read_jsonl(path: Path | str, validation: float = 0.05, test: float = 0.05) -> Corpus:
    """Reads a corpus from a JSON-lines file.

    Args:
      path: the file, UTF-8.
      validation, test: expected fractions of the ids without a `split`.
    Returns:
      The corpus, named after the file.
    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if a line is wrong; names file and line, what was needed and what came.
    """
    path = Path(path)
    records = (
        Record(
            id=key,
            source=fields["subject"],
            targets=tuple(fields["targets"]),
            further_references=tuple(fields["references"]),
            split=fields["split"] or split_of(key, validation, test),
        )
        for key, fields in merge_lines(path, TEXT).items()
    )
    return Corpus(path.name, tuple(records))


def write_jsonl(path: Path | str, corpus: Corpus) -> None:
    """Writes a corpus so that `read_jsonl` returns the same records; one line per target.

    Raises:
      ValueError: if a record has an image or audio clip, which these lines cannot hold.
    """
    lines = []
    for record in corpus.records:
        if record.media is not None:
            raise ValueError(f"record {record.id!r} has a {record.media.kind}, but {path} can hold only text")
        for number, target in enumerate(record.targets):
            line = {"id": record.id, "source": record.source, **_as_fields(target), "split": record.split}
            if number == 0 and record.further_references:
                line["references"] = [_as_fields(reference) for reference in record.further_references]
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(Path(path), "".join(lines))


def _as_fields(target: Target) -> dict[str, str]:
    return {"target": target.text} if target.mode is None else {"target": target.text, "mode": target.mode}


def merge_lines(path: Path, layout: Layout) -> dict[str, dict[str, Any]]:
    """Reads the records of a file by id: number of the first line, subject, split (or None), targets, references.

    Raises:
      FileNotFoundError, ValueError: as `read_jsonl` does.
    """
    needed = f"must hold JSON lines with {', '.join(layout.needed)}"
    if not path.is_file():
        raise FileNotFoundError(f"{path} {needed}, but there is no such file")
    merged: dict[str, dict[str, Any]] = {}
    known: dict[Hashable, tuple[str, str]] = {}
    for number, line in numbered_lines(path):
        try:
            fields = _parse(line, layout)
            if layout.locate is not None:
                _use_one_name(fields, layout.locate(path.parent, fields["subject"]), known)
            _merge(merged, fields, number, layout)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if not merged:
        raise ValueError(f"{path} {needed}, got an empty file")
    return merged


def _use_one_name(fields: dict[str, Any], file: Located, known: dict[Hashable, tuple[str, str]]) -> None:
    """Gives a line the id and the name that its file has in earlier lines; the default id is the path as written."""
    first_id = file.name if fields["id"] == fields["subject"] else fields["id"]
    fields["id"], fields["subject"] = known.setdefault(file.identity, (first_id, file.name))


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields numbered lines that are not empty. Splits only at newlines, since JSON may contain other separators.

    Raises:
      ValueError: if a line is not UTF-8; names file and line.
    """
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: must be UTF-8, got {error}") from None
            if line:
                yield number, line


def _parse(line: str, layout: Layout) -> dict[str, Any]:
    """Returns the fields of a line: id, subject, target, split (or None), references.

    Raises:
      ValueError: if the line is wrong; says what was needed and what came.
    """
    try:
        fields = parse(line)
    except ValueError as error:
        raise ValueError(f"needed a JSON object, got {line[:60]!r} ({error})") from None
    if not isinstance(fields, dict):
        raise ValueError(f"needed a JSON object with {', '.join(layout.needed)}, got {line[:60]!r}")
    _check_names(fields, layout)
    split = fields.get("split")
    if split is not None and split not in SPLITS:
        raise ValueError(f"split {describe_unknown(split, SPLITS)}")
    references = [] if fields.get("references") is None else fields["references"]
    if not isinstance(references, list):
        raise ValueError(f"references must be a list, got {references!r}")
    answer, subject = layout.answer, _text(fields[layout.subject], layout.subject)
    key = fields.get("id", subject)
    return {
        "id": _text(str(key) if type(key) is int else key, "id"),
        "subject": subject,
        "target": _target(fields, answer, answer),
        "split": split,
        "references": [_reference(reference, answer) for reference in references],
    }


def _check_names(fields: dict[str, Any], layout: Layout) -> None:
    """Raises a ValueError if a field is missing, or its name is close to a known one."""
    known = layout.needed + layout.optional
    unknown = [name for name in fields if name not in known]
    misspelt = {name: near[0] for name in unknown if (near := difflib.get_close_matches(name, known, 1, cutoff=0.8))}
    hint = "".join(f"; did you mean {near!r} instead of {name!r}?" for name, near in misspelt.items())
    if missing := [name for name in layout.needed if name not in fields]:
        raise ValueError(f"needed {', '.join(layout.needed)}, got {sorted(fields)} without {', '.join(missing)}{hint}")
    if misspelt:
        raise ValueError(f"unknown fields{hint}")


def _reference(value: Any, answer: str) -> Target:
    """Parses a reference: a text, or an object with the text and its mode."""
    if not isinstance(value, dict):
        return _target({answer: value}, answer, "references")
    _check_names(value, Layout((answer,), ("mode",), answer, answer))
    return _target(value, answer, f"{answer} of references")


def _target(fields: dict[str, Any], answer: str, name: str) -> Target:
    mode = fields.get("mode")
    return Target(_text(fields.get(answer), name), None if mode is None else _text(mode, "mode"))


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be a non-empty text, got {value!r}")
    return check_unicode(value, name)


def _merge(merged: dict[str, dict[str, Any]], fields: dict[str, Any], number: int, layout: Layout) -> None:
    """Adds a line to the record with the same id.

    Raises:
      ValueError: if the subject or the split differs; names the earlier line.
    """
    first = {"line": number, "subject": fields["subject"], "split": None, "targets": [], "references": []}
    record = merged.setdefault(fields["id"], first)
    if record["subject"] != fields["subject"]:
        name = layout.subject
        raise ValueError(
            f"id {fields['id']!r} has another {name} in line {record['line']}; lines with the same id must have the "
            f"same {name}"
        )
    if None not in (record["split"], fields["split"]) and record["split"] != fields["split"]:
        raise ValueError(
            f"id {fields['id']!r} has split {fields['split']!r} here but {record['split']!r} in an earlier line; lines "
            "with the same id must have the same split"
        )
    record["split"] = record["split"] or fields["split"]
    for key, new in (("targets", [fields["target"]]), ("references", fields["references"])):
        record[key] += [target for target in dict.fromkeys(new) if target not in record[key]]
