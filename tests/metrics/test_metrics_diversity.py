"""Div-n and mBLEU-4: worked examples, pycocoevalcap's values (tests/golden/make_metrics.py), blank answers."""

import json
from math import exp
from pathlib import Path

import numpy as np
import pytest

from mcl_jax import metrics
from mcl_jax.metrics import Tokenization

NONE = Tokenization("none")
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "metrics.json").read_text())


def test_div_n_by_hand():
    answers = [["a b a", "b a c d", "a"], ["x x x x x"], ["a b", "c d e"]]
    np.testing.assert_allclose(metrics.div_n(answers, 1, NONE).per_item, [4 / 8, 1 / 5, 5 / 5])
    np.testing.assert_allclose(metrics.div_n(answers, 2, NONE).per_item, [4 / 8, 1 / 5, 3 / 5])  # ab ba ac cd
    np.testing.assert_allclose(metrics.div_n(answers, 7, NONE).per_item, [0, 0, 0])


def test_div_n_of_words_as_the_tokenizer_has_them():
    answers = [["It's red.", "it's Red"]]
    assert metrics.div_n(answers, 1).mean == 5 / 5  # It's red . it's Red
    assert metrics.div_n(answers, 1, Tokenization(lowercase=True)).mean == 3 / 5
    assert metrics.div_n(answers, 1, Tokenization("none", lowercase=True)).mean == 3 / 4


def test_vocabulary_by_hand():
    score = metrics.vocabulary([["a b a", "b c"], ["", " "], ["c D", "d c"]], NONE)
    assert score.per_item.tolist() == [3.0, 0.0, 3.0]
    assert score.mean == 5.0  # a b c D d
    assert np.isnan([score.low, score.high]).all()
    assert metrics.vocabulary([["D", "d."]], Tokenization(lowercase=True)).mean == 2.0


def test_mbleu_by_hand():
    """Each against both others, BP by the nearest length: e^(1 − 5/4) for "a b c d", 1 and p = 4/5 .. for the first."""
    answers = [
        ["a b c d e", "a b c d", "t u v w x y z"],
        ["a b c d", "a b c d", "a b c d"],
        ["a b", "a b"],
        ["a b c d e"],
    ]
    expected = [((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25 + exp(-0.25)) / 3, 1.0, 1.0, np.nan]
    np.testing.assert_allclose(metrics.mbleu_4(answers, NONE).per_item, expected)


def test_mbleu_is_not_smoothed():
    assert metrics.mbleu_4([["a b c d", "a b c x"]], NONE).mean == 0.0
    assert metrics.corpus_mbleu_4([["a b c d", "a b c x"]], NONE).mean == 0.0


def test_mbleu_is_pycocoevalcaps():
    score = metrics.mbleu_4(GOLDEN["answers"], NONE)
    np.testing.assert_allclose(score.per_item, GOLDEN["mbleu_4"], atol=1e-6)
    assert metrics.corpus_mbleu_4(GOLDEN["answers"], NONE).mean == pytest.approx(GOLDEN["corpus_mbleu_4"], abs=1e-6)
    assert 0.1 < score.mean < 0.9


def test_blank_answers():
    answers = [["", " ", "\n"], ["a b c d", "", "a b c d"], ["", "a", "\t"]]
    np.testing.assert_allclose(metrics.div_n(answers, 1).per_item, [0.0, 4 / 8, 1.0])
    np.testing.assert_allclose(metrics.mbleu_4(answers).per_item, [1.0, 2 / 3, 2 / 3])
    assert metrics.corpus_mbleu_4(answers).per_item[0] == pytest.approx(1.0)


def test_single_answers():
    assert metrics.div_n([["a b a"], ["c"]], 1).mean == pytest.approx((2 / 3 + 1) / 2)
    assert np.isnan(metrics.mbleu_4([["a b"], ["c"]]).mean)
    assert np.isnan(metrics.corpus_mbleu_4([["a b"], ["c"]]).mean)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        metrics.div_n([["a"]], 0)
    with pytest.raises(ValueError, match=r"answers\[1\] must contain at least 1 text"):
        metrics.mbleu_4([["a"], []])
    with pytest.raises(ValueError, match=r"same number of answers, got items with \[1, 2\]"):
        metrics.corpus_mbleu_4([["a"], ["a", "b"]])
