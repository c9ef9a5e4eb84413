"""TextCaps, AudioCaps and Clotho from small files in the layout in which they are published."""

import pytest
from published_files import IMAGES, write_audiocaps, write_clotho, write_textcaps
from tiny_media import png, sound, write

from experiments.datasets import load_captions
from experiments.datasets.audiocaps import read_audiocaps
from experiments.datasets.clotho import read_clotho
from experiments.datasets.textcaps import read_textcaps
from mcl_jax.data import Target


def test_textcaps(tmp_path, says):
    write_textcaps(tmp_path / "files")
    (tmp_path / f"files/train_images/{5:016x}.jpg").unlink()
    write(tmp_path / f"files/train_images/{6:016x}.jpg", png()[:50])
    with says(r"'textcaps/english': left out 2, kept 101; .*no such file: train_images/0+5"):
        corpus = load_captions("textcaps/english", tmp_path, tmp_path / "files")
    counts = corpus.counts()
    assert counts["test"] == 3 and counts["train"] + counts["validation"] == IMAGES - 2 and 0 < counts["validation"] < 8
    record = corpus.split("test")[1]
    assert record.id == f"{IMAGES + 1:016x}" and record.media.read().shape == (5, 7, 3)
    assert record.targets == tuple(Target(f"A sign {IMAGES + 1} says {part}.") for part in range(3))


def test_textcaps_half_in_french(tmp_path):
    write_textcaps(tmp_path / "files")
    corpus = load_captions("textcaps/bilingual", tmp_path, tmp_path / "files")
    assert corpus.modes == ("en", "fr")
    record = corpus.split("test")[0]
    assert record.targets == (
        Target(f"A sign {IMAGES} says 0.", "en"),
        Target(f"Panneau {3 * IMAGES + 1}.", "fr"),
        Target(f"A sign {IMAGES} says 2.", "en"),
    )


def test_textcaps_files_that_lack_or_have_another_layout(tmp_path):
    write_textcaps(tmp_path)
    (tmp_path / "TextCaps_0.1_val_fr.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"(?s)no TextCaps_0.1_val_fr.json in .*French texts by caption_id"):
        read_textcaps(tmp_path, bilingual=True)
    for content in ("[]", '{"data": [{"image_id": "1"}]}'):
        write(tmp_path / "TextCaps_0.1_val.json", content)
        with pytest.raises(ValueError, match=r"TextCaps_0.1_val.json must be .*caption_str.*, got another layout"):
            read_textcaps(tmp_path)


def test_audiocaps(tmp_path, says):
    write_audiocaps(tmp_path / "files")
    write(tmp_path / "files/val/valef.ogg", b"broken")
    with says(r"left out 7, kept 8; .*a blank caption: trainij_0, valij_0, testij_0; ") as caught:
        corpus = load_captions("audiocaps", tmp_path, tmp_path / "files")
    assert "no clip in train/: traingh_90; " in caught[0] and "read: " in caught[0]
    assert [record.id for record in corpus.split("validation")] == ["val-a_B_0", "valcd_30"]
    record = corpus.split("test")[1]
    assert record.id == "testcd_30" and record.targets == (Target("testcd, then 0"), Target("testcd, then 1"))
    assert record.media.name == "11.wav" and len(record.media.read()) == 4800


def test_clotho(tmp_path, says):
    write_clotho(tmp_path / "files")
    write(tmp_path / "files/evaluation/rain 2.wav", sound()[:-1000])
    with says(r"left out 1, kept 8; the clip is cut off after .* bytes: evaluation/rain 2.wav"):
        corpus = load_captions("clotho", tmp_path, tmp_path / "files")
    assert corpus.counts() == {"train": 3, "validation": 3, "test": 2}
    record = corpus.split("train")[1]
    assert record.id == "development/rain 1.wav" and len(record.media.read()) == 4800
    assert record.targets == tuple(Target(f"Rain 1, {part}") for part in (1, 2, 3, 4))  # what is said twice counts once


def test_csv_files_that_lack_or_have_other_columns(tmp_path):
    for read, name in ((read_audiocaps, "train.csv"), (read_clotho, "clotho_captions_development.csv")):
        with pytest.raises(FileNotFoundError, match=rf"(?s)no {name} in .* needs these files"):
            read(tmp_path)
        write(tmp_path / name, "file_name;caption_1\n")
        with pytest.raises(ValueError, match=rf"{name} must have the columns .*, got \['file_name;caption_1'\]"):
            read(tmp_path)
    write(tmp_path / "train.csv", b"audiocap_id,youtube_id,start_time,caption\n1,a,0,caf\xe9\n")
    with pytest.raises(ValueError, match=r"train.csv must be UTF-8"):
        read_audiocaps(tmp_path)


@pytest.mark.parametrize("name", ["textcaps/english", "audiocaps", "clotho"])
def test_without_a_folder_one_is_told_what_to_download(tmp_path, name):
    (tmp_path / "empty").mkdir()
    for folder in (None, tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=rf"(?s){name} needs a folder .* needs these files in one folder"):
            load_captions(name, tmp_path, folder)


def test_a_file_of_two_records_is_of_none(tmp_path):
    """Which of two clips a file is that has the name of their video, nobody knows."""
    write_audiocaps(tmp_path)
    for published, name in (("train", "traincd"), ("val", "gh")):
        write(tmp_path / published / f"{name}.flac", sound(kind="FLAC", subtype="PCM_16"))
    (tmp_path / "test/testgh.wav").hardlink_to(tmp_path / "train/train-a_B_0.wav")
    with open(tmp_path / "train.csv", "a") as file:
        file.write("77,traincd,700,another part\n")
    (tmp_path / "train/11.wav").unlink()
    corpus = read_audiocaps(tmp_path)
    assert {"traincd_30", "traincd_700", "train-a_B_0", "testgh_90"}.isdisjoint(r.id for r in corpus.records)
    assert {pair for pair in corpus.left_out if pair[1].startswith("one file")} == {
        ("traincd_30", "one file with traincd_700"),
        ("traincd_700", "one file with traincd_30"),
        ("train-a_B_0", "one file with testgh_90"),
        ("testgh_90", "one file with train-a_B_0"),
    }


def test_paths_in_published_files(tmp_path):
    write_clotho(tmp_path)
    path = tmp_path / "clotho_captions_evaluation.csv"
    text = path.read_text().replace("rain 0.wav", "../development/rain 0.wav").replace("rain 1.wav", "../../rain.wav")
    path.write_text(text.replace("rain 2.wav", "./rain 2.wav"))
    corpus = read_clotho(tmp_path)
    assert [record.id for record in corpus.split("test")] == ["evaluation/rain 2.wav"]
    assert "development/rain 0.wav" not in [record.id for record in corpus.records]
    assert ("evaluation/../../rain.wav", "a path outside the folder") in corpus.left_out
