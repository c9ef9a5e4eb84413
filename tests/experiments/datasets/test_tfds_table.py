"""Data sets of TFDS in any layout, by name or by folder, and the options that say what is where."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments.datasets import load_corpus
from experiments.datasets.layout import Layout
from experiments.datasets.tfds_table import load_tfds
from mcl_jax.data import Target
from mcl_jax.data.columns import Columns

COUNTS = {"train": 11, "dev": 3, "test": 2}


class Quiz(tfds.core.GeneratorBasedBuilder):
    """Questions with lists of answers, and a class."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text()
        answers = tfds.features.Sequence({"text": text, "start": tfds.features.Scalar(np.int32)})
        kind = tfds.features.ClassLabel(names=["place", "name"])
        features = {"question": text, "answers": answers, "kind": kind, "loose": tfds.features.Sequence(text)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split, number) for split, number in COUNTS.items()}

    def _generate_examples(self, split, number):
        for i in range(number):
            answers = [{"text": f"Ä{i}", "start": 3}, {"text": f"b{i}", "start": 5}]
            yield i, {"question": f"{split} {i}?", "answers": answers, "kind": i % 2, "loose": [f"c{i}"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    builder = Quiz(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
    builder.download_and_prepare()
    return builder.data_dir


WORDS = ("source=question", "targets=answers.text", "mode=kind")


def test_a_prepared_data_set_by_its_folder(folder, tmp_path):
    corpus = load_corpus(folder, layout=Layout.parse(WORDS))
    assert corpus.name == "quiz/1.0.0" and corpus.counts() == {"train": 11, "validation": 0, "test": 2}
    record = next(record for record in corpus.records if record.source == "train 3?")
    assert record.targets == (Target("Ä3", "name"), Target("b3", "name"))
    layout = Layout.parse(("source=question", "targets=loose"), ("train=train[:5]", "validation=dev"))
    chosen = load_corpus(folder, layout=layout)
    assert chosen.counts() == {"train": 5, "validation": 3, "test": 0}
    assert {record.targets for record in chosen.split("validation")} == {(Target(f"c{i}"),) for i in range(3)}


def test_a_data_set_by_its_name(folder):
    """The builder of this file counts as one of TFDS; nothing can be downloaded here."""
    data_dir = folder.rpartition("/quiz")[0]
    assert load_tfds("quiz", data_dir, Layout.parse(WORDS)).counts()["train"] == 11
    with pytest.raises(ValueError, match=r"or the name of one, which 'squat' is not; did you mean 'squad'\?"):
        load_tfds("squat/v1.1", data_dir, Layout.parse(WORDS))


@pytest.mark.parametrize(
    ("words", "splits", "message"),
    [
        (("source=questions", "targets=loose"), (), r"quiz/1.0.0: a column must be one of .* did you mean 'question'"),
        (("source=question", "targets=kin.x"), (), "a column must be one of .* got 'kin.x'"),
        (WORDS, ("test=tst",), r"a split must be one of \['dev', 'test', 'train'\], got 'tst'; did you mean 'test'"),
        (
            ("source=question", "targets=answers.start"),
            (),
            r"quiz/1.0.0, train, example 1: column 'answers.start'",
        ),
    ],
)
def test_wrong_features_and_splits_are_named(folder, words, splits, message):
    with pytest.raises(ValueError, match=message):
        load_tfds(folder, None, Layout.parse(words, splits))


def test_words_of_the_options():
    layout = Layout.parse(("source=q", "targets=fr,es", "split=part"), ("train=a", "test=b"))
    assert layout == Layout(Columns("q", ("fr", "es"), None, "part"), {"train": "a", "test": "b"})


@pytest.mark.parametrize(
    ("words", "splits", "message"),
    [
        (("source=q",), (), r"--columns needs targets=NAME, got \['source=q'\]"),
        (("source", "targets=a"), (), "--columns needs words like source=NAME, got 'source'"),
        (("source=q", "target=a"), (), "the word before = must be one of .* got 'target'; did you mean 'targets'"),
        (("source=q", "source=r", "targets=a"), (), "--columns must have source=NAME once"),
        (("source=q", "targets=a", "mode=q"), (), "--columns: source, targets, mode and split must be different"),
        (("source=q", "targets=a,"), (), "must be different columns"),
        (("source=q", "targets=a"), ("dev=x",), "--splits: the word before = must be one of .* got 'dev'"),
    ],
)
def test_wrong_words_are_refused(words, splits, message):
    with pytest.raises(ValueError, match=message):
        Layout.parse(words, splits)


def test_a_table_needs_the_option(tmp_path):
    with pytest.raises(ValueError, match=r"a\.csv needs --columns source=NAME targets=NAME, which say what"):
        load_corpus(tmp_path / "a.csv")
