"""Relevance in a run: a model that sees has positive grounding, one that does not has 0; the nearest pictures."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_captions import LLAVA, tiny
from tiny_media import png, write, write_lines

from experiments.common.captioning.nearest import nearest
from experiments.common.captioning.relevance import groups_of, relevance, with_caption
from experiments.common.captioning.task import load
from experiments.common.experiment import merged
from experiments.common.held_out import Likelihoods, evaluator
from experiments.common.task import Items
from experiments.common.training import train
from experiments.image_captioning.config import Config
from experiments.image_captioning.images import Pictures
from mcl_jax import data, metrics
from mcl_jax.run import Run

pytestmark = pytest.mark.usefixtures("standard_promotion", "no_packages")
COLOURS = {
    "a red dog": (255, 0, 0),
    "this is what": (0, 255, 0),
    "dog dog": (0, 0, 255),
    "what a what": (255, 255, 255),
}
SPLITS = ("train", "train", "train", "validation", "test", "test")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Six pictures of each colour, a little noisy; the colour decides the caption."""
    folder, rng, lines = tmp_path_factory.mktemp("relevance") / "mine", np.random.default_rng(0), []
    for i, split in enumerate(SPLITS):
        for caption, colour in COLOURS.items():
            name = f"{i} {caption}.png"
            noisy = np.array(colour) + rng.integers(-20, 21, (9, 11, 3))
            write(folder / name, png(noisy.clip(0, 255).astype(np.uint8)))
            lines.append({"file": name, "caption": caption, "split": split})
    write_lines(folder / "captions.jsonl", *lines)
    return load(tiny(Config, folder, LLAVA, steps=30, eval_every=30, learning_rate=3e-2), Pictures())


def test_a_model_that_sees_has_positive_grounding_and_a_blind_one_exactly_none(task, encoded):
    evaluate, records = evaluator(task, "mcl"), task.records("test")
    with Run(task.config.workdir, task.config) as run:
        state, _ = train(run, task, "mcl", evaluate)
        seen = relevance(task, run, partial(evaluate, state), records, 8)
        perception = SimpleNamespace(features=lambda records: 0 * task.perception.features(records))
        evaluate_blind = evaluator(dataclasses.replace(task, perception=perception), "mcl")
        blind = relevance(task, run, partial(evaluate_blind, state), records, 8)
    assert seen["grounding"]["low"] > 1.0 and seen["retrieval"]["low"] > 0.5
    assert seen["retrieval_chance"] == 1 / 7  # 8 test records, two of each caption
    assert blind["grounding"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert blind["retrieval"]["mean"] == pytest.approx(1 / 7) == blind["retrieval"]["high"]
    assert set(encoded.values()) == {1}  # the tower saw each picture once, whatever it was paired with


def test_the_nearest_pictures_have_the_captions_of_their_colour(task):
    asked = task.records("test")
    copied = nearest(task, asked, 12)
    assert [len(texts) for texts in copied.texts] == [3] * 8 and copied.log_likelihoods[0] == [None] * 3
    for record, texts in zip(asked, copied.texts, strict=True):
        assert texts[0] == record.targets[0].text and len(set(texts)) == 3
    few = nearest(task, asked, 2)  # the first and the last training record
    assert set(np.ravel(few.texts)) == {task.records("train")[i].targets[0].text for i in (0, -1)}


def test_pooled_features_are_the_mean_of_those_that_a_picture_has(task):
    records = task.records("test")[:3]
    features, counts = task.perception.features(records), [task.prompt.counts[record.id] for record in records]
    expected = [row[:count].mean(0) for row, count in zip(features, counts, strict=True)]
    assert features.shape[1] > max(counts)  # the others are zeros
    np.testing.assert_allclose(task.perception.pooled(records, 2), expected, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- Pairs, by hand


def record(name, *captions):
    targets = tuple(data.Target(text) for text in captions)
    return data.Record(name, "", targets, media=data.Picture(name, lambda: b""))


def test_records_that_share_a_caption_are_in_a_group_be_it_through_others():
    records = [record(name, *captions) for name, *captions in (
        ("0", "a bunny", "un lapin"), ("1", "a dog"), ("2", "a rabbit", "Un lapin"), ("3", "a rabbit", "un lièvre"),
        ("4", "A dog", "un chien"), ("5", "a cat"),
    )]  # fmt: skip
    label = groups_of(records)
    assert label[0] == label[2] == label[3] and label[1] == label[4] and len(set(label)) == 3


def test_a_caption_with_another_picture_is_a_record():
    one, other = record("1", "a dog", "un chien"), record("2", "a cat")
    pair = with_caption(other, one.targets[1])
    assert (pair.id, pair.media) == ("2", other.media) and pair.references == (one.targets[1],)


class Spy:
    """A task, and an evaluator whose log p is by (picture, caption): 0 for its own, −1 else; 5 less for the other k."""

    def __init__(self, own, too_long=()):
        self.own, self.too_long, self.passes = own, too_long, []

    def encode(self, records):
        """Leaves out what is too long, as a task does."""
        kept = tuple(n for n, record in enumerate(records) if self.pair(record) not in self.too_long)
        return Items(records, data.Encoded(*[((),) * len(kept)] * 3, kept, (), (), 0))

    def __call__(self, items):
        index = np.random.default_rng(len(self.passes)).permutation(
            items.encoded.index
        )  # as evaluation sorts by length
        self.passes.append([self.pair(items.records[n]) for n in sorted(index)])
        log_p = np.array([0.0 if self.pair(items.records[n]) in self.own else -1.0 for n in index])
        return Likelihoods(np.stack([log_p, log_p - 5]), index * 0 + 1, index * 0, index)

    def pair(self, record):
        return record.id, record.targets[0].text


@pytest.fixture
def run(tmp_path):
    with Run(tmp_path / "run", {}) as run:
        yield run


def test_which_pairs_are_evaluated(run):
    records = tuple(record(str(n), f"thing {n}", f"chose {n}") for n in range(23))
    own = {(r.id, target.text) for r in records for target in r.targets}
    spy = Spy(own)
    found = relevance(spy, run, spy, records, 5)
    assert found["grounding"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert found["retrieval"] == {"mean": 1.0, "low": 1.0, "high": 1.0} and found["retrieval_chance"] == 1 / 20
    true, swapped, *candidates = spy.passes
    assert set(true) == own and len(swapped) == 46 and not own & set(swapped)
    assert [text for _, text in true] == [text for _, text in swapped]
    assert len(candidates) == 20 and {len(one) for one in candidates} == {5}
    assert candidates[0] == [
        ("0", "thing 0"),
        ("6", "chose 6"),
        ("11", "thing 11"),
        ("16", "chose 16"),
        ("22", "thing 22"),
    ]
    for shown in zip(*candidates, strict=True):
        assert len(set(shown)) == 20 and shown[0] in own and not own & set(shown[1:])


def test_captions_too_long_behind_a_picture_do_not_count(run):
    records = tuple(record(str(n), f"thing {n}") for n in range(7))
    partner = metrics.derangement(range(7))
    own = {(r.id, r.targets[0].text) for r in records}
    spy = Spy(own - {("5", "thing 5")}, too_long={(str(partner[2]), "thing 2"), ("3", "thing 3")})
    found = relevance(spy, run, spy, records, 7)
    assert found["grounding"]["mean"] == pytest.approx(4 / 5)  # all but 2 and 3; 5 has none


def test_records_of_one_caption_have_neither(run):
    found = relevance(None, run, None, tuple(record(str(n), "a dog", f"{n}") for n in range(5)), 5)
    assert found["grounding"] is found["retrieval"] is None
    assert "at most half of the records, but one has 5 of 5" in found["not_available"]["retrieval"]


def test_results_are_joined_with_their_intervals_and_reasons():
    parts = (
        {"a": 1, "not_available": {"b": "x"}},
        {"b": None, "intervals": {"c": [0, 1]}},
        {"not_available": {"d": "y"}},
    )
    assert merged(*parts) == {"a": 1, "b": None, "intervals": {"c": [0, 1]}, "not_available": {"b": "x", "d": "y"}}
