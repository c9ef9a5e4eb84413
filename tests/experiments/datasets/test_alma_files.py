"""ALMA's JSON lines and the further references of newstest2014, in the layouts of the authors."""

import json

import pytest

from experiments.datasets import load_corpus
from experiments.datasets.alma_files import found_in, read_alma

PAIRS = [{"de": f"g{i}", "en": f"e{i}"} for i in range(13)]
REFERENCES = "S-0\ta b .\nT-0\tt0\nR1-0\tr0\nR2-0\tr1\nS-1\tc\nT-1\tt1\nR1-1\tr2\nR2-1\tr3\n"


def write(folder, name, pairs):
    (folder / "deen").mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"translation": pair}) + "\n" for pair in pairs)
    (folder / "deen" / name).write_text(lines, encoding="utf-8")
    return folder


def texts(corpus, split):
    return [
        (r.source, [t.text for t in r.targets], [t.text for t in r.further_references]) for r in corpus.split(split)
    ]


@pytest.mark.parametrize(("source", "target"), [("en", "de"), ("de", "en")])
def test_one_file_serves_both_directions(tmp_path, source, target):
    write(
        write(write(tmp_path, "train.de-en.json", PAIRS), "valid.de-en.json", PAIRS[:2]), "test.en-de.json", PAIRS[2:3]
    )
    corpus = load_corpus(tmp_path, source=source, target=target)
    assert texts(corpus, "validation") == [(pair[source], [pair[target]], []) for pair in PAIRS[:2]]
    if source == "en":
        assert texts(corpus, "train") == [(pair["en"], [pair["de"]], []) for pair in PAIRS]
        assert texts(corpus, "test") == [("e2", ["g2"], [])]
    else:  # the test file is for the other direction, so a hash takes some of the training pairs
        assert len(corpus.records) == len(PAIRS) + 2


def test_references_are_the_test_split_without_the_translation(tmp_path):
    write(tmp_path, "train.de-en.json", PAIRS)
    (tmp_path / "wmt-testset").mkdir()
    (tmp_path / "wmt-testset" / "wmt14-en-de.extra_refs.tok").write_text(REFERENCES)
    assert texts(load_corpus(tmp_path), "test") == [("a b .", ["r0"], ["r1"]), ("c", ["r2"], ["r3"])]


def test_other_folders_are_parallel_files(tmp_path):
    assert not found_in(tmp_path, "en", "de")
    with pytest.raises(FileNotFoundError, match=r"must hold train\.en"):
        load_corpus(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("S0\ta", r"line 9, must be like 'R1-0<TAB>text', got 'S0\\ta'"),
        ("S-2\ta", "a line S and lines R for each number, but 2 lacks one of them"),
        ("R1-3\ta", "a line S and lines R for each number, but 3 lacks one of them"),
    ],
)
def test_wrong_references(tmp_path, line, message):
    write(tmp_path, "train.de-en.json", PAIRS)
    (tmp_path / "a.extra_refs").write_text(REFERENCES + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_alma(tmp_path)


def test_wrong_lines(tmp_path):
    write(tmp_path, "train.de-en.json", [*PAIRS, {"de": "g", "fr": "f"}])
    with pytest.raises(ValueError, match=r'train.de-en.json, line 14, must be like \{"translation": \{"en"'):
        read_alma(tmp_path)
    write(tmp_path, "train.de-en.json", PAIRS)
    for name in ("a.extra_refs", "b.extra_refs.tok"):
        (tmp_path / name).write_text(REFERENCES)
    with pytest.raises(ValueError, match="must hold one file of further references, got "):
        read_alma(tmp_path)


def test_files_that_are_no_text_and_deep_brackets_are_named(tmp_path):
    write(tmp_path, "train.de-en.json", PAIRS)
    file = next(tmp_path.rglob("train.de-en.json"))
    for content, message in ((b"[" * 10**5, "line 1, must be like"), (b"\xff", "is not text in UTF-8")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"train.de-en.json.*{message}"):
            read_alma(tmp_path)
