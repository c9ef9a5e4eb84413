"""Word error rates, by hand."""

import numpy as np
import pytest

from mcl_jax import metrics
from mcl_jax.metrics.word_errors import spoken_words, word_edits

ANSWERS = [
    ["A red dog!", "un perro azul", "red dogs"],
    ["a bird", "the small bird is", ""],
]
REFERENCES = [
    ["a red dog", "un perro rojo muy grande"],
    ["The small bird.", "el pájaro"],
]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A “Stop” SIGN—stop, here!", ["a", "stop", "sign", "stop", "here"]),
        ("L’oiseau, l'île_verte", ["l", "oiseau", "l", "île", "verte"]),
        ("Straße pa\u0301jaro", ["strasse", "pájaro"]),
        ("Зелёная шляпа 3", ["зелёная", "шляпа", "3"]),
        (" … ", []),
    ],
)
def test_words_have_neither_case_nor_punctuation(text, words):
    assert spoken_words(text) == words


@pytest.mark.parametrize(
    ("answer", "reference", "edits"),
    [
        ("", "", 0),
        ("", "a b c", 3),
        ("a b c", "", 3),
        ("a b c", "a c", 1),
        ("b c d e", "a b c", 3),
        ("x b y", "a b c", 2),
    ],
)
def test_edits_are_insertions_deletions_and_replacements(answer, reference, edits):
    assert word_edits(answer.split(), reference.split()) == word_edits(reference.split(), answer.split()) == edits


def test_rates_by_hand():
    """Edits of item 1 to its references are [[0, 5], [3, 3], [2, 5]], and of item 2 [[2, 2], [1, 4], [3, 2]]."""
    found = metrics.oracle_wer(ANSWERS, REFERENCES)
    assert found.per_item == pytest.approx([0, 1 / 3]) and found.mean == pytest.approx(1 / 6)
    assert found.low == 0.0 and found.high == pytest.approx(1 / 3)
    mean = metrics.mean_wer(ANSWERS, REFERENCES)  # item 1: 0/3, 3/5, 2/3; item 2: 2/3, 1/3, and a blank one 3/3
    assert mean.per_item == pytest.approx([5 / 11, 6 / 9]) and mean.mean == pytest.approx((5 + 6) / (11 + 9))
    each = metrics.oracle_wer_per_reference(ANSWERS, REFERENCES)  # item 1: 0/3 and 3/5; item 2: 1/3 and 2/2
    assert each.per_item == pytest.approx([3 / 8, 3 / 5]) and each.mean == pytest.approx(6 / 13)


def test_answers_in_one_language_have_errors_in_the_other():
    alike = [["a red dog", "a red dog"]] * 3
    both = [["a red dog", "un perro rojo"]] * 3
    assert metrics.oracle_wer(alike, both).mean == 0 == metrics.mean_wer(alike, both).mean
    assert metrics.oracle_wer_per_reference(alike, both).mean == 0.5
    assert metrics.oracle_wer_per_reference(both, both).mean == 0


def test_references_without_words_do_not_count():
    found = metrics.oracle_wer([["a dog"], ["a cat"], ["a cow"]], [["a dog", "!"], ["…"], ["a horse"]])
    np.testing.assert_allclose(found.per_item, [0, np.nan, 0.5])
    assert found.mean == 0.25 and found.num_defined == 2
    assert np.isnan(metrics.oracle_wer([["a cat"]], [["…"]]).mean)
    with pytest.raises(ValueError, match="must have the same items, got 1 and 2 items"):
        metrics.mean_wer([["a"]], [["a"], ["b"]])
