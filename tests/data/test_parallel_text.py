"""Parallel files, and WMT through TFDS on a data set of the same features."""

import pytest
import tensorflow_datasets as tfds

from experiments.datasets import load_corpus, load_wmt, read_wmt
from mcl_jax.data import Target, read_parallel, split_of


def write(folder, **files):
    """Writes files named as the arguments, with dots for underscores: lists of lines, or bytes."""
    folder.mkdir(exist_ok=True)
    for name, lines in files.items():
        content = lines if isinstance(lines, bytes) else "".join(line + "\n" for line in lines).encode()
        (folder / name.replace("_", ".")).write_bytes(content)
    return folder


SPLITS = dict(valid_en=["v"], valid_de=["V"], test_en=["t"], test_de=["T"])


def test_line_n_answers_line_n(tmp_path):
    english, german = ([f"{word} {i}" for i in range(1200)] for word in ("cat", "Katze"))
    corpus = read_parallel(write(tmp_path / "wmt", train_en=english, train_de=german, **SPLITS))
    assert corpus.name == "wmt" and corpus.modes == ()
    assert corpus.counts() == {"train": 1200, "validation": 1, "test": 1}
    records = corpus.split("train")  # in the order of ids
    assert [(record.source, record.targets) for record in records] == [
        (e, (Target(g),)) for e, g in zip(english, german, strict=True)
    ]
    assert records[1199].id == "train-000001200"
    assert corpus.split("validation")[0].source == "v"
    assert load_corpus(tmp_path / "wmt") == corpus


def test_other_languages(tmp_path):
    folder = write(tmp_path / "a", train_fr=["chat"], train_en=["cat"])
    assert load_corpus(str(folder), source="fr", target="en").records[0].source == "chat"


def test_several_answers_are_targets_and_several_references_are_not(tmp_path):
    tens = {f"test_de_{i}": [f"T{i}"] for i in range(11)}
    folder = write(
        tmp_path / "a",
        train_en=["a", "b"],
        train_de_0=["A", "B"],
        train_de_1=["AA", "B"],
        **SPLITS | tens,
        valid_de_0=["W"],
    )
    corpus = read_parallel(folder)
    first, second = corpus.split("train")
    assert first.targets == (Target("A"), Target("AA")) and first.further_references == ()
    assert second.targets == (Target("B"),)
    assert corpus.split("validation")[0].targets == (Target("V"), Target("W"))
    (held_out,) = corpus.split("test")
    assert held_out.targets == (Target("T"),)
    assert held_out.further_references == tuple(Target(f"T{i}") for i in range(11))  # T10 after T9
    (folder / "test.de").unlink()
    assert read_parallel(folder).split("test")[0].targets == (Target("T0"),)


def test_blank_lines_are_dropped_and_counted(tmp_path, says):
    train = dict(train_en=["a", "", "c", "d"], train_de_0=["A", "B", " ", "D"], train_de_1=["", "BB", "", "DD"])
    folder = write(tmp_path / "a", **train, valid_en=["v"], valid_de=["V"], test_en=[], test_de=[])
    with says(r"corpus 'a': dropped 5 of 9 pairs"):
        corpus = read_parallel(folder, test=0.0)
    assert [(r.id, len(r.targets)) for r in corpus.split("train")] == [("train-000000001", 1), ("train-000000004", 2)]


def test_splits_without_files_are_drawn_from_the_training_lines(tmp_path):
    lines = [f"{i}" for i in range(400)]
    folder = write(tmp_path / "a", train_en=lines, train_de=lines)
    corpus = read_parallel(folder, validation=0.2, test=0.1)
    assert all(record.split == split_of(record.id, 0.2, 0.1) for record in corpus.records)
    assert min(corpus.counts().values()) > 20
    write(folder, test_en=["t"], test_de=["T"])
    corpus = read_parallel(folder, validation=0.2, test=0.1)
    assert corpus.counts()["test"] == 1 and corpus.counts()["validation"] > 40


def test_lines_with_one_source_are_drawn_into_one_split(tmp_path):
    lines = [f"{i % 97}" for i in range(300)]
    corpus = read_parallel(write(tmp_path / "a", train_en=lines, train_de=[f"{i}" for i in range(300)]), test=0.2)
    splits = {}
    for record in corpus.records:
        splits.setdefault(record.source, set()).add(record.split)
    assert all(len(names) == 1 for names in splits.values()) and min(corpus.counts().values()) > 0
    assert splits["5"] == {split_of("train-000000006", 0.05, 0.2)}  # of the first of its lines


def test_a_split_of_blank_lines_alone_is_no_split(tmp_path, says):
    lines = [f"{i}" for i in range(400)]
    folder = write(
        tmp_path / "a", train_en=lines, train_de=lines, **SPLITS | dict(valid_en=["v", ""], valid_de=["", "V"])
    )
    with says("dropped 2 of 403 pairs"):
        counts = read_parallel(folder).counts()
    assert counts["validation"] > 5 and counts["test"] == 1


def test_files_are_all_there_before_any_is_read(tmp_path):
    folder = write(tmp_path / "a", train_en=b"\xff\n", train_de=["A"], test_en=["t"])
    with pytest.raises(FileNotFoundError, match=r"must hold test\.de or test\.de\.0"):
        read_parallel(folder)


def test_byte_order_marks_and_other_separators_do_no_harm(tmp_path):
    text = dict(train_en=b"\xef\xbb\xbfa\r\nb\xe2\x80\xa8c", train_de=b"A\nB\n")
    corpus = read_parallel(write(tmp_path / "a", **text), validation=0.0, test=0.0)
    assert [r.source for r in corpus.records] == ["a", "b\u2028c"]


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        (dict(train_de=["A"]), FileNotFoundError, r"must hold train\.en, got \['train\.de'\]"),
        (dict(train_en=["a"]), FileNotFoundError, r"must hold train\.de or train\.de\.0, got \['train\.en'\]"),
        (dict(train_en=["a"], train_de=["A"], test_en=["t"]), FileNotFoundError, r"must hold test\.de or test\.de\.0"),
        (dict(train_en=["a"], train_de=["A"], valid_de_3=["V"]), FileNotFoundError, r"must hold valid\.en"),
        (
            dict(train_en=["a"], train_de=["A"], train_de_1=["A", "B"]),
            ValueError,
            r"train\.de\.1 must have as many lines as .*train\.en, got 2 lines, but train\.en has 1",
        ),
        (dict(train_en=["a", "b"], train_de=b"A\n\xff\n"), ValueError, r"train\.de, line 2: must be UTF-8"),
        (dict(train_en=[], train_de=[]), ValueError, "corpus 'a': it has no records"),
    ],
)
def test_errors_name_files_and_what_was_needed(tmp_path, files, error, message):
    with pytest.raises(error, match=message):
        read_parallel(write(tmp_path / "a", **files))


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"b must be a folder with train\.en and train\.de, but there is no"):
        read_parallel(tmp_path / "b")
    with pytest.raises(
        ValueError, match="data must be a folder with parallel files, a name such as wmt19_translate/de-en"
    ):
        load_corpus(tmp_path / "b")


# --------------------------------------------------------------------------------------------------------------- WMT


class Translated(tfds.core.GeneratorBasedBuilder):
    """As TFDS's WMT: a text for each of two languages, no ids."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="de-en")]

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.Translation(languages=("de", "en")))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples("cat", 40), "validation": self._generate_examples("dog", 3)}

    def _generate_examples(self, word, number):
        for i in range(number):
            yield i, {"en": f"{word} {i}" if i != 2 else " ", "de": f"Ä{word} {i}"}


@pytest.fixture
def builder(tmp_path):
    builder = Translated(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    return builder


def test_examples_of_tfds_are_records(builder, says):
    with says("dropped 2 of 43 pairs"):
        corpus = read_wmt(builder)
    assert corpus.name == "translated/de-en/1.0.0"
    by_split = {split: corpus.split(split) for split in ("train", "validation")}
    assert {r.source for r in by_split["validation"]} == {"dog 0", "dog 1"}
    assert all(r.targets == (Target("Ä" + r.source),) for r in corpus.records)
    assert corpus.counts()["train"] + corpus.counts()["test"] == 39  # there is no test split: drawn from training
    with says("dropped 2 of 43 pairs"):
        assert read_wmt(builder, source="de", target="en").split("train")[0].source.startswith("Ä")


def test_at_most_so_many_training_pairs(builder):
    whole, part = read_wmt(builder), read_wmt(builder, most=5)
    assert read_wmt(builder, most=1000) == whole
    trained = lambda corpus: [record for record in corpus.records if record.id.startswith("train")]
    assert trained(part) == [record for record in trained(whole) if record.id <= "train-000000005"]
    assert part.split("validation") == whole.split("validation")


def test_wmt_is_loaded_by_name(tmp_path, monkeypatch):
    """The builder is TFDS's own, its examples are made up: nothing can be downloaded here."""
    from tensorflow_datasets.translate import wmt

    def generators(self, dl_manager):
        lines = [{"en": f"cat {i}", "de": f"Katze {i}"} for i in range(20)]
        return {split: iter(enumerate(lines)) for split in ("train", "validation", "test")}

    monkeypatch.setattr(wmt.WmtTranslate, "_split_generators", generators)
    corpus = load_corpus("wmt14_translate/de-en", tmp_path, most=7)
    assert corpus.name == "wmt14_translate/de-en/1.0.0"
    assert corpus.counts() == {"train": 7, "validation": 20, "test": 20}
    assert all(r.targets == (Target(r.source.replace("cat", "Katze")),) for r in corpus.records)
    assert list(tmp_path.glob("wmt14_translate/de-en/*/*.array_record*"))


def test_what_tfds_cannot_give_is_explained(tmp_path, monkeypatch):
    with pytest.raises(
        ValueError, match=r"a WMT data set of TFDS must be one of .*'wmt19_translate'.* got 'wmt19/de-en'"
    ):
        load_wmt("wmt19/de-en", tmp_path)
    with pytest.raises(ValueError, match=r"wmt19_translate/de-en/1.0.0: language must be one of .* got 'fr'"):
        load_wmt("wmt19_translate/de-en", tmp_path, target="fr")
    for most in (0, -3):
        with pytest.raises(ValueError, match=f"most must be at least 1 training pair, or None for all, got {most}"):
            load_wmt("wmt19_translate/de-en", tmp_path, most=most)
    with pytest.raises(ValueError, match="BuilderConfig de-xx not found"):
        load_wmt("wmt19_translate/de-xx", tmp_path)

    def no_network(self, **options):
        raise OSError("no network")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", no_network)
    with pytest.raises(RuntimeError, match=r"de-en cannot be prepared in .*no network\nOn a machine .*train\.en"):
        load_wmt("wmt19_translate/de-en", tmp_path)
