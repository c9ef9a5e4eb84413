"""Anyone's folder of pictures or clips with captions.jsonl."""

import numpy as np
import pytest
from tiny_media import PIXELS, ogg, png, sound, write, write_lines

from mcl_jax.data import Record, Target, load_captions, read_captions, split_of


@pytest.fixture
def folder(tmp_path):
    for name in ("cats/7.jpg", "8.png", "9.PNG"):
        write(tmp_path / "mine" / name, png())
    return tmp_path / "mine"


def test_lines_of_one_file_or_one_id_are_one_record(folder):
    write_lines(
        folder / "captions.jsonl",
        {"file": "cats/7.jpg", "caption": "un chat", "mode": "fr", "split": "train"},
        {"id": 8, "file": "8.png", "caption": "a dog", "references": ["hound", {"caption": "un chien", "mode": "fr"}]},
        {"file": "cats/7.jpg", "caption": "a cat", "mode": "en"},
        {"id": "8", "file": "8.png", "caption": "the dog", "split": "test"},
        {"id": 80, "file": "8.png", "caption": "a puppy", "note": "another id of one file"},
        {"file": "9.PNG", "caption": "a cow"},
    )
    corpus = read_captions(folder)
    dog, cow, cat = corpus.records
    assert cat == Record("cats/7.jpg", "", (Target("un chat", "fr"), Target("a cat", "en")), media=cat.media)
    assert dog.id == "8" and dog.split == "test"
    assert dog.targets == (Target("a dog"), Target("the dog"), Target("a puppy"))
    assert dog.further_references == (Target("hound"), Target("un chien", "fr"))
    assert cow.split == split_of("9.PNG") and cow.media.name == "9.PNG"
    np.testing.assert_array_equal(cat.media.read(), PIXELS)
    assert corpus.name == "mine" and corpus.modes == ("en", "fr") and corpus.left_out == ()
    assert load_captions(folder) == corpus
    with pytest.warns(UserWarning, match=r"left out 2, kept 1; no target in en, fr: .*9.PNG") as warned:
        assert [record.id for record in load_captions(str(folder), modes=("fr", "en")).records] == ["cats/7.jpg"]
    assert len(warned) == 1


def test_families_are_those_of_the_stamps_alone(tmp_path):
    write(tmp_path / "mine" / "symbols/stop.png", png())
    write_lines(tmp_path / "mine" / "captions.jsonl", {"file": "symbols/stop.png", "caption": "a sign"})
    (record,) = load_captions(tmp_path / "mine", families=False).records
    assert record.id == "symbols/stop.png"


def test_clips(folder):
    write(folder / "a.ogg", ogg())
    write(folder / "b.wav", sound())
    write_lines(folder / "captions.jsonl", *({"file": name, "caption": "a tone"} for name in ("a.ogg", "b.wav")))
    assert [len(record.media.read()) for record in read_captions(folder).records] == [4800, 4800]


def test_broken_files_are_left_out_and_named(folder):
    write(folder / "8.png", png()[:-30])
    write_lines(folder / "captions.jsonl", *({"file": name, "caption": "it"} for name in ("8.png", "9.PNG")))
    with pytest.warns(UserWarning, match=r"corpus 'mine': left out 1, kept 1; not a picture .*: 8.png$"):
        corpus = read_captions(folder)
    assert [record.id for record in corpus.records] == ["9.PNG"] and corpus.left_out[0][0] == "8.png"
    write(folder / "9.PNG", b"")
    with pytest.raises(ValueError, match=r"corpus 'mine': it has no records; left out not a picture .*8.png.*9.PNG"):
        read_captions(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"captions\.jsonl, line 2: needed a JSON object, got '\{'"),
        ({"file": "8.png"}, r"line 2: needed file, caption, got \['file'\] without caption"),
        ({"file": "8.png", "captions": "a"}, r"without caption; did you mean 'caption' by 'captions'\?"),
        ({"file": "8.png", "caption": " "}, r"line 2: caption must be a text that is not empty"),
        ({"file": "8.png", "caption": "a", "id": None}, r"line 2: id must be a text"),
        ({"file": "8.png", "caption": "a", "split": "tst"}, r"line 2: split must be one of .* did you mean 'test'\?"),
        ({"file": "8.pgn", "caption": "a"}, r"line 2: file '8.pgn' is not in the folder; did you mean '8.png'\?"),
        ({"file": "notes.txt", "caption": "a"}, r"line 2: file 'notes.txt' is neither a picture nor a clip; needed"),
        (
            {"file": "a.ogg", "caption": "a"},
            r"line 2: file 'a.ogg' is a clip, 'cats/7.jpg' is a picture; needed",
        ),
        ({"file": "8.png", "caption": "a", "id": "cats/7.jpg"}, r"line 2: id 'cats/7.jpg' has another file in line 1"),
        ({"file": "cats/7.jpg", "caption": "a", "split": "test"}, r"line 2: id 'cats/7.jpg' has split 'test' here"),
    ],
)
def test_errors_name_file_line_and_what_was_needed(folder, line, message):
    write(folder / "notes.txt", "no picture")
    write(folder / "a.ogg", ogg())
    first = {"file": "cats/7.jpg", "caption": "un chat", "split": "train"}
    write_lines(folder / "captions.jsonl", first, *([line] if isinstance(line, dict) else []))
    if isinstance(line, str):
        with open(folder / "captions.jsonl", "a") as file:
            file.write(line)
    with pytest.raises(ValueError, match=message):
        read_captions(folder)


def test_no_such_folder_or_name(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"captions.jsonl': no such file; needed JSON lines with file, caption"):
        load_captions(folder)
    with pytest.raises(ValueError, match=r"a folder with captions.jsonl, or it must be one of .*'stamp/pictures'; did"):
        load_captions("stamp/pictures", tmp_path)
    write(folder / "captions.jsonl", "")
    with pytest.raises(ValueError, match=r"captions.jsonl: needed JSON lines with file, caption, got an empty file"):
        load_captions(folder)
