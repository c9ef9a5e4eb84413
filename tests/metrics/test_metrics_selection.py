"""Minimum Bayes risk: worked by hand, and by a matrix of utilities."""

import numpy as np
import pytest

from mcl_jax import metrics


def shared_words(answers, references):
    """Words that an answer shares with the reference."""
    return [
        np.array([float(len(set(a.split()) & set(r[0].split()))) for a in texts])
        for texts, r in zip(answers, references, strict=True)
    ]


def test_the_answer_closest_to_all_is_chosen():
    answers = [["a b x", "a b c", "b c y"], ["u", "u v w", "v q", "w q"]]
    # Σ_j |a_k ∩ a_j| of the first item: 3+2+1, 2+3+2, 1+2+3; of the second: 1+1, 1+3+1+1, 1+2+1, 1+1+2
    assert metrics.minimum_bayes_risk(answers, utility=shared_words) == [1, 1]


def test_weights():
    answers = [["a b x", "a b c", "b c y"]]
    assert metrics.minimum_bayes_risk(answers, [[9.0, 0.5, 1.0]], shared_words) == [0]
    assert metrics.minimum_bayes_risk(answers, [[0.0, 0.1, 1.0]], shared_words) == [2]


def test_by_default_it_is_expected_chrf():
    answers = [["the cat sat on a mat", "the cat sat on the mat", "dogs bark", "a cat sat on the mat"]]
    utility = np.array([metrics.sentence_chrf(answers, [[text]])[0] for text in answers[0]])
    assert metrics.minimum_bayes_risk(answers) == [int(utility.sum(0).argmax())] == [1]


def test_ties_go_to_the_first_and_blanks_last():
    assert metrics.minimum_bayes_risk([["b", "a", "b"], ["", " ", ""], ["", "a"], ["p", "q"]]) == [0, 0, 1, 0]


@pytest.mark.parametrize("weights", [[[1.0]], [[1.0, -1.0]], [[1.0, float("nan")]], [[1.0, 1.0], [1.0, 1.0]]])
def test_refusals(weights):
    with pytest.raises(ValueError, match="every answer needs one weight of at least 0"):
        metrics.minimum_bayes_risk([["a", "b"]], weights)


def test_no_answers_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        metrics.minimum_bayes_risk([[]])
