"""Anyone's file, and what every corpus promises."""

import dataclasses
import json

import pytest

from experiments.datasets import load_corpus
from mcl_jax.data import Corpus, Record, Target, read_jsonl, split_of, write_jsonl


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def line(name="1", source="a cat", target="un gato", **fields):
    return {"id": name, "source": source, "target": target, **fields}


def test_lines_of_one_id_are_one_record(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        line("2", "a dog", "un perro", mode="es", split="test", references=["un can", {"target": "dog", "mode": "en"}]),
        line(1, target="el gato", split="train"),
        "",
        line("2", "a dog", "the dog", mode="en"),
        line("2", "a dog", "the dog", mode="en", comment="said before"),
    )
    corpus = read_jsonl(path)
    assert corpus.name == "a.jsonl" and corpus.modes == ("en", "es")
    assert corpus.split("train") == (Record("1", "a cat", (Target("el gato"),), split="train"),)
    (dog,) = corpus.split("test")
    assert dog.targets == (Target("un perro", "es"), Target("the dog", "en"))
    assert dog.further_references == (Target("un can"), Target("dog", "en"))
    assert dog.references == dog.targets + dog.further_references
    assert load_corpus(str(path)) == corpus


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], r"a\.jsonl, line 1: needed a JSON object, got '\{'"),
        ([line(), "[1]"], r"line 2: needed a JSON object with id, source, target, got '\[1\]'"),
        (
            [{"id": "1", "source": "s", "targets": "t"}],
            r"line 1: .* without target; did you mean 'target' instead of 'targets'",
        ),
        ([line(modes="es")], r"line 1: unknown fields; did you mean 'mode' instead of 'modes'\?"),
        ([line(target="  ")], r"line 1: target must be a non-empty text, got '  '"),
        ([line(source=None)], r"line 1: source must be a non-empty text"),
        ([line(name=1.5)], r"line 1: id must be a non-empty text"),
        ([line(name=True)], r"line 1: id must be a non-empty text"),
        ([line(mode=3)], r"line 1: mode must be a non-empty text"),
        ([line(split="valid")], r"line 1: split must be one of .*, got 'valid'; did you mean 'validation'\?"),
        ([line(references="un gato")], r"line 1: references must be a list, got 'un gato'"),
        ([line(references=[3])], r"line 1: references must be a non-empty text"),
        ([line(), "", line(source="a dog")], r"line 3: id '1' has another source in line 1"),
        ([line(split="test"), line(split="train")], r"line 2: id '1' has split 'train' here but 'test' in an earlier"),
        ([], r"a\.jsonl must hold JSON lines with id, source, target, got an empty file"),
    ],
)
def test_errors_name_file_line_and_what_was_needed(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        read_jsonl(write(tmp_path / "a.jsonl", *lines))


def test_no_such_file_and_no_such_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="must hold JSON lines .*, but there is no such file"):
        load_corpus(str(tmp_path / "b.jsonl"))
    with pytest.raises(
        ValueError, match=r"ends in \.jsonl, or a data set: it must be one of .*'language'; did you mean 'languages'"
    ):
        load_corpus("language", tmp_path)


def test_bytes_that_are_not_utf8_are_reported_with_their_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json.dumps(line()).encode() + b"\n\xff\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: must be UTF-8"):
        read_jsonl(tmp_path / "a.jsonl")


def test_a_byte_order_mark_and_unusual_separators_do_no_harm(tmp_path):
    text = json.dumps(line(target="one\u2028two"), ensure_ascii=False)
    (tmp_path / "a.jsonl").write_text("\ufeff" + text + "\r\n", encoding="utf-8")
    assert read_jsonl(tmp_path / "a.jsonl").records[0].targets == (Target("one\u2028two"),)


def test_written_corpus_reads_back_equal(tmp_path):
    records = (
        Record("2", "ä\n\u2028", (Target("a"), Target("b", "m")), (Target("c"), Target("d", "m")), "test"),
        Record("1", "x", (Target("y"),), split="validation"),
    )
    write_jsonl(tmp_path / "c.jsonl", Corpus("c.jsonl", records))
    assert read_jsonl(tmp_path / "c.jsonl") == Corpus("c.jsonl", records)


def test_lines_without_split_are_split_by_id(tmp_path):
    path = write(tmp_path / "a.jsonl", *(line(str(i), f"source {i}") for i in range(2000)))
    corpus = read_jsonl(path, validation=0.2, test=0.1)
    assert all(record.split == split_of(record.id, 0.2, 0.1) for record in corpus.records)
    counts = corpus.counts()
    assert sum(counts.values()) == 2000 and 340 < counts["validation"] < 460 and 140 < counts["test"] < 260


def test_split_never_changes():
    """Stored results depend on it, so these values stay."""
    splits = [split_of(f"verses Matt {chapter}") for chapter in range(1, 29)]
    held_out = {chapter: split for chapter, split in enumerate(splits, 1) if split != "train"}
    assert held_out == HELD_OUT_OF_MATTHEW
    with pytest.raises(ValueError, match="validation=0.5 and test=0.5"):
        split_of("a", 0.5, 0.5)


HELD_OUT_OF_MATTHEW = {12: "test", 25: "validation"}


def test_corpus_is_in_the_order_of_ids_and_refuses_doubles():
    a, b = (Record(name, "s", (Target("t"),)) for name in "ab")
    assert Corpus("c", (b, a)) == Corpus("c", (a, b)) and Corpus("c", (b, a)).records == (a, b)
    with pytest.raises(ValueError, match="corpus 'c': the id 'a' occurs twice"):
        Corpus("c", (a, b, a))
    with pytest.raises(ValueError, match=r"corpus 'c' has no records in 'test', only \{'train': 2"):
        Corpus("c", (a, b)).split("test")
    with pytest.raises(ValueError, match="split must be one of .* did you mean 'train'"):
        Corpus("c", (a, b)).split("trian")


def test_a_missing_validation_split_is_taken_from_training():
    """Which records are taken depends on their sources alone; stored results depend on it."""
    record = lambda number, split: Record(f"{number:03}", f"source {number // 2}", (Target("t"),), split=split)
    corpus = Corpus("c", tuple(record(n, "test" if n % 10 > 7 else "train") for n in range(300)))
    complete = corpus.with_validation()
    taken = [int(r.id) for r in complete.split("validation")]
    assert taken == TAKEN and complete.split("test") == corpus.split("test")
    sources = [{r.source for r in complete.split(name)} for name in ("train", "validation")]
    assert not sources[0] & sources[1]
    assert sum(complete.counts().values()) == 300 and complete.with_validation() is complete
    part = Corpus("p", tuple(r for r in corpus.records if int(r.id) in (*TAKEN[:4], *range(100, 200))))
    assert set(part.with_validation().split("validation")) <= set(complete.split("validation"))


TAKEN = [10, 11, 54, 55, 80, 81, 190, 191, 204, 205, 232, 233, 272, 273]


def test_a_missing_validation_split_is_never_empty_nor_all():
    records = [Record(str(n), f"s{n}", (Target("t"),), split="train") for n in range(7)]
    for number in range(2, 8):
        counts = Corpus("c", tuple(records[:number])).with_validation(1e-9).counts()
        assert counts["validation"] == 1 and counts["train"] == number - 1
    everything = Corpus("c", tuple(records)).with_validation(0.99999).counts()
    assert 0 < everything["train"] < 7
    one_source = Corpus("c", tuple(dataclasses.replace(record, source="s") for record in records))
    assert one_source.with_validation() is one_source
    with pytest.raises(ValueError, match=r"no records in 'validation', .*with_validation\(\)` moves some"):
        one_source.split("validation")
