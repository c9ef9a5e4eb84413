"""Fuzz targets: files of text and of answers. What is read must be what a second, simple reader here finds."""

import csv
import io
import json
import struct
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from experiments.datasets.alma_files import read_alma
from experiments.datasets.definitions import read_definitions
from experiments.datasets.messages import read_catalogue
from mcl_jax.data.csv_rows import read_rows
from mcl_jax.data.jsonl import read_jsonl, write_jsonl
from mcl_jax.data.parallel_text import read_parallel
from mcl_jax.metrics.items import read_items
from tests.fuzz import drawn
from tests.fuzz.targets import HELD, READ, Fault, Target, reads

LINES = [
    {"id": "9", "source": "x y", "target": "z"},
    {"id": "7", "source": "a cat", "target": "un gato", "mode": "es", "split": "train"},
    {"id": 8, "source": "a dog", "target": "un perro", "references": ["un can", {"target": "a dog", "mode": "en"}]},
    {"id": "7", "source": "a cat", "target": "a cat", "mode": "en", "split": "train"},
]
ITEMS = [
    {"id": "17", "answers": ["Ein Haus.", "Das Haus."], "references": ["Das Haus."], "mode": "formal", "winner": 1},
    {"id": 18, "answers": ["a", ""], "references": ["b", "c"]},
]


@st.composite
def json_lines(draw: Any, seeds: list[dict[str, Any]], ids: int = 6) -> bytes:
    """A file of JSON lines that are right, nearly right or wrong, its bytes mutated now and then."""
    lines = []
    for _ in range(draw(st.integers(0, 5))):
        right = st.sampled_from(seeds).map(drawn.as_json)
        line = draw(st.one_of(right, right, right, right, drawn.json_files(seeds)))
        lines.append(line.replace(b"\n", b" "))
    content = draw(st.sampled_from([b"\n", b"\r\n", b"\n\n"])).join(lines)
    if draw(st.integers(0, 5)) == 0:
        content = draw(drawn.mutated([content or b"{"]))
    return draw(st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf", b"\n"])) + content


def _objects(content: bytes) -> list[dict[str, Any]]:
    """The objects of a file that was read without an error."""
    return [json.loads(line) for line in content.decode("utf-8-sig").split("\n") if line.strip()]


def check_jsonl(folder: Path, content: bytes) -> str:
    file = folder / "data.jsonl"
    file.write_bytes(content)
    outcome, corpus = reads(lambda: read_jsonl(file), file.name)
    if outcome == READ:
        given = {(str(one["id"]), one["source"], one["target"], one.get("mode")) for one in _objects(content)}
        held = {(r.id, r.source, target.text, target.mode) for r in corpus.records for target in r.targets}
        if given != held:
            raise Fault(f"other records than those of the lines: {held ^ given}")
        write_jsonl(folder / "again.jsonl", corpus)
        if read_jsonl(folder / "again.jsonl").records != corpus.records:
            raise Fault("written and read again, the records are others")
    return outcome


def check_items(folder: Path, content: bytes) -> str:
    file = folder / "items.jsonl"
    file.write_bytes(content)
    outcome, items = reads(lambda: read_items(file), file.name)
    if outcome == READ:
        given = [(one["id"], tuple(one["answers"]), tuple(one["references"])) for one in _objects(content)]
        if [(item.id, item.answers, item.references) for item in items] != given:
            raise Fault(f"other items than those of the lines: {items}")
    return outcome


# ----------------------------------------------------------------------------------------------------- Parallel text

SENTENCES = ["A house.", "Ein Haus.", "", " ", "\ufeff", "é\u2028x", "a\tb", "\x1c", "\0", "\x85"]


@st.composite
def sentences(draw: Any) -> bytes:
    """Lines of a file, its bytes mutated now and then."""
    lines = draw(st.lists(st.one_of(st.sampled_from(SENTENCES), st.text(max_size=5)), max_size=5))
    content = draw(st.sampled_from(["\n", "\n", "\r\n"])).join(lines).encode("utf-8", "replace")
    return draw(drawn.mutated([content])) if draw(st.integers(0, 3)) == 0 else content


def parallel() -> st.SearchStrategy:
    """Files by name."""
    names = ["train.en", "train.de", "train.de.0", "valid.en", "valid.de", "test.en", "test.de", "test.de.1"]
    same = st.lists(st.sampled_from(SENTENCES[:6]), max_size=5).map(lambda lines: "\n".join(lines).encode())
    pair = st.tuples(same, same).map(lambda two: {"train.en": two[0], "train.de": two[1]})
    others = st.dictionaries(st.sampled_from(names), sentences(), max_size=5)
    return st.tuples(pair, others).map(lambda two: two[0] | two[1])


def check_parallel(folder: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    outcome, corpus = reads(lambda: read_parallel(folder), str(folder), folder.name)
    if outcome == READ:
        for record in corpus.records:
            split, number = record.id.split("-")
            stem = {"validation": "valid"}.get(split, split)
            answers = [name for name in files if name.startswith(f"{stem}.de")]
            line = lambda name, number=int(number): (
                files[name].split(b"\n")[number - 1].decode().removeprefix("\ufeff" if number == 1 else "").strip()
            )
            if line(f"{stem}.en") != record.source or {line(name) for name in answers} - {""} != {
                target.text for target in record.references
            }:
                raise Fault(f"another record than that of its lines: {record}")
    return outcome


# --------------------------------------------------------------------------------------------------------------- CSV

ROWS = [
    b"audiocap_id,youtube_id,start_time,caption\n7,abc,30,A dog barks\n9,ghi,50,a man laughs\n",
    b'audiocap_id,youtube_id,start_time,caption\n7,abc,30,"A dog, barks\n8,def,40,"A ""dog"" barks"\n'
    b'10,jkl,60,"A dog\nand a man"\n',
    b"\xef\xbb\xbfcaption,audiocap_id,youtube_id,start_time,more\r\nA dog,7,abc,30,x\r\n",
]
COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
MARKS = {"audiocap_id": r"\d+", "start_time": r"\d+"}


def check_csv(folder: Path, content: bytes) -> str:
    file = folder / "train.csv"
    file.write_bytes(content)
    left_out: list[tuple[str, str]] = []
    outcome, rows = reads(lambda: read_rows(file, COLUMNS, MARKS, left_out), file.name)
    if outcome == READ:
        if any(not row["audiocap_id"].isdecimal() for row in rows):
            raise Fault(f"a row that does not begin with a number: {rows}")
        if not left_out and rows != _plain_rows(content):
            raise Fault(f"other rows than those of the csv module: {rows}")
    return outcome


def _plain_rows(content: bytes) -> list[dict[str, str]]:
    text = io.StringIO(content.decode("utf-8-sig"), newline="")
    header, *rows = [row for row in csv.reader(text) if row and any(field.strip() for field in row)]
    return [dict(zip(header, row, strict=True)) for row in rows]


# -------------------------------------------------------------------------------------- Files of the experiments' data


def catalogue(messages: dict[str, str]) -> bytes:
    """A catalogue of GNU gettext."""
    texts = [text.encode() for pair in zip(*messages.items(), strict=True) for text in pair]
    count, at, table, body = len(messages), 28 + 16 * len(messages), b"", b""
    for text in texts:
        table += struct.pack("<II", len(text), at + len(body))
        body += text + b"\0"
    return struct.pack("<7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, 0) + table + body


CATALOGUES = [catalogue({"": "Content-Type: text/plain; charset=UTF-8", "a cat": "eine Katze", "a dog": "ein Hund"})]


def check_catalogue(folder: Path, content: bytes) -> str:
    file = folder / "git.mo"
    file.write_bytes(content)
    outcome, messages = reads(lambda: read_catalogue(file), file.name)
    if outcome == READ and any(text.encode() not in content for pair in messages.items() for text in pair):
        raise Fault(f"texts that the file does not hold: {messages}")
    return outcome


CAT = b'00000000 05 n 01 cat 0 | a feline; "a cat sat"\n'
WORDNET = {
    "index.noun": b"  1 licence\ncat n 2 1 @ 2 1 00000000 %08d\ndog n 1 0 1 1 %08d\n" % (len(CAT), len(CAT)),
    "data.noun": CAT + b"%08d 05 n 01 dog 0 | a canine\n" % len(CAT),
    "index.verb": b"cat v 1 1 @ 1 1 00000000\n",
    "data.verb": b"00000000 29 v 01 cat 0 | to whip\n",
}


@st.composite
def wordnets(draw: Any) -> dict[str, bytes]:
    """The four files, one of them mutated."""
    name = draw(st.sampled_from(sorted(WORDNET)))
    return WORDNET | {name: draw(drawn.mutated([WORDNET[name]]))}


def check_wordnet(folder: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return reads(lambda: read_definitions(folder, folder), *WORDNET, "definitions", "record")[0]


PAIRS = [{"translation": {"de": "Ein Haus.", "en": "A house."}}, {"translation": {"de": "", "en": "x"}}]


def check_alma(folder: Path, files: tuple[bytes, bytes]) -> str:
    (folder / "deen").mkdir()
    (folder / "deen" / "train.de-en.json").write_bytes(files[0])
    (folder / "deen" / "test.en-de.extra_refs.txt").write_bytes(files[1])
    return reads(lambda: read_alma(folder, "en", "de"), "train.de-en.json", "extra_refs", folder.name)[0]


REFERENCES = [b"S-0\tA house.\nT-0\tEin Haus.\nR1-0\tDas Haus.\nR2-0\tHaus.\nS-1\tx\nR1-1\ty\n"]


# ------------------------------------------------------------------------------------------------ JSON there and back


def check_round_trip(folder: Path, value: Any) -> str:
    """Any value of JSON comes back as it was written, or is refused by name."""
    from mcl_jax.json_io import read_json, to_json, write_json

    file = folder / "results.json"
    try:
        write_json(file, to_json(value, "results"))
    except ValueError as error:
        if "results" not in str(error):
            raise Fault(f"the message must name the value, got {error!r}") from error
        return HELD
    outcome, again = reads(lambda: read_json(file), file.name)
    if outcome == READ and again != value:
        raise Fault(f"{value!r} came back as {again!r}")
    return outcome


TARGETS = [
    Target("json lines", lambda: json_lines(LINES), check_jsonl, 1.5),
    Target("answers to score", lambda: json_lines(ITEMS), check_items),
    Target("parallel text", parallel, check_parallel),
    Target("csv", lambda: drawn.mutated(ROWS), check_csv),
    Target("json there and back", drawn.values, check_round_trip, 0.5),
    Target("gettext catalogues", lambda: drawn.mutated(CATALOGUES), check_catalogue, 0.5),
    Target("wordnet", wordnets, check_wordnet, 0.5),
    Target("alma files", lambda: st.tuples(json_lines(PAIRS), drawn.mutated(REFERENCES)), check_alma, 0.5),
]
