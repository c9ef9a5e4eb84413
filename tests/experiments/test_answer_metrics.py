"""Meaning, probe and novelty of answers in the results of both kinds of experiments, and on the page."""

import dataclasses
import json

import made_up_run as made_up
import numpy as np
import pytest
from test_page import METHODS, Parsed

from experiments.common import page
from experiments.common.captioning.scores import scores as caption_scores
from experiments.common.captioning.scores import training_captions
from experiments.common.decoding import Answers
from experiments.common.evaluation import Evaluation
from experiments.translation.scores import scores, training_targets
from mcl_jax import data, metrics

TEXTS = [["the red dog sleeps here", "a dog", "Un chien."], ["a cat", "the red dog sleeps here", "un chat"]]
ANSWERS = Answers(TEXTS, [[-1.0, -2.0, -3.0]] * 2, 0.0)
RECORDS = tuple(data.Record(text, text, (data.Target(text),), split="test") for text in ("a dog", "a cat"))
TRAIN = tuple(data.Record(text, text, (data.Target(text),)) for text in ("a dog", "un chien", "see the red dog sleeps"))


class Letters:
    """An encoder for which texts are the same if they begin with the same letter."""

    def encode(self, texts):
        return np.eye(26, dtype=np.float32)[[ord(text[0].lower()) - ord("a") for text in texts]]


@pytest.mark.parametrize("kind", ["translations", "captions"])
def test_results_say_how_answers_differ_and_what_is_new(kind, monkeypatch):
    asked = []
    monkeypatch.setattr(metrics.SentenceEncoder, "load", lambda folder: asked.append(folder) or Letters())
    if kind == "captions":
        known = training_captions(TRAIN)
        found = caption_scores(ANSWERS, RECORDS, RECORDS, TRAIN, known, encoder="folder", corenlp=None)
        novel = [1 / 3, 1.0]  # "Un chien." is the caption "un chien"
    else:
        found = scores(ANSWERS, RECORDS, training_targets(TRAIN), encoder="folder")
        novel = [2 / 3, 1.0]
    assert set(asked) == {"folder"}
    json.dumps(found, allow_nan=False)
    assert found["per_item"]["vendi_score"] == [3.0, 3.0] and found["per_item"]["distinct_k"] == [3.0, 3.0]
    assert found["oracle_similarity"] == 1.0
    assert found["per_item"]["novel_answers"] == pytest.approx(novel, abs=1e-6)
    assert found["intervals"]["novel_answers"] == pytest.approx([min(novel), 1.0], abs=1e-6)
    assert found["novel_4grams"] == 0.5  # "the red dog sleeps" is known, "red dog sleeps here" is not
    assert len(found["per_item"]["probe_accuracy"]) == 2 and found["probe_chance"] == 1 / 3


def test_results_say_why_there_is_no_probe_nor_novelty(no_packages):
    one = Answers([["a dog"], ["a cat"]], [[-1.0]] * 2, 0.0)
    for found in (scores(one, RECORDS), caption_scores(one, RECORDS, RECORDS, TRAIN)):
        missing = found["not_available"]
        assert "at least 2 answers each, got 2 with 1" in missing["probe_accuracy"]
        assert "texts of the training set" in missing["novel_answers"] and found["novel_4grams"] is None
        assert "pip install --no-deps" in missing["vendi_score"]


@pytest.mark.parametrize("name", ["encoder", "bert", "fluency"])
def test_a_folder_without_a_model_is_refused_at_once(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"--{name} must be a folder with .*lacks \['tokenizer.json', 'model"):
        dataclasses.replace(Evaluation(), **{name: tmp_path}).check()


def test_the_page_has_a_second_table_of_what_the_results_have(tmp_path):
    results = made_up.results()
    results["methods"]["mcl"] |= {"vendi_score": 1.75, "probe_accuracy": None, "probe_chance": 1 / 3}
    results["methods"]["mcl"]["intervals"] = {"vendi_score": [1.5, 2.0]}
    results["methods"]["mcl"]["not_available"] = {"probe_accuracy": "too <few> items"}
    parsed = Parsed(page.write(made_up.run(tmp_path / "run"), results).read_text("utf-8"))
    head, mcl, *others = parsed.tables[METHODS + 1]
    assert head == ["", "Vendi", "probe", "chance"]
    assert mcl == ["LoRA-MCL", "1.750 | 1.500 to 2.000", "n/a", "0.333"]
    assert all(cells[1:] == ["", "", ""] for cells in others)
    assert "probe is not available: too <few> items" in "".join(parsed.texts)
