"""The method list: targets that list all answers, and lists that are read back."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from experiments.common import lists
from experiments.common.decoding import Answers
from experiments.common.task import Task
from experiments.translation.config import Config
from experiments.translation.scores import scores
from mcl_jax import data

ANSWERS = ("a red owl", "un hibou rouge", "ein roter Uhu", "una lechuza roja", "un gufo rosso")


def record(answers=ANSWERS, name="7"):
    return data.Record(name, "owl", tuple(data.Target(text, f"mode {n}") for n, text in enumerate(answers)))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_list_is_read_back(count):
    text = lists.joined(ANSWERS[:count])
    assert lists.split(text, count) == ([*ANSWERS[:count]], count)
    assert text.count("\n") == count - 1


def test_line_breaks_and_space_around_answers_do_not_part_them():
    assert lists.split(lists.joined([" a\n b\r\nc ", "d"]), 2) == (["a b c", "d"], 2)
    assert lists.split("\n a \n\n  \nb\n", 2) == (["a", "b"], 2)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a\nb", ["a", "b", "a", "b", "a"]),
        ("a", ["a"] * 5),
        ("", [""] * 5),
        (" \n\n", [""] * 5),
        ("a\nb\nc\nd\ne\nf\ng", ["a", "b", "c", "d", "e"]),
    ],
)
def test_too_few_answers_are_repeated_and_too_many_left_out(text, found):
    assert lists.split(text, 5) == (found, len(set(found) - {""}))


def test_targets_are_rotations_of_a_random_order_so_each_answer_is_once_at_every_place():
    found = lists.listed(record(), 0)
    rows = [target.text.split("\n") for target in found.targets]
    assert len(rows) == 5 and {target.mode for target in found.targets} == {None}
    for column in zip(*rows, strict=True):
        assert sorted(column) == sorted(ANSWERS)
    assert all(sorted(row) == sorted(ANSWERS) for row in rows)
    orders = {tuple(lists.listed(record(name=str(n)), 0).targets[0].text.split("\n")) for n in range(20)}
    assert len(orders) > 10  # orders of different records are independent
    assert lists.listed(record(), 0) == found != lists.listed(record(), 1)


def test_equal_answers_are_listed_once():
    """Captions that --mode-weights repeats to draw them more often."""
    found = lists.listed(record(("a", "a", "b", "a")), 3)
    assert sorted(target.text for target in found.targets) == ["a\nb", "b\na"]


def task():
    splits = itertools.cycle(["train", "train", "validation", "test"])
    counts = [2, 3, 2, 2, 5, 2, 3, 2]
    records = [
        data.Record(f"{n}", f"source {n}", record(ANSWERS[:count]).targets, split=split)
        for n, (count, split) in enumerate(zip(counts, splits, strict=False))
    ]
    config = Config.from_options(workdir=Path("w"), num_hypotheses=3, max_length=31, batch_size=2, methods=("list",))
    return Task(config, None, None, None, data.Corpus("made up", tuple(records)), data.Prompt(), Path("base"))


def test_only_the_method_list_learns_lists_and_from_as_many_rows():
    whole = task()
    for method in ("mcl", "prompts", "ensemble", "mle_rk", "moe"):
        assert whole.learned(method) is whole
    learned = whole.learned("list")
    assert learned.config.training.max_length == 5 * 31
    assert learned.config.replace(max_length=31) == whole.config  # the same steps, batches and seed
    for old, new in zip(whole.corpus.records, learned.corpus.records, strict=True):
        assert (old.id, old.split, old.source) == (new.id, new.split, new.source)
        assert len(old.targets) == len(new.targets)


def answers():
    texts = [["a red owl\nun hibou rouge"], [""], ["one\ntwo\nthree\nfour"]]
    return Answers(texts, [[-0.3], [-0.5], [-0.7]], 1.5, rows=6)


def test_answers_of_a_list_have_no_likelihoods():
    found = answers().split(3)
    assert found.texts == [["a red owl", "un hibou rouge", "a red owl"], [""] * 3, ["one", "two", "three"]]
    assert found.log_likelihoods == [[None] * 3] * 3 and found.likeliest is None
    assert found.costs == {"decode_seconds": 1.5, "decode_rows": 6, "answers_written": pytest.approx(5 / 3)}
    with_likelihoods = Answers([["a", "b", "c"]] * 2, [[-3.0, -1.0, -2.0], [-1.0, -3.0, -2.0]], 1.0)
    assert with_likelihoods.likeliest == [1, 0] and "answers_written" not in with_likelihoods.costs


def test_scores_of_lists_are_those_of_their_answers(no_packages):
    found = answers().split(3)
    records = tuple(data.Record(str(n), "x", (data.Target("a red owl"),), split="test") for n in range(3))
    of_lists = scores(found, records)
    alike = scores(Answers(found.texts, [[-1.0, -2.0, -3.0]] * 3, 1.0), records)
    assert of_lists["likeliest_bleu"] is None
    assert of_lists["not_available"]["likeliest_bleu"] == "the answers have no likelihoods"
    assert alike["likeliest_bleu"] == pytest.approx(100 / 3)
    for name in ("oracle_bleu", "mean_bleu", "mbr_bleu", "div_2", "chrf"):
        np.testing.assert_allclose(of_lists[name], alike[name])
