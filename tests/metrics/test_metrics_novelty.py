"""Novelty against training texts, counted by hand."""

import math

import pytest

from mcl_jax import metrics

KNOWN = ("The red house is old.", "the red house", "a dog")


def test_novel_answers_are_counted_after_tokenization():
    known = metrics.TrainingTexts.of(KNOWN)
    answers = [["The red house is old .", "the  red house", "A dog"], ["a cat", "", " "], ["a dog"]]
    assert metrics.novel_answers(answers, known).per_item.tolist() == pytest.approx([1 / 3, 1 / 3, 0])
    lower = metrics.TrainingTexts.of(KNOWN, metrics.Tokenization(lowercase=True))
    assert metrics.novel_answers(answers, lower).per_item.tolist() == pytest.approx([0, 1 / 3, 0])
    captions = metrics.TrainingTexts.of_captions(KNOWN)
    assert metrics.novel_answers([["the red house is old", "A DOG!", "the house"]], captions).mean == 1 / 3


def test_novel_4grams_are_counted_with_repetitions():
    known = metrics.TrainingTexts.of(KNOWN)  # "The red house is", "red house is old", "house is old ."
    answers = [["red house is old and red house is new", "The red house is"], ["the red house", ""]]
    score = metrics.novel_4grams(answers, known)
    # red house is old | house is old and | is old and red | old and red house | and red house is | red house is new
    assert score.per_item[0] == pytest.approx(5 / 7)
    assert math.isnan(score.per_item[1]) and score.mean == score.per_item[0]
    twice = metrics.novel_4grams([["b a dog b a dog b"]], known)
    assert twice.mean == 1.0
    assert metrics.novel_4grams([["the red house is old x x", "the red house is"]], known).mean == pytest.approx(4 / 5)


def test_ngrams_do_not_run_over_the_end_of_a_text():
    known = metrics.TrainingTexts.of(["a b", "c d"])
    assert metrics.novel_4grams([["a b c d"]], known).mean == 1.0
    assert metrics.novel_answers([["a b c d", "a b", "c d"]], known).mean == pytest.approx(1 / 3)


def test_nothing_known_is_refused_and_missing_texts_are_said():
    with pytest.raises(ValueError, match="at least 1 training text, got none"):
        metrics.TrainingTexts.of([])
    score = metrics.score_items([metrics.Item(1, ("a",), ("a",))], groups={"novelty": metrics.groups.novelty_metrics})
    assert "needs the texts of the training set" in score["novel_answers"].reason
