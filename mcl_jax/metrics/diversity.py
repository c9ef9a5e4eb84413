"""Diversity of an item's K answers by their n-grams, from 0 to 1, and their vocabulary. No references are needed."""

import numpy as np

from mcl_jax.metrics.bleu import BleuScores, bleu_scores, corpus_score
from mcl_jax.metrics.score import Bootstrap, Score
from mcl_jax.metrics.text import Texts, Tokenization, check_answers, mark_blanks, others_of


def div_n(
    answers: Texts, n: int, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """Computes Div-n, the number of distinct n-grams of an item's answers / the number of words in all its answers.

    Higher is more diverse. It is also defined for a single answer. Blank answers have no words; an item without any
    words has 0.

    Args:
      answers: N items of K texts.
      n: length of the n-grams; Div-1 and Div-2 are usual.
      tokenization: splits texts into words; None means 13a with case.
      bootstrap: computes the interval; None means 1000 resamples at 95 %.
    Raises:
      ValueError: if n < 1, there are no items, or an item has no answers.

    Source: Li et al. (2016), "A diversity-promoting objective function"; Shetty et al. (2017), "Speaking the same
    language"; paper, section 5.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    check_answers(answers)
    tokenization = tokenization or Tokenization()
    return (bootstrap or Bootstrap()).mean([_distinct_share(tokenization.words(texts), n) for texts in answers])


def _distinct_share(answers: list[list[str]], n: int) -> float:
    distinct = {tuple(words[i : i + n]) for words in answers for i in range(len(words) - n + 1)}
    return len(distinct) / max(1, sum(map(len, answers)))


def vocabulary(answers: Texts, tokenization: Tokenization | None = None) -> Score:
    """Counts the distinct words in all answers (higher is more diverse), and in the answers of each item.

    The count grows with the number of items, and a resample has fewer distinct ones, so there is no bootstrap interval.

    Args:
      answers: N items of K texts.
      tokenization: splits texts into words; None means 13a with case.
    Raises:
      ValueError: if there are no items, or an item has no answers.
    """
    check_answers(answers)
    tokenization = tokenization or Tokenization()
    words = [{word for text in tokenization.words(texts) for word in text} for texts in answers]
    return Score(np.array([len(own) for own in words], np.float64), float(len(set().union(*words))), np.nan, np.nan)


def mbleu_4(answers: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None) -> Score:
    """Computes mBLEU-4: (1/K) Σ_k BLEU-4(a_k; the item's other answers), 0 to 1, not smoothed; lower is more diverse.

    Answers of fewer than 4 words are compared up to their own length, so that equal ones score 1. An item with one
    answer has NaN. Two blank answers are equal; a blank one has nothing in common with others.

    Args:
      answers: N items of K texts.
      tokenization: splits texts into words; None means 13a with case.
      bootstrap: computes the interval; None means 1000 resamples at 95 %.
    Raises:
      ValueError: if there are no items, or an item has no answers.

    Source: Shetty et al. (2017), "Speaking the same language"; paper, section 5. Captioning tables pool the corpus:
    see `corpus_mbleu_4`.
    """
    mutual = _mutual_bleu(answers, tokenization)
    return (bootstrap or Bootstrap()).mean(
        [np.mean([score.values for score in scores]) / 100.0 if scores else np.nan for scores in mutual]
    )


def corpus_mbleu_4(
    answers: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """Computes mBLEU-4 as in captioning tables: (1/K) Σ_k corpus BLEU-4 of answers k against the others, 0 to 1.

    Arguments and blank answers are as in `mbleu_4`; the result is NaN if K = 1.

    Raises:
      ValueError: as `mbleu_4` does, or if items have different numbers of answers.
    """
    check_answers(answers)
    sizes = sorted({len(texts) for texts in answers})
    if len(sizes) > 1:
        raise ValueError(f"every item must have the same number of answers, got items with {sizes}")
    mutual = _mutual_bleu(answers, tokenization)
    pooled = np.array([[score.statistics[0] for score in scores] or [np.full(10, np.nan)] for scores in mutual])
    score = corpus_score(pooled, bootstrap or Bootstrap(), smooth_method="none")
    return Score(score.per_item / 100.0, score.mean / 100.0, score.low / 100.0, score.high / 100.0)


def _mutual_bleu(answers: Texts, tokenization: Tokenization | None) -> list[list[BleuScores]]:
    """Scores each answer against the item's others, not smoothed, [N][K]; [] for an item with one answer."""
    check_answers(answers)
    tokenization = tokenization or Tokenization()
    return [
        [
            bleu_scores([text], others, tokenization, smooth_method="none")
            for text, others in zip(texts, others_of(texts), strict=True)
            if others
        ]
        for texts in map(mark_blanks, answers)
    ]
