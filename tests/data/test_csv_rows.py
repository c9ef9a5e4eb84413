"""Broken rows of CSV files: named by their line, and no half of a caption is kept."""

import pytest
from published_files import write_audiocaps, write_clotho
from tiny_media import write

from experiments.datasets.audiocaps import read_audiocaps
from experiments.datasets.clotho import read_clotho

HEADER = "audiocap_id,youtube_id,start_time,caption\n"
FIRST, LAST = "10,train-a_B,0,A dog\n", "11,traincd,30,A cat\n"  # clips that `write_audiocaps` writes
MIDDLE = "13,trainef,60,"


@pytest.fixture
def read(tmp_path):
    """read(text of train.csv) -> captions of the training split by clip, and what is left out of train.csv."""
    write_audiocaps(tmp_path)

    def captions(text):
        write(tmp_path / "train.csv", text)
        corpus = read_audiocaps(tmp_path)
        left_out = dict(pair for pair in corpus.left_out if pair[0].startswith("train.csv"))
        return {record.id: record.targets[0].text for record in corpus.split("train")}, left_out

    return captions


CUT, OPEN = "a row that continues on the next line without quotes", "unmatched quotes"
WHOLE = {"train-a_B_0": "A dog", "traincd_30": "A cat"}


@pytest.mark.parametrize(
    ("rows", "left_out"),
    [
        (FIRST + MIDDLE + "A dog barks, a man laughs\n" + LAST, {3: "needed 4 fields, got 5"}),
        (FIRST + "13,trainef,60\n" + LAST, {3: "needed 4 fields, got 3"}),
        (FIRST + MIDDLE + "A dog barks\nand a man laughs\n" + LAST, {3: CUT, 4: "needed 4 fields, got 1"}),
        (
            FIRST + MIDDLE + "A dog barks\nand a man\nlaughs\n" + LAST,
            {3: CUT, 4: "needed 4 fields, got 1", 5: "needed 4 fields, got 1"},
        ),
        (FIRST + MIDDLE + "A dog barks\n7, a man laughs\n" + LAST, {3: CUT, 4: "needed 4 fields, got 2"}),
        (
            FIRST + MIDDLE + "A dog barks\n\nand a man, a cat, a horse, a mule\n" + LAST,
            {3: CUT, 5: "audiocap_id is 'and a man', which is not valid"},
        ),
        (FIRST + MIDDLE + '"A dog barks\n' + LAST, {3: OPEN}),
        (FIRST + LAST + MIDDLE + '"A dog barks', {4: OPEN}),
        (FIRST + MIDDLE + '"A dog" barks\n' + LAST, {3: OPEN}),
        (FIRST + MIDDLE + '"A dog barks\n14,traingh,90,"A cat, too"\n' + LAST, {3: OPEN}),
        (FIRST + "13,trainef,soon,A dog\n" + LAST, {3: "start_time is 'soon', which is not valid"}),
    ],
)
def test_a_broken_row_is_left_out_by_its_line(read, rows, left_out):
    captions, lines = read(HEADER + rows)
    assert captions == WHOLE
    assert lines == {f"train.csv, line {number}": reason for number, reason in left_out.items()}


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_what_is_right_stays(read, newline):
    rows = FIRST + MIDDLE + '"A dog ""barks"", a man\nlaughs, and\n\nis silent"\n' + LAST
    captions, lines = read((HEADER + "\n" + rows).replace("\n", newline))
    assert captions == WHOLE | {"trainef_60": 'A dog "barks", a man laughs, and is silent'} and lines == {}
    assert read("\ufeff" + HEADER + FIRST)[0] == {"train-a_B_0": "A dog"}


def test_rows_of_clotho_broken_in_the_middle(tmp_path):
    write_clotho(tmp_path)
    path = tmp_path / "clotho_captions_development.csv"
    lines = path.read_text().splitlines()
    lines[2:3] = ['rain 1.wav,"Rain, a",Rain b,Rain', "c,Rain d,Rain e"]
    path.write_text("\n".join(lines) + "\n")
    corpus = read_clotho(tmp_path)
    assert [record.id for record in corpus.split("train")] == ["development/rain 0.wav", "development/rain 2.wav"]
    assert [name for name, _ in corpus.left_out] == [f"{path.name}, line 3", f"{path.name}, line 4"]


def test_headers_and_bytes_are_refused_by_name(read):
    for text, found in ((HEADER.replace("\n", ",caption\n") + FIRST, "'caption', 'caption'"), ("", ""), ('"', "")):
        with pytest.raises(ValueError, match=rf"train\.csv must have the columns .*, each once, got \[.*{found}\]"):
            read(text)
    with pytest.raises(ValueError, match=r"train\.csv must be UTF-8, .* in line 3"):
        read((HEADER + FIRST).encode() + MIDDLE.encode() + b"caf\xe9\n")


def test_a_file_of_broken_rows_alone_is_refused(read):
    with pytest.raises(ValueError, match=r"train\.csv has no usable captions"):
        read(HEADER + MIDDLE + "a, b\n" + MIDDLE + "c, d\n")
