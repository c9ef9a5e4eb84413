"""Anyone's folder of pictures or clips with captions.jsonl."""

import numpy as np
import pytest
from tiny_media import PIXELS, ogg, png, sound, write, write_lines

from experiments.datasets import load_captions
from mcl_jax.data import Record, Target, read_captions, split_of


@pytest.fixture
def folder(tmp_path):
    for name in ("cats/7.jpg", "8.png", "9.PNG"):
        write(tmp_path / "mine" / name, png())
    return tmp_path / "mine"


def test_lines_of_one_file_or_one_id_are_one_record(folder, says):
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
    with says(r"left out 2, kept 1; no target in en, fr: .*9.PNG"):
        assert [record.id for record in load_captions(str(folder), modes=("fr", "en")).records] == ["cats/7.jpg"]


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


def test_broken_files_are_left_out_and_named(folder, says):
    write(folder / "8.png", png()[:-30])
    write_lines(folder / "captions.jsonl", *({"file": name, "caption": "it"} for name in ("8.png", "9.PNG")))
    with says(r"corpus 'mine': left out 1, kept 1; the image cannot be read.*: 8.png$"):
        corpus = read_captions(folder)
    assert [record.id for record in corpus.records] == ["9.PNG"] and corpus.left_out[0][0] == "8.png"
    write(folder / "9.PNG", b"")
    with pytest.raises(ValueError, match=r"'mine': it has no records; left out the image cannot be read.*8.png.*9.PNG"):
        read_captions(folder)


def other_names(folder):
    """Of 8.png; makes the links."""
    (folder / "link.png").symlink_to("8.png")
    (folder / "hard.png").hardlink_to(folder / "8.png")
    (folder / "felines").symlink_to("cats")
    (folder.parent / "elsewhere").symlink_to(folder)
    relative = ("./8.png", ".//8.png", "cats/../8.png", "cats/./..//8.png", "../mine/8.png", "felines/../8.png")
    absolute = (str(folder / "8.png"), str(folder / "cats/../8.png"), str(folder.parent / "elsewhere/8.png"))
    return (*relative, *absolute, "link.png", "hard.png", "cats/../link.png")


def test_one_file_under_many_names_is_one_record(folder, monkeypatch):
    names = other_names(folder)
    lines = [{"file": name, "caption": f"caption {n}"} for n, name in enumerate(names)]
    write_lines(folder / "captions.jsonl", {"file": "8.png", "caption": "a dog", "split": "test"}, *lines)
    for here, given in ((folder.parent, "mine"), (folder / "cats", ".."), (folder, folder), (folder, ".")):
        monkeypatch.chdir(here)
        corpus = read_captions(given)
        (record,) = corpus.records
        assert (record.id, record.media.name, record.split, corpus.name) == ("8.png", "8.png", "test", "mine")
        assert [target.text for target in record.targets] == ["a dog", *(line["caption"] for line in lines)]
        np.testing.assert_array_equal(record.media.read(), PIXELS)


def test_the_name_of_a_file_is_its_path_in_the_folder(folder):
    write_lines(
        folder / "captions.jsonl",
        {"file": "./cats/../cats//7.jpg", "caption": "a cat"},
        {"file": str(folder / "9.PNG"), "caption": "a cow", "id": str(folder / "9.PNG")},
        {"file": "./8.png", "caption": "a dog", "id": "the dog"},
    )
    records = read_captions(folder).records
    assert [(r.id, r.media.name) for r in records] == [
        ("9.PNG", "9.PNG"),
        ("cats/7.jpg", "cats/7.jpg"),
        ("the dog", "8.png"),
    ]
    assert records[1].split == split_of("cats/7.jpg")


def test_one_file_is_in_one_split(folder):
    for name in other_names(folder):
        train, test = ({"caption": "a dog", "split": split} for split in ("train", "test"))
        write_lines(folder / "captions.jsonl", train | {"file": "8.png"}, test | {"file": name})
        with pytest.raises(ValueError, match="captions.jsonl, line 2: id '8.png' has split 'test' here but 'train' in"):
            read_captions(folder)


def test_a_link_may_lead_out_of_the_folder_but_no_path(folder):
    write(folder.parent / "other/a.png", png())
    write(folder.parent / "mine, too/a.png", png())
    (folder / "out").symlink_to("../other")
    (folder / "b.png").symlink_to(folder.parent / "other/a.png")
    captions = [{"file": "out/a.png", "caption": "a"}, {"file": "b.png", "caption": "b"}]
    write_lines(folder / "captions.jsonl", *captions)
    (record,) = read_captions(folder).records
    assert record.id == "out/a.png" and len(record.targets) == 2
    outside = ("../other/a.png", str(folder.parent / "other/a.png"), "out/../other/a.png", "cats/../../mine, too/a.png")
    for name in (*outside, "..", "cats/../.."):
        write_lines(folder / "captions.jsonl", captions[0], {"file": name, "caption": "c"})
        with pytest.raises(
            ValueError, match=r"line 2: file '.*' is not in the folder; it must be a path inside '.*mine'$"
        ):
            read_captions(folder)


def test_names_that_no_file_can_have(folder):
    (folder / "round").symlink_to("round")
    for name in ("cats", ".", "a" * 5000 + ".png", "a\0.png", "round/8.png", "cats/7.jpg/8.png"):
        write_lines(folder / "captions.jsonl", {"file": "8.png", "caption": "a"}, {"file": name, "caption": "b"})
        with pytest.raises(ValueError, match=r"captions.jsonl, line 2: file '.*' is not in the folder"):
            read_captions(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"captions\.jsonl, line 2: needed a JSON object, got '\{'"),
        ({"file": "8.png"}, r"line 2: needed file, caption, got \['file'\] without caption"),
        ({"file": "8.png", "captions": "a"}, r"without caption; did you mean 'caption' instead of 'captions'\?"),
        ({"file": "8.png", "caption": " "}, r"line 2: caption must be a non-empty text"),
        ({"file": "8.png", "caption": "a", "id": None}, r"line 2: id must be a non-empty text"),
        ({"file": "8.png", "caption": "a", "split": "tst"}, r"line 2: split must be one of .* did you mean 'test'\?"),
        ({"file": "8.pgn", "caption": "a"}, r"line 2: file '8.pgn' is not in the folder; did you mean '8.png'\?"),
        (
            {"file": "notes.txt", "caption": "a"},
            r"line 2: file 'notes.txt' must be an image or an audio clip",
        ),
        (
            {"file": "a.ogg", "caption": "a"},
            r"line 2: all files must be of one kind, but 'a.ogg' is a clip and 'cats/7.jpg' is a picture",
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
    with pytest.raises(
        FileNotFoundError, match=r"captions.jsonl must hold JSON lines with file, caption, but there is no"
    ):
        load_captions(folder)
    with pytest.raises(ValueError, match=r"captions.jsonl, or a data set: it must be one of .*'stamp/pictures'; did"):
        load_captions("stamp/pictures", tmp_path)
    write(folder / "captions.jsonl", "")
    with pytest.raises(ValueError, match=r"captions.jsonl must hold JSON lines with file, caption, got an empty file"):
        load_captions(folder)
