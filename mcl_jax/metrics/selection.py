"""One answer of K without references: the one closest to all others."""

from collections.abc import Callable, Sequence

import numpy as np

from mcl_jax.metrics.text import Texts, check_answers
from mcl_jax.metrics.translation import sentence_chrf

# (N items of K answers, N items of R references) -> N vectors [K]
Utility = Callable[[Texts, Texts], list[np.ndarray]]


def minimum_bayes_risk(
    answers: Texts, weights: Sequence[Sequence[float]] | None = None, utility: Utility = sentence_chrf
) -> list[int]:
    """Of each item, argmax_k Σ_j w_j u(a_k; a_j): the answer of highest expected utility, the answers being the belief.

    A blank answer is no reference for the others, and is chosen only if all are blank (then the first).

    Args:
        answers: N items of K texts.
        weights: N items of K weights, such as probabilities of the answers; equal if None.
        utility: of answers against one reference each, such as `sentence_chrf` or `sentence_bleu`.

    Returns:
        N numbers from 0 to K − 1; ties go to the first.

    Raises:
        ValueError: for no items, an item without answers, or weights that are negative or of other items.

    Source: Eikema and Aziz (2020), "Is MAP decoding all you need?".
    """
    check_answers(answers)
    weights = [np.ones(len(texts)) for texts in answers] if weights is None else [np.asarray(w, float) for w in weights]
    if [len(w) for w in weights] != [len(texts) for texts in answers] or any(not (w >= 0).all() for w in weights):
        raise ValueError("weights must be as many as the answers of each item, numbers of at least 0")
    return [_best(texts, w, utility) for texts, w in zip(answers, weights, strict=True)]


def _best(texts: Sequence[str], weights: np.ndarray, utility: Utility) -> int:
    written = [j for j, text in enumerate(texts) if text.strip()]
    if not written:
        return 0
    expected = sum(weights[j] * utility([texts], [[texts[j]]])[0] for j in written)
    return max(written, key=lambda k: (expected[k], -k))
