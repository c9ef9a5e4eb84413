"""Tables of any layout: the same rows from every kind of file, splits, and errors that name file, line and column."""

import json
import sys

import pyarrow as pa
import pytest
from pyarrow import parquet

from mcl_jax.data import Corpus, Record, Target, read_table
from mcl_jax.data.columns import Columns, value_in
from mcl_jax.extras import MissingExtra

ROWS = [
    {"q": "Who?", "a": ["Ann", "", "Bob"], "kind": "name", "part": "train", "n": {"es": "Ana", "fr": None}},
    {"q": "Where?", "a": ["here"], "kind": None, "part": "dev", "n": {"es": "aquí", "fr": "ici"}},
    {"q": "Who?", "a": ["Bob", "Ed"], "kind": "name", "part": "train", "n": {"es": "Ana", "fr": "Anne"}},
]
QA = {"source": "q", "targets": "a"}


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(path, rows=ROWS):
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_rows_with_one_source_are_one_record(tmp_path, ending):
    corpus = read_table(table(tmp_path / f"a.{ending}"), **QA, mode="kind")
    assert corpus.name == f"a.{ending}" and corpus.counts() == {"train": 2, "validation": 0, "test": 0}
    who, where = corpus.records
    assert who == Record("000000000", "Who?", tuple(Target(name, "name") for name in ("Ann", "Bob", "Ed")))
    assert where.targets == (Target("here"),)
    fields = read_table(tmp_path / f"a.{ending}", source="q", targets=("n.es", "n.fr")).records
    assert [[(t.mode, t.text) for t in record.targets] for record in fields] == [
        [("n.es", "Ana"), ("n.fr", "Anne")],
        [("n.es", "aquí"), ("n.fr", "ici")],
    ]


@pytest.mark.parametrize(("ending", "mark", "newline"), [("csv", ",", "\n"), ("tsv", "\t", "\r\n")])
def test_columns_of_targets_name_the_modes(tmp_path, ending, mark, newline):
    lines = ["en,fr,es,part", '"a ""cat""\ntoo",un chat,un gato,train', "", "a dog,,un perro,test"]
    path = write(tmp_path / f"a.{ending}", "\ufeff" + newline.join(lines).replace(",", mark))
    cat, dog = read_table(path, source="en", targets=("fr", "es"), split="part").records
    assert cat.source.split() == ["a", '"cat"', "too"] and cat.split == "train" and dog.split == "test"
    assert cat.targets == (Target("un chat", "fr"), Target("un gato", "es")) and dog.targets == (
        Target("un perro", "es"),
    )


def test_a_mode_for_each_target_or_a_number(tmp_path):
    rows = [{"q": "x", "a": ["1", "", "3"], "m": ["p", "q", "r"]}, {"q": "y", "a": "4", "m": 7}]
    x, y = read_table(table(tmp_path / "a.jsonl", rows), **QA, mode="m").records
    assert x.targets == (Target("1", "p"), Target("3", "r")) and y.targets == (Target("4", "7"),)


def test_names_of_splits(tmp_path, says):
    path = table(tmp_path / "a.parquet")
    corpus = read_table(path, **QA, split="part", splits={"train": "train", "test": "dev"})
    assert corpus.counts() == {"train": 1, "validation": 0, "test": 1}
    assert read_table(path, **QA, split="part", splits={"validation": "dev"}).counts()["train"] == 0
    both = [ROWS[0], ROWS[0] | {"part": "dev", "a": ["Cy"]}]
    with says("1 of 1 validation sources are in the training split, too"):
        shared = read_table(
            table(tmp_path / "b.jsonl", both), **QA, split="part", splits={"train": "train", "validation": "dev"}
        )
    assert [record.split for record in shared.records] == ["train", "validation"]


def test_a_folder_has_a_file_for_each_split(tmp_path):
    for number in range(2):
        table(tmp_path / f"train-0000{number}-of-00002.parquet", ROWS[:1])
    table(tmp_path / "test.jsonl", ROWS[2:])
    write(tmp_path / "training.csv", "q,a\n")
    corpus = read_table(tmp_path, **QA)
    assert corpus.counts() == {"train": 1, "validation": 0, "test": 1}
    assert corpus.left_out == (("training.csv", "its name begins with no split"),)
    with pytest.raises(ValueError, match=r"must hold a table whose name begins with dev, got \['test.jsonl', .*splits"):
        read_table(tmp_path, **QA, splits={"train": "train", "validation": "dev"})
    table(tmp_path / "train-dev.jsonl", ROWS[1:2])
    chosen = read_table(tmp_path, **QA, splits={"train": "train", "validation": "train-dev", "test": "test.jsonl"})
    assert [record.source for record in chosen.split("validation")] == ["Where?"]
    assert chosen.counts() == {"train": 1, "validation": 1, "test": 1}
    with pytest.raises(ValueError, match="so give no column split"):
        read_table(tmp_path, **QA, split="part")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"q": 3, "a": "x"}], {}, r"a\.jsonl, line 1: column 'q' must hold a text that is not empty, got 3"),
        (
            [ROWS[0], {"q": "x", "a": ["", None]}],
            {},
            r"a\.jsonl, line 2: the row has no answer: 'a' must",
        ),
        ([{"q": "x", "a": {"b": 1}}], {}, r"line 1: column 'a' must hold a text or a list of texts, got \{'b': 1\}"),
        ([{"q": "x", "a": ["b", 5]}], {}, r"line 1: column 'a' must hold a text or a list of texts, got \[.*5\]"),
        ([{"q": "x", "a": "\ud83d"}], {}, r"line 1: column 'a' must be Unicode"),
        (
            ROWS,
            {"source": "qq"},
            r"line 1: the column of the source must be one of \['q', .*\], got 'qq'; did you",
        ),
        (ROWS, {"targets": "aa"}, r"line 1: a column of targets must be one of .* got 'aa'; did you mean 'a'\?"),
        (ROWS, {"targets": ("a", "b")}, r"a\.jsonl: a column must be one of \['q', 'a', .*\], got 'b'"),
        (ROWS, {"mode": "knd"}, r"a\.jsonl: a column must be one of .* got 'knd'; did you mean 'kind'\?"),
        ([{"q": "x", "a": ["b", "c"], "m": ["d"]}], {"mode": "m"}, r"one for each of 2 targets, got 1"),
        ([{"q": "x", "a": "b", "m": 1.5}], {"mode": "m"}, "column 'm' must hold the name of a mode, got 1.5"),
        (ROWS, {"split": "part"}, r"line 2: column 'part' must hold the name of a split, .* got 'dev'; for other"),
        (
            ROWS,
            {"split": "part", "splits": {"test": "tst"}},
            r"a\.jsonl: the name of a split must be one of \['dev', 'train'\], got 'tst'",
        ),
        (ROWS, {"splits": {"tst": "dev"}}, r"splits: a split must be one of .* got 'tst'; did you mean 'test'"),
        (ROWS, {"splits": {"test": "dev", "train": "dev"}}, "splits: the names of splits must differ"),
        (ROWS, {"splits": {"test": "dev"}}, "the names of splits need a column split, or a folder"),
        (ROWS, {"mode": "q"}, "source, targets, mode and split must be different columns, got source='q'"),
        (ROWS, {"targets": ()}, "must be different columns"),
        ([], {}, r"a\.jsonl must hold rows, got an empty table"),
    ],
)
def test_errors_name_file_line_and_column(tmp_path, rows, options, message):
    with pytest.raises(ValueError, match=message):
        read_table(table(tmp_path / "a.jsonl", rows), **QA | options)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", r"a\.csv must hold rows, got an empty table"),
        ("a.csv", "q,a\n", r"a\.csv must hold rows, got an empty table"),
        ("a.csv", "q,b\n1,2\n", r"a\.csv: a column must be one of \['q', 'b'\], got 'a'"),
        ("a.csv", "q,a,a\n1,2,3\n", r"a\.csv: the names of its columns must differ"),
        ("a.csv", 'q,a\n"x\ny",z\n1,2,3\n', r"a\.csv, line 4: needed 2 cells, got 3"),
        ("a.csv", 'q,a\n1,2\n"3,4\n', r"a\.csv, line 3: is no row of a table"),
        ("a.csv", b"q,a\n1,\xff\n", r"a\.csv must be UTF-8, got .* in line 2"),
        ("a.jsonl", "[]\n", r"a\.jsonl, line 1: needed a JSON object, got '\[\]'"),
        ("a.parquet", b"PAR1 no PAR1", r"a\.parquet is no sound Parquet file"),
        ("a.txt", "", r"a\.txt must be a table, a file that ends in \.parquet, \.csv"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path / name, content), **QA)


def test_no_file_no_tables_and_no_pyarrow(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"b\.csv must be a table .*no such file or folder"):
        read_table(tmp_path / "b.csv", **QA)
    with pytest.raises(ValueError, match=r"must hold tables .* named after their splits, got none"):
        read_table(tmp_path, **QA)
    path = table(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"pip install 'mcl_jax\[parquet\]'"):
        read_table(path, **QA)


def test_fields_inside_columns():
    row = {"a.b": 1, "a": {"b": 2, "c": {"d": 3}}, "e": [{"f": 4}, {"f": 5}], "g": None}
    assert [value_in(row, name) for name in ("a.b", "a.c.d", "e.f", "g.h")] == [1, 3, [4, 5], None]
    Columns("a.c.d", ("e.f",)).check(list(row))


def test_a_split_that_is_missing_is_whole_sources_of_training():
    records = [Record(f"{n:03}", f"source {n // 2}", (Target("t"),)) for n in range(300)]
    corpus = Corpus("c", tuple(records))
    complete = corpus.with_test().with_validation()
    sources = {split: {r.source for r in complete.split(split)} for split in ("train", "validation", "test")}
    assert sum(map(len, sources.values())) == 150 == len(set.union(*sources.values()))
    assert 2 < len(sources["test"]) < 20 and 2 < len(sources["validation"]) < 20
    assert complete == corpus.with_test().with_validation()
    assert corpus.with_test(seed=3).split("test") != complete.split("test")
    assert complete.with_test(0.5) is complete
