"""Fuzz targets: tables of any layout. What is read must be what a second, simple reader here finds."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st
from pyarrow import parquet

from mcl_jax.data.tables import read_table
from tests.fuzz import drawn
from tests.fuzz.targets import READ, Fault, Target, reads
from tests.fuzz.text_files import json_lines

ROWS = [
    {"q": "Who?", "a": ["Ann", "Bob"], "kind": "name", "part": "train", "n": {"es": "Ana"}},
    {"q": "Where?", "a": ["here"], "kind": None, "part": "test", "n": None},
    {"q": "Who?", "a": ["Ed", ""], "kind": "name", "part": "train", "n": {"es": "Eva"}},
]
OPTIONS = [
    {"source": "q", "targets": "a"},
    {"source": "q", "targets": "a", "mode": "kind", "split": "part"},
    {"source": "q", "targets": ("a", "n.es")},
    {"source": "a", "targets": "q", "mode": "n"},
    {"source": "q", "targets": "a", "split": "part", "splits": {"train": "train", "validation": "test"}},
]
FLAT = [options for options in OPTIONS if "n" not in str(options["targets"]) and options.get("mode") != "n"]
CSV = [
    b'q,a,kind,part\nWho?,Ann,name,train\n"Wh""e\nre?",here,,test\n',
    b"\xef\xbb\xbfpart,a,q,kind\r\ntrain,x,y,z\r\n\r\ntest,u,y,w\r\n",
]


def _check(folder: Path, name: str, content: bytes, options: dict[str, Any], rows: Any) -> str:
    """Reads a file; `rows` reads its rows in another way, to compare with the texts of the corpus."""
    file = folder / name
    file.write_bytes(content)
    outcome, corpus = reads(lambda: read_table(file, **options), name, "splits")
    if outcome == READ and (options["source"], options["targets"]) == ("q", "a") and "splits" not in options:
        listed = lambda value: value if isinstance(value, list) else [value]
        given = {(row["q"], text) for row in rows(file) for text in listed(row["a"]) if text and text.strip()}
        if given != {(record.source, target.text) for record in corpus.records for target in record.targets}:
            raise Fault(f"other records than those of the rows: {corpus.records}")
    return outcome


def check_csv(folder: Path, value: tuple[bytes, dict[str, Any]]) -> str:
    rows = lambda file: csv.DictReader(io.StringIO(file.read_bytes().decode("utf-8-sig"), newline=""))
    return _check(folder, "a.csv", *value, rows)


def check_jsonl(folder: Path, value: tuple[bytes, dict[str, Any]]) -> str:
    lines = lambda file: file.read_bytes().decode("utf-8-sig").split("\n")
    return _check(folder, "a.jsonl", *value, lambda file: [json.loads(line) for line in lines(file) if line.strip()])


def check_parquet(folder: Path, value: tuple[bytes, dict[str, Any]]) -> str:
    return _check(folder, "a.parquet", *value, lambda file: parquet.read_table(file, columns=["q", "a"]).to_pylist())


def parquets() -> list[bytes]:
    """Files with and without compression and dictionaries."""
    made = []
    for options in ({}, {"compression": "none", "use_dictionary": False}, {"compression": "gzip", "row_group_size": 2}):
        file = io.BytesIO()
        parquet.write_table(pa.Table.from_pylist(ROWS), file, write_page_checksum=True, **options)
        made.append(file.getvalue())
    return made


def _with_options(
    contents: st.SearchStrategy[bytes], options: list[dict[str, Any]] = OPTIONS
) -> st.SearchStrategy[tuple[bytes, dict[str, Any]]]:
    return st.tuples(contents, st.sampled_from(options))


TARGETS = [
    Target("csv tables", lambda: _with_options(drawn.mutated(CSV), FLAT), check_csv, 0.5),
    Target("json tables", lambda: _with_options(json_lines(ROWS)), check_jsonl, 0.5),
    Target("parquet", lambda: _with_options(drawn.mutated(parquets(), head=10**6)), check_parquet),
]
