"""The TFDS data set, and that it gives the same batches as the same text from a file."""

import fake_sword
import numpy as np
import pytest
from tiny_tokenizers import Letters

from experiments.datasets import Verses, load_corpus, load_verses
from experiments.datasets.features import as_features, from_features
from mcl_jax.data import BatchConfig, Record, Target, encode_records, read_jsonl, train_batches, write_jsonl

CHAPTERS = 60  # enough for every split


@pytest.fixture
def modules_read(monkeypatch):
    return fake_sword.install(monkeypatch, CHAPTERS)


def test_built_once_then_read(modules_read, tmp_path):
    corpus = load_verses("languages", tmp_path)
    assert corpus.name == "languages" and corpus.modes == ("en", "es")
    assert sum(corpus.counts().values()) == 2 * CHAPTERS + 2
    record = next(r for r in corpus.records if r.id == "Matt 2:1")
    assert record.source == "And he saith unto them 2,"
    assert record.references == (Target("Y les dijo — 2,", "es"), Target("He said to them 2,", "en"))
    assert list(tmp_path.glob("verses/languages/*/*.array_record*"))
    assert load_corpus("languages", tmp_path) == corpus
    assert load_corpus("styles", tmp_path).modes == ("archaic", "modern")
    assert len(modules_read) == 3  # the other task needs no second reading


def test_data_source_has_the_declared_features(modules_read, tmp_path):
    builder = Verses(config="styles", data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    example = builder.as_data_source("test")[0]
    assert set(example) == {"id", "source", "targets", "further_references", "split"}
    assert example["split"] == b"test" and list(example["targets"]["mode"]) == [b"archaic", b"modern"]
    assert len(example["further_references"]["text"]) == 0


def test_configurations():
    assert list(Verses.builder_configs) == ["languages", "styles", "languages_whole", "styles_whole"]
    assert [config.testament for config in Verses.BUILDER_CONFIGS] == ["new", "new", "whole", "whole"]


@pytest.mark.parametrize("mode", [None, "m"])
def test_records_survive_the_features(mode):
    record = Record("1", "s", (Target("t", mode), Target("u")), (Target("v", mode),), "test")
    assert from_features(as_np(as_features(record))) == record


def as_np(features):
    """As TFDS gives it back: lists of answers as a dict of lists, texts as bytes."""
    transpose = lambda answers: {k: [a[k].encode() for a in answers] for k in ("mode", "text")}
    return {k: transpose(v) if isinstance(v, list) else v.encode() for k, v in features.items()}


def test_same_text_from_a_file_gives_the_same_batches(modules_read, tmp_path):
    built = load_corpus("languages", tmp_path)
    write_jsonl(tmp_path / "verses.jsonl", built)
    corpora = built, read_jsonl(tmp_path / "verses.jsonl")
    config = BatchConfig(batch_size=4, lengths=(64, 96))
    encoded = [encode_records(c.split("train"), Letters(), max_length=96, mode_names=c.modes) for c in corpora]
    pairs = zip(*(train_batches(e, config, epochs=2) for e in encoded), strict=True)
    for number, (a, b) in enumerate(pairs):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=f"{name} of batch {number}")
    assert number > 10
