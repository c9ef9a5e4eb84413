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


def test_a_hypothesis_that_writes_nothing_is_told():
    answers = [[a, " ", b] for a, b in texts(np.random.default_rng(3), 29, 2)]
    assert metrics.probe_accuracy(answers).mean > 1 / 3 + 0.2


def test_naive_bayes_by_hand():
    """Two folds of one item: x, (x, y), y and z are seen once each by their hypothesis, and nothing else."""
    score = metrics.probe_accuracy([["x y", "z", "y"], ["y", "x", "z z"]])
    # From the second item, z is unseen but for hypothesis 2: log p(f | k) = log (n + 1) / Σ (n + 1), over y x z (z z).
    # Sums: 5, 5, 6. "x y": (1·2/25, 2·1/25, 1·1/36) -> 0 and 1 tie; "z": 1, 1 of 5 against 2 of 6 -> 2, wrong;
    # "y": 2 of 5 -> 0, wrong.
    # From the first item, over x y (x y) z: sums 7, 5, 5. "y": 2/7, 1/5, 2/5 -> 2, wrong; "x": 2/7 -> 0, wrong;
    # "z" ("z z" is unseen): 1/7, 2/5, 1/5 -> 1, wrong.
    assert score.per_item.tolist() == pytest.approx([0.5 / 3, 0.0])


def test_refusals():
    with pytest.raises(ValueError, match=r"the same number of answers for every item, got items with \[1, 2\]"):
        metrics.probe_accuracy([["a"], ["a", "b"]])
    with pytest.raises(ValueError, match="at least 2 items with at least 2 answers each, got 1 with 3"):
        metrics.probe_accuracy([["a", "b", "c"]])
    with pytest.raises(ValueError, match="got 2 with 1"):
        metrics.probe_accuracy([["a"], ["b"]])
