"""Stamps: a small folder with the traps of the real one; the real one where the package can be had."""

from collections import Counter

import fake_stamps
import numpy as np
import pytest
from tiny_media import PIXELS, write

from experiments.datasets import (
    LANGUAGES,
    Stamps,
    caption_language,
    in_family,
    load_captions,
    read_stamps,
    spoken_language,
    without_families,
)
from experiments.datasets.stamps import fetch_stamps, of_languages
from mcl_jax.data import Target, split_of


@pytest.fixture
def folder(tmp_path):
    fake_stamps.write_stamps(tmp_path / "stamps")
    return tmp_path / "stamps"


def test_pictures_have_captions_by_language(folder):
    corpus = read_stamps(folder, "pictures")
    assert corpus.name == "stamps/pictures" and corpus.modes == ("en", "es", "fr")
    assert len(corpus.records) == 40 + 52 and corpus.left_out == (("people/drawn", "no PNG, only a drawing (SVG)"),)
    beast = corpus.records[7]
    assert beast.id == "animals/beast07" and beast.source == "" and beast.media.name == "animals/beast07.png"
    assert beast.targets == (
        Target("A beast 7.", "en"),
        Target("Une bête 7.", "fr"),
        Target("Una bestia 7.", "es"),
    )
    np.testing.assert_array_equal(beast.media.read(), PIXELS)


def test_what_reads_alike_is_in_one_split(folder):
    records = read_stamps(folder, "pictures").records + read_stamps(folder, "sounds").records
    splits = {}
    for record in records:
        splits.setdefault(record.targets[0].text.casefold(), set()).add(record.split)
    assert all(len(names) == 1 for names in splits.values())
    assert splits["a beast 7."] == {split_of("stamps a beast 7", 0.1, 0.15)}
    assert {name for names in splits.values() for name in names} == {"train", "validation", "test"}


def test_families_are_known_and_can_be_left_out(folder):
    corpus = read_stamps(folder, "pictures")
    assert sum(map(in_family, corpus.records)) == 52
    rest = without_families(corpus)
    assert len(rest.records) == 40 and rest.left_out == corpus.left_out and rest.name == corpus.name


def test_spoken_captions_are_captioned_in_every_language(folder):
    corpus = read_stamps(folder, "spoken")
    languages = {record.id: spoken_language(record) for record in corpus.records}
    assert languages == {
        "animals/beast00_desc_da": "da",
        "animals/beast00_desc_en": "en",
        "animals/beast00_desc_fr": "fr",
        "animals/beast00_desc_ru": "ru",
        "animals/beast01_desc_pt_BR": "pt_BR",
        "people/drawn_desc_fr": "fr",
    }
    assert set(map(spoken_language, of_languages(corpus, ("fr", "da")).records)) == {"fr", "da"}
    with pytest.raises(ValueError, match=r"--spoken must be languages .* got \['en_GB'\] for stamps/spoken"):
        of_languages(corpus, ("fr", "en_GB"))
    beasts = [record.targets for record in corpus.records if record.id.startswith("animals/beast00")]
    assert beasts == [beasts[0]] * 4 and {target.mode for target in beasts[0]} == {"en", "fr", "es"}
    assert corpus.left_out == (("animals/gone_desc_fr", "no stamp of this name"),)
    for record in corpus.records:
        clip = record.media.read()
        assert abs(len(clip) - 4800) < 3 and np.sqrt(np.mean(clip**2)) == pytest.approx(0.1, rel=0.01)


def test_sounds_are_not_letters_named_aloud(folder):
    corpus = read_stamps(folder, "sounds")
    assert len(corpus.records) == 40 and corpus.records[5].media.name == "animals/beast05.ogg"
    assert corpus.left_out == (("symbols/alphabets/a_filled_en_GB", "a spoken letter or digit"),)


def test_stamps_whose_captions_cannot_be_read_are_left_out(folder):
    for name, content in (("00", b"\xff"), ("02", b""), ("04", b"\nfr.utf8=Un ours.\n")):
        write(folder / f"animals/beast{name}.txt", content)
    corpus = read_stamps(folder, "pictures")
    assert len(corpus.records) == 40 + 52 - 3
    assert dict(corpus.left_out[:3]) == {
        "animals/beast00": "captions that are not UTF-8",
        "animals/beast02": "no English caption",
        "animals/beast04": "no English caption",
    }


def test_no_stamps_no_kind(folder, tmp_path):
    with pytest.raises(ValueError, match="the kind of stamps must be one of .* did you mean 'pictures'"):
        read_stamps(folder, "picture")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"must hold NAME.txt and NAME.png .*, like usr/share/tuxpaint"):
        read_stamps(tmp_path / "empty", "pictures")


def test_built_once_from_the_package_then_read(monkeypatch, tmp_path, says):
    commands = fake_stamps.install(monkeypatch)
    with says(r"'stamps/pictures': left out 1, kept 92; no PNG, .*people/drawn"):
        corpus = load_captions("stamps/pictures", tmp_path)
    assert list(tmp_path.glob("stamps/pictures/*/*.array_record*"))
    with says(r"'stamps/pictures': left out 1, kept 92; no PNG, .*people/drawn"):
        assert load_captions("stamps/pictures", tmp_path) == corpus
    assert corpus == read_stamps(fetch_stamps(tmp_path / "downloads/stamps"), "pictures")
    for record in corpus.records[::9]:
        np.testing.assert_array_equal(record.media.read(), PIXELS)
    with says(r"left out 1, kept 39; no target in es: animals/beast03"):
        bilingual = load_captions("stamps/pictures", tmp_path, modes=("en", "es"), families=False)
    assert len(bilingual.records) == 39 and bilingual.modes == ("en", "es")
    assert ("animals/beast03", "no target in es") in bilingual.left_out
    assert commands == ["apt-get", "dpkg"]


def test_a_package_without_stamps_is_not_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(fake_stamps, "write_stamps", lambda folder: None)
    fake_stamps.install(monkeypatch)
    message = r"(?s)it has no folder usr/share/tuxpaint/stamps\n.*pass FOLDER/usr/share/tuxpaint/stamps as folder"
    with pytest.raises(RuntimeError, match=message):
        fetch_stamps(tmp_path)
    assert not (tmp_path / "tuxpaint-stamps-default").exists()


def test_broken_files_are_named_in_the_data_set_and_the_others_kept(folder, tmp_path, says):
    write(folder / "animals/beast00_desc_ru.ogg", b"OggS")
    with says(r"left out 2, kept 5; .*clip is cut off after 4 .*: animals/beast00_desc_ru.ogg$"):
        corpus = load_captions("stamps/spoken", tmp_path, folder)
    again = load_captions("stamps/spoken", tmp_path)
    assert again == corpus and len(corpus.records) == 5
    assert [name for name, reason in again.left_out] == ["animals/gone_desc_fr", "animals/beast00_desc_ru.ogg"]
    fresh = {record.id: record for record in read_stamps(folder, "spoken").records}
    for record in corpus.records:
        np.testing.assert_allclose(record.media.read(), fresh[record.id].media.read(), atol=1e-4)


def test_a_split_of_broken_files_alone_is_an_error(folder, tmp_path):
    for path in folder.rglob("*.png"):
        write(path, b"?")
    with pytest.raises(ValueError, match=r"none of the \d+ files can be read; the image cannot be read"):
        load_captions("stamps/pictures", tmp_path, folder)
    assert not list(tmp_path.glob("stamps/pictures/*/dataset_info.json"))


def test_examples_of_the_builder(folder, tmp_path):
    builder = Stamps(config="sounds", data_dir=tmp_path, file_format="array_record", folder=folder)
    builder.download_and_prepare()
    example = builder.as_data_source("train")[0]
    assert set(example) == {"id", "source", "targets", "further_references", "split", "media"}
    assert example["media"]["kind"] == b"clip" and example["media"]["data"][:4] == b"fLaC"
    assert list(Stamps.builder_configs) == ["pictures", "spoken", "sounds"]


@pytest.mark.slow
def test_real_stamps(tmp_path, says):
    """Needs the Debian package or a network (161 MB); under a minute on two idle cores."""
    try:
        fetch_stamps(tmp_path / "downloads/stamps")
    except RuntimeError as error:
        pytest.skip(str(error))
    with says("left out 167, kept 785"):
        pictures = load_captions("stamps/pictures", tmp_path)
    assert pictures.counts() == {"train": 577, "validation": 80, "test": 128}
    assert without_families(pictures).counts() == {"train": 396, "validation": 55, "test": 87}
    assert sorted(pictures.modes) == sorted(LANGUAGES)
    shapes = [record.media.read().shape for record in pictures.records]
    assert all(shape[2] == 3 for shape in shapes) and max(map(max, shapes)) == 2348
    with says("left out 28, kept 7405; .* cut off .*"):
        spoken = load_captions("stamps/spoken", tmp_path)
    languages = Counter(map(spoken_language, spoken.records))
    assert languages.most_common(3) == [("fr", 927), ("ro", 920), ("ru", 920)] and len(languages) == 14
    lengths = [len(record.media.read()) / 16_000 for record in spoken.records[::10]]
    assert 0.9 < np.median(lengths) < 1.3
    with says("left out 329, kept 111"):
        load_captions("stamps/sounds", tmp_path)
    by_split = {r.id: r.split for r in pictures.records}
    stamp_of = lambda record: record.id.rpartition("_desc_")[0]
    assert all(by_split.get(stamp_of(record), record.split) == record.split for record in spoken.records)
    check_language_rule(spoken)


def check_language_rule(corpus):
    """The numbers in `classify`, of different captions, as far as a stamp is spoken."""
    texts = {mode: {t.text for r in corpus.records for t in r.targets if t.mode == mode} for mode in ("en", "fr", "es")}
    right = lambda mode, among: np.mean([caption_language(text, among) == mode for text in texts[mode]])
    assert right("en", ("en", "fr")) > 0.98 and right("fr", ("en", "fr")) > 0.985
    among = ("en", "fr", "es")
    assert right("en", among) > 0.975 and right("fr", among) > 0.96 and right("es", among) > 0.935
