"""Selection of one answer of K without references: the one that is closest to all others."""

from collections.abc import Callable, Sequence

import numpy as np

from mcl_jax.metrics.text import Texts, check_answers
from mcl_jax.metrics.translation import sentence_chrf

# (N items of K answers, N items of R references) -> N vectors [K]
Utility = Callable[[Texts, Texts], list[np.ndarray]]


def minimum_bayes_risk(
    answers: Texts, weights: Sequence[Sequence[float]] | None = None, utility: Utility = sentence_chrf
) -> list[int]:
    """Chooses argmax_k Σ_j w_j u(a_k; a_j) for each item: the answer with the highest expected utility.

    A blank answer is not a reference for the others; it is chosen only if all are blank (then the first).

    Args:
      answers: N items of K texts.
      weights: N items of K weights, such as probabilities of the answers; None means equal weights.
      utility: utility of answers against one reference each, such as `sentence_chrf` or `sentence_bleu`.
    Returns:
      N indices from 0 to K − 1; the first answer wins a tie.
    Raises:
      ValueError: if there are no items, an item has no answers, or the weights are negative or do not fit.

    Source: Eikema and Aziz (2020), "Is MAP decoding all you need?".
    """
    check_answers(answers)
    weights = [np.ones(len(texts)) for texts in answers] if weights is None else [np.asarray(w, float) for w in weights]
    if [len(w) for w in weights] != [len(texts) for texts in answers] or any(not (w >= 0).all() for w in weights):
        raise ValueError("every answer needs one weight of at least 0, got other weights")
    return [_best(texts, w, utility) for texts, w in zip(answers, weights, strict=True)]


def _best(texts: Sequence[str], weights: np.ndarray, utility: Utility) -> int:
    written = [j for j, text in enumerate(texts) if text.strip()]
    if not written:
        return 0
    expected = sum(weights[j] * utility([texts], [[texts[j]]])[0] for j in written)
    return max(written, key=lambda k: (expected[k], -k))
