"""The probe that tells which hypothesis wrote an answer: by hand, at chance, and where it could leak."""

import numpy as np
import pytest

from mcl_jax import metrics

WORDS = [f"w{i}" for i in range(23)]


def texts(rng, *shape):
    return np.apply_along_axis(" ".join, -1, rng.choice(WORDS, (*shape, 5))).tolist()


def test_a_word_that_marks_the_hypothesis_tells_it():
    answers = texts(np.random.default_rng(0), 101, 3)
    marked = [[f"{text} m{k}" for k, text in enumerate(item)] for item in answers]
    score = metrics.probe_accuracy(marked)
    assert score.mean == score.low == score.high == 1.0
    two = [[f"m {a}", f"m {b}", f"n {c}"] for a, b, c in answers]  # the first two are not told apart
    assert metrics.probe_accuracy(two).mean == pytest.approx(2 / 3, abs=0.1)


def test_word_order_tells_hypotheses_with_the_same_words_apart():
    pairs = [["red big house", "house red big", "big house red"]] * 5
    assert metrics.probe_accuracy(pairs).mean == 1.0


def test_answers_at_random_are_told_by_chance():
    score = metrics.probe_accuracy(texts(np.random.default_rng(1), 211, 3))
    assert score.low < 1 / 3 < score.high
    assert score.high - score.low < 0.1


def test_equal_answers_are_at_chance_exactly():
    answers = [[text] * 3 for (text,) in texts(np.random.default_rng(2), 11, 1)]
    np.testing.assert_allclose(metrics.probe_accuracy(answers).per_item, 1 / 3)
    np.testing.assert_allclose(metrics.probe_accuracy([["", " ", "\n"]] * 7).per_item, 1 / 3)


def test_answers_to_an_item_are_not_learned_from_itself():
    """Every answer has words that no other has: known in training, they would tell everything."""
    own = [[f"a{n} b{n}", f"c{n} d{n}", f"e{n} f{n}"] for n in range(13)]
    np.testing.assert_allclose(metrics.probe_accuracy(own).per_item, 1 / 3)


def test_features_that_training_lacks_say_nothing():
    """Hypothesis 0 has many words, so each unseen one would speak for the two others."""
    long = [" ".join(["m", *(f"{letter}{n}" for letter in "abcdefghijklm")]) for n in range(7)]
    assert metrics.probe_accuracy([[text, "n", "o"] for text in long]).mean == 1.0


def test_a_hypothesis_that_writes_nothing_is_told():
    assert metrics.probe_accuracy([["a house", "a house", " "]] * 7).mean == pytest.approx(2 / 3)


def test_naive_bayes_by_hand():
    """Two folds of one item each."""
    score = metrics.probe_accuracy([["x y", "z", "y"], ["y", "x", "z z"]])
    # From the second item, with p(f | k) = (n + 1) / Σ (n + 1) over x, y, (x y), z and (z z):
    # Sums: 6, 6, 7. "x y": (1·2/36, 2·1/36, 1·1/49) -> 0 and 1 tie; "z": 1/6, 1/6, 2/7 -> 2, wrong; "y": 2/6 -> 0,
    # wrong. From the first item, sums 8, 6, 6. "y": 2/8, 1/6, 2/6 -> 2, wrong; "x": 2/8, 1/6, 1/6 -> 0, wrong;
    # "z z": 1/8, 2/6, 1/6, since (z z) is unseen -> 1, wrong.
    assert score.per_item.tolist() == pytest.approx([0.5 / 3, 0.0])


def test_refusals():
    with pytest.raises(ValueError, match=r"the same number of answers for every item, got items with \[1, 2\]"):
        metrics.probe_accuracy([["a"], ["a", "b"]])
    with pytest.raises(ValueError, match="at least 2 items with at least 2 answers each, got 1 with 3"):
        metrics.probe_accuracy([["a", "b", "c"]])
    with pytest.raises(ValueError, match="got 2 with 1"):
        metrics.probe_accuracy([["a"], ["b"]])
