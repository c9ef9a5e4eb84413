"""A probe of the hypotheses: can a simple classifier tell from the words of an answer which hypothesis wrote it?"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from mcl_jax.metrics.score import Bootstrap, Score
from mcl_jax.metrics.text import Texts, Tokenization, check_answers, mark_blanks

FOLDS = 5
SEED = 0  # of the folds, so that all methods have the same ones
SAME = 1e-9  # two log-likelihoods in nats this close are a tie


def probe_accuracy(
    answers: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """Computes the accuracy with which naive Bayes tells the index k of an answer from its words; chance is 1/K.

    The features are the words and pairs of words that an answer has, each counted once (see Wang and Manning). The
    classifier is multinomial, with one count added to each feature. Items are split into five folds, and the answers
    to a fold are judged by what the other folds teach. So it finds what a hypothesis does everywhere, such as its
    language or style, and not what it says about one item. Features that training lacks say nothing. An answer that
    several hypotheses explain equally well counts as their share of a hit, so equal answers give exactly 1/K.

    The value of an item is the share of its K answers that are told right. The interval resamples items with the
    classifiers as they are.

    Args:
      answers: N items of K texts, the k-th from hypothesis k; blank ones are a word of their own.
      tokenization: splits texts into words; None means 13a with case.
      bootstrap: computes the interval; None means 1000 resamples at 95 %.
    Raises:
      ValueError: if there are fewer than 2 items or answers, or items have different numbers of answers.

    Source: Wang and Manning (2012), "Baselines and bigrams: simple, good sentiment and topic classification".
    """
    num_items, num_hypotheses = _checked(answers)
    features, num_features = _features(answers, tokenization or Tokenization())
    fold = np.random.default_rng(SEED).permutation(num_items) % min(FOLDS, num_items)
    counts = np.zeros((fold.max() + 1, num_hypotheses, num_features), np.float32)  # [folds, K, features]
    for n, texts in enumerate(features):
        for k, present in enumerate(texts):
            counts[fold[n], k, present] += 1.0
    total = counts.sum(axis=0)
    hits = np.zeros(num_items)
    for f, held_out in enumerate(counts):
        weights = _log_probabilities(total - held_out)
        for n in np.flatnonzero(fold == f):
            hits[n] = np.mean([_hit(weights[:, present].sum(axis=1), k) for k, present in enumerate(features[n])])
    return (bootstrap or Bootstrap()).mean(hits)


def _checked(answers: Texts) -> tuple[int, int]:
    """Returns N and K."""
    check_answers(answers)
    sizes = sorted({len(texts) for texts in answers})
    if len(sizes) > 1:
        raise ValueError(f"the probe needs the same number of answers for every item, got items with {sizes}")
    if len(answers) < 2 or sizes[0] < 2:
        raise ValueError(
            f"the probe needs at least 2 items with at least 2 answers each, got {len(answers)} with {sizes[0]}"
        )
    return len(answers), sizes[0]


def _features(answers: Texts, tokenization: Tokenization) -> tuple[list[list[Int[np.ndarray, "F"]]], int]:
    """Returns the indices of the words and pairs of words that each answer has, [N][K], and the number of all."""
    index: dict[str | tuple[str, str], int] = {}

    def of(words: Sequence[str]) -> np.ndarray:
        present = dict.fromkeys((*words, *itertools.pairwise(words)))
        return np.array(sorted(index.setdefault(feature, len(index)) for feature in present), np.int64)

    features = [[of(words) for words in tokenization.words(mark_blanks(texts))] for texts in answers]
    return features, len(index)


def _log_probabilities(counts: Float[np.ndarray, "K F"]) -> Float[np.ndarray, "K F"]:
    """Returns log p(feature | k) in nats; 0 for features that no hypothesis has."""
    smoothed = counts + 1.0
    return np.where(counts.sum(axis=0) > 0, np.log(smoothed / smoothed.sum(axis=1, keepdims=True)), 0.0)


def _hit(log_likelihood: Float[np.ndarray, "K"], k: int) -> float:
    best = log_likelihood >= log_likelihood.max() - SAME
    return float(best[k] / best.sum())
