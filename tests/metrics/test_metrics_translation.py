"""Translation metrics: worked examples, sacrebleu on the same texts, blank and single answers, errors."""

import itertools
from math import exp

import numpy as np
import pytest
import sacrebleu

from mcl_jax import metrics
from mcl_jax.metrics import Bootstrap, Tokenization

NONE = Tokenization("none")
BLANKS = ["", "  ", "\t\n", "\u3000"]

# 5 items, 2 to 4 answers, 2 to 3 references: words of a small vocabulary, so that n-grams do match.
RNG = np.random.default_rng(11)
WORDS = ["the", "house", "is", "red", "Red", "a", "old", "it's", "small,", "big."]
SENTENCE = lambda: " ".join(RNG.choice(WORDS, size=RNG.integers(3, 14)))
ANSWERS = [[SENTENCE() for _ in range(k)] for k in (3, 2, 4, 3, 3)]
REFERENCES = [[SENTENCE() for _ in range(r)] for r in (2, 3, 2, 3, 2)]
EVEN_ANSWERS = [[SENTENCE() for _ in range(3)] for _ in range(7)]
EVEN_REFERENCES = [[SENTENCE() for _ in range(5)] for _ in range(7)]
MANY_ANSWERS = [[SENTENCE() for _ in range(3)] for _ in range(53)]
MANY_REFERENCES = [[SENTENCE() for _ in range(5)] for _ in range(53)]


def bleu(answer, references, **options):
    return sacrebleu.sentence_bleu(answer, references, **options).score


# --- Quality ----------------------------------------------------------------------------------------------------------


def test_bleu_by_hand():
    """Exact; one word short (BP = e^(1 − 5/4)); p = 4/5, 2/4, 1/3 and, smoothed, 1/(2·2) for 4-grams."""
    answers = [["a b c d e", "a b c d", "a b c x e"], ["v w"]]
    references = [["a b c d e"], ["x y z"]]
    expected = [100.0, 100 * exp(-0.25), 100 * (4 / 5 * 2 / 4 * 1 / 3 * 1 / 4) ** 0.25]
    first, second = metrics.sentence_bleu(answers, references, NONE)
    np.testing.assert_allclose(first, expected)
    np.testing.assert_allclose(second, [0.0])
    np.testing.assert_allclose(metrics.oracle_bleu(answers, references, NONE).per_item, [100.0, 0.0])
    np.testing.assert_allclose(metrics.mean_bleu(answers, references, NONE).per_item, [np.mean(expected), 0.0])
    assert metrics.mean_bleu(answers, references, NONE).mean == pytest.approx(np.mean(expected) / 2)


@pytest.mark.parametrize("options", [{}, {"lowercase": True}, {"tokenize": "intl"}, {"tokenize": "char"}])
def test_bleu_is_sacrebleus(options):
    scores = metrics.sentence_bleu(ANSWERS, REFERENCES, Tokenization(**options))
    for values, answers, references in zip(scores, ANSWERS, REFERENCES, strict=True):
        np.testing.assert_allclose(values, [bleu(a, references, **options) for a in answers])


def test_scores_belong_to_the_caller():
    """BLEU is remembered inside: who changes what came back must not change what comes next."""
    first = metrics.sentence_bleu([["a b c", "a"]], [["a b c"]])[0]
    first[:] = -1.0
    assert metrics.sentence_bleu([["a b c", "a"]], [["a b c"]])[0][0] == pytest.approx(100.0)


def test_chrf_is_sacrebleus():
    expected = [
        [sacrebleu.sentence_chrf(a, r).score for a in item] for item, r in zip(ANSWERS, REFERENCES, strict=True)
    ]
    for values, of_item in zip(metrics.sentence_chrf(ANSWERS, REFERENCES), expected, strict=True):
        np.testing.assert_allclose(values, of_item)
    np.testing.assert_allclose(metrics.oracle_chrf(ANSWERS, REFERENCES).per_item, [max(item) for item in expected])
    np.testing.assert_allclose(metrics.mean_chrf(ANSWERS, REFERENCES).per_item, [np.mean(item) for item in expected])
    shouted = metrics.sentence_chrf([["OLD HOUSE"]], [["old house"]], Tokenization(lowercase=True))
    assert shouted[0][0] == pytest.approx(100.0)


def test_chrf_by_hand():
    """ "abc" of "abcd": precision 1 for orders 1 to 3, recall 3/4, 2/3, 1/2; order 4 is in one of them only."""
    recall = (3 / 4 + 2 / 3 + 1 / 2) / 3
    score = metrics.sentence_chrf([["abc"]], [["abcd"]])[0][0]
    assert score == pytest.approx(100 * 5 * recall / (4 + recall))


def test_corpus_bleu_of_the_oracles_answers():
    picks = [max(item, key=lambda a: bleu(a, r)) for item, r in zip(EVEN_ANSWERS, EVEN_REFERENCES, strict=True)]
    expected = sacrebleu.corpus_bleu(picks, list(zip(*EVEN_REFERENCES, strict=True))).score
    score = metrics.corpus_oracle_bleu(EVEN_ANSWERS, EVEN_REFERENCES)
    assert score.mean == pytest.approx(expected)
    assert score.low < score.mean < score.high
    assert score.per_item[3] == pytest.approx(bleu(picks[3], EVEN_REFERENCES[3]))


# --- References -------------------------------------------------------------------------------------------------------


def test_leave_one_out_by_hand():
    """Answer 1 is reference 1: found unless that is the one left out. Against "v w x" alone, "a b" shares nothing."""
    answers, references = [["a b c d", "v w x", "q"]], [["a b c d", "v w x", "a b c"]]
    left = 100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25  # "a b c d" against "v w x", "a b c": p4 = 1/(2·1)
    expected = [[left, 100, 0], [100, 0, 0], [100, 100, 0]]  # rows: reference left out
    score = metrics.leave_one_out_bleu(answers, references, NONE)
    assert score.mean == pytest.approx(np.mean(expected))


def test_leave_one_out_is_sacrebleus():
    score = metrics.leave_one_out_bleu(ANSWERS, REFERENCES)
    for value, answers, references in zip(score.per_item, ANSWERS, REFERENCES, strict=True):
        held_out = itertools.product(answers, range(len(references)))
        assert value == pytest.approx(np.mean([bleu(a, references[:m] + references[m + 1 :]) for a, m in held_out]))


def test_corpus_leave_one_out_is_sacrebleus():
    """As fairseq's translation_moe: all answers of all items in one corpus, one reference stream left out at a time."""
    flat = [a for item in EVEN_ANSWERS for a in item]
    streams = [[item[m] for item in EVEN_REFERENCES for _ in range(3)] for m in range(5)]
    expected = [sacrebleu.corpus_bleu(flat, streams[:m] + streams[m + 1 :]).score for m in range(5)]
    score = metrics.corpus_leave_one_out_bleu(EVEN_ANSWERS, EVEN_REFERENCES)
    assert score.mean == pytest.approx(np.mean(expected))
    assert score.per_item.shape == (7,)


def test_the_corpus_interval_resamples_items():
    """Against sacrebleu on the texts of the items that the seed draws."""
    score = metrics.corpus_pairwise_bleu(EVEN_ANSWERS, bootstrap=Bootstrap(resamples=5, level=0.5, seed=2))
    resampled = []
    for counts in next(Bootstrap(resamples=5, seed=2).counts(7)):
        drawn = np.repeat(np.arange(7), counts.astype(int))
        pairs = [pair for n in drawn for pair in itertools.permutations(EVEN_ANSWERS[n], 2)]
        answers, others = zip(*pairs, strict=True)
        resampled.append(sacrebleu.corpus_bleu(answers, [others]).score)
    np.testing.assert_allclose([score.low, score.high], np.quantile(resampled, [0.25, 0.75]))


def test_references_covered_by_hand():
    references = [["a b c d", "e f g h", "i j k l", "m n o p", "a b c d "]]  # 4 distinct ones
    answers = [["a b c x", "a b c d e", "m n o", "", "z", "i"]]  # best: 1, 1, 4, none, none, 3
    assert metrics.references_covered(answers, references, NONE).per_item.tolist() == [3.0]
    assert metrics.reference_coverage(answers, references, NONE).per_item.tolist() == [3 / 4]


def test_a_tie_goes_to_the_first_reference():
    tie = metrics.references_covered([["a b", "a b q"], ["a b", "b d"]], [["a b q r", "c a b d"]] * 2, NONE)
    assert tie.per_item.tolist() == [1.0, 2.0]


def test_references_covered_matches_with_add_one_bleu():
    """The definition of Shen et al.: 1 is added to the matching and to all n-grams of orders 2 to 4."""

    def add_one(answer, reference):
        counts = sacrebleu.sentence_bleu(answer, [reference], smooth_method="none")
        p = [counts.counts[0] / counts.totals[0]]
        p += [(counts.counts[i] + 1) / (counts.totals[i] + 1) for i in (1, 2, 3)]
        return exp(min(0.0, 1 - counts.ref_len / counts.sys_len)) * np.prod(p) ** 0.25

    score = metrics.references_covered(MANY_ANSWERS, MANY_REFERENCES)
    best = [
        {int(np.argmax([add_one(a, r) for r in references])) for a in answers}
        for answers, references in zip(MANY_ANSWERS, MANY_REFERENCES, strict=True)
    ]
    assert score.per_item.tolist() == [len(covered) for covered in best]
    assert len(set(score.per_item)) > 1


# --- Answers among themselves -----------------------------------------------------------------------------------------


def test_pairwise_bleu_by_hand():
    answers = [["a b c d e", "a b c d", "v w x y"], ["a b", "a b", "a b"], ["a b c"]]
    longer = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25  # the longer against the shorter one; the other way BP = e^(−1/4)
    score = metrics.pairwise_bleu(answers, NONE)
    np.testing.assert_allclose(score.per_item, [100 * (longer + exp(-0.25)) / 6, 100.0, np.nan])
    assert score.mean == pytest.approx((score.per_item[0] + 100.0) / 2)


def test_pairwise_bleu_is_sacrebleus():
    score = metrics.pairwise_bleu(ANSWERS)
    for value, item in zip(score.per_item, ANSWERS, strict=True):
        assert value == pytest.approx(np.mean([bleu(a, [b]) for a, b in itertools.permutations(item, 2)]))


def test_corpus_pairwise_bleu_is_sacrebleus():
    pairs = [pair for item in ANSWERS for pair in itertools.permutations(item, 2)]
    answers, others = zip(*pairs, strict=True)
    score = metrics.corpus_pairwise_bleu([*ANSWERS, ["alone"]])
    assert score.mean == pytest.approx(sacrebleu.corpus_bleu(answers, [others]).score)
    assert np.isnan(score.per_item).tolist() == [False] * 5 + [True]


def test_corpora_of_short_answers_are_not_called_diverse():
    """sacrebleu gives 0 where no answer has four words."""
    assert metrics.corpus_pairwise_bleu([["a b", "a b", "a b"], ["c", "c", "c"]]).mean == pytest.approx(100.0)
    assert metrics.corpus_mbleu_4([["a b", "a b", "a b"], ["c", "c", "c"]]).mean == pytest.approx(1.0)


# --- Blank and single answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", BLANKS)
def test_blank_answers_score_zero(blank):
    answers, references = (
        [[blank, blank, blank], ["a b c d", blank, "e"]],
        [["a b c d", "a b", blank], ["a b c d", "f"]],
    )
    for quality in (metrics.oracle_bleu, metrics.mean_bleu, metrics.oracle_chrf, metrics.corpus_oracle_bleu):
        assert quality(answers, references).per_item[0] == 0.0
    for metric in (metrics.leave_one_out_bleu, metrics.corpus_leave_one_out_bleu, metrics.references_covered):
        assert metric(answers, references).per_item[0] == 0.0
    assert metrics.oracle_bleu(answers, references).per_item[1] == pytest.approx(100.0)
    assert metrics.references_covered(answers, references).per_item[1] == 1.0


@pytest.mark.parametrize("metric", [metrics.pairwise_bleu, metrics.corpus_pairwise_bleu])
def test_blank_answers_are_alike_and_like_nothing_else(metric):
    score = metric([["", "  ", "\n"], ["a b c d", " ", "x"], ["a b c d", "", "a b c d"]])
    np.testing.assert_allclose(score.per_item[:2], [100.0, 0.0])
    assert 0.0 < score.per_item[2] < 100.0


def test_blank_references_are_no_references():
    """As a text of no words, one would be the nearest in length, and no answer would be too short."""
    for metric in (metrics.mean_bleu, metrics.corpus_oracle_bleu, metrics.mean_chrf, metrics.reference_coverage):
        assert metric([["a", "a b c"]], [["a b c d", "  ", ""]]).mean == metric([["a", "a b c"]], [["a b c d"]]).mean


def test_text_that_the_tokenizer_empties():
    assert metrics.mean_bleu([["<skipped>", "a"]], [["<skipped>"]]).mean == 0.0
    assert metrics.pairwise_bleu([["<skipped>", "a"]]).mean == 0.0


def test_single_answers_and_references_have_no_value_where_two_are_needed():
    assert np.isnan(metrics.pairwise_bleu([["a"], ["b"]]).mean)
    assert np.isnan(metrics.corpus_pairwise_bleu([["a"], ["b"]]).mean)
    assert np.isnan(metrics.leave_one_out_bleu([["a", "b"]], [["a", " "]]).mean)


# --- Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "references", "message"),
    [
        ([], [], "at least 1 item"),
        (["a b"], [["a"]], r"answers\[0\] must be a list of texts, got 'a b'"),
        ([["a"], []], [["a"], ["b"]], r"answers\[1\] must contain at least 1 text, got none"),
        ([["a"], ["b", None]], [["a"], ["b"]], r"answers\[1\] must be a list of texts"),
        ([["a"], ["b"]], [["a"]], "same items, got 2 and 1"),
        ([["a"]], [[]], r"references\[0\] must contain at least 1 text"),
        ([["a"], ["b"]], [["a"], [" ", ""]], r"references\[1\] must contain .*not blank, got \[' ', ''\]"),
    ],
)
def test_bad_items_are_refused(answers, references, message):
    for metric in (metrics.oracle_bleu, metrics.mean_chrf, metrics.references_covered, metrics.leave_one_out_bleu):
        with pytest.raises(ValueError, match=message):
            metric(answers, references)


def test_other_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"tokenize must be one of .*got '13b'"):
        Tokenization("13b")
    with pytest.raises(ValueError, match=r"same number of references, at least 2, got items with \[2, 3\]"):
        metrics.corpus_leave_one_out_bleu(ANSWERS, REFERENCES)
    with pytest.raises(ValueError, match=r"at least 2, got items with \[1\]"):
        metrics.corpus_leave_one_out_bleu([["a", "b"]], [["a"]])


def test_the_oracle_of_each_reference_notices_what_is_not_answered():
    first, second, third = "a b c d e", "f g h i j", "k l m n o"
    answers = [[first, first, first], [first, second, second], [third, second, first], ["", " ", "x"]]
    references = [[first, second, third], [first, second, third], [first, second, third], [first, second]]
    found = metrics.oracle_bleu_per_reference(answers, references, NONE)
    np.testing.assert_allclose(found.per_item, [100 / 3, 200 / 3, 100.0, 0.0])
    np.testing.assert_allclose(metrics.oracle_bleu(answers, references, NONE).per_item, [100.0, 100.0, 100.0, 0.0])


def test_corpus_bleu_of_each_hypothesis_is_that_of_sacrebleu():
    answers = [["a cat sat on the mat", "the cat is on a mat"], ["no dogs are allowed here", "dogs are not allowed in"]]
    references = [["the cat sat on the mat", "a cat is on the mat"], ["dogs are not allowed here", "no dogs here"]]
    streams = list(zip(*references, strict=True))
    wanted = [sacrebleu.corpus_bleu(column, streams).score for column in zip(*answers, strict=True)]
    np.testing.assert_allclose(metrics.corpus_bleu_of_each(answers, references), wanted)
    assert wanted[0] != wanted[1]
    with pytest.raises(ValueError, match=r"same number of answers, got items with \[1, 2\]"):
        metrics.corpus_bleu_of_each([answers[0], answers[1][:1]], references)
