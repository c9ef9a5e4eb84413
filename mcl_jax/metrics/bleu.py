"""BLEU by sacrebleu: many answers against the same references, and statistics pooled over items.

BLEU = 100 · BP · exp((1/4) Σ_{n≤4} log p_n), p_n clipped n-gram precisions, BP = exp(min(0, 1 − ref_len / sys_len)).
Sentence BLEU here is `sacrebleu.sentence_bleu`: exponential smoothing, and only the orders that fit into the answer.
Source: Papineni et al. (2002); Post (2018), "A call for clarity in reporting BLEU scores".
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mcl_jax.extras import needed_for
from mcl_jax.metrics.score import Bootstrap, Score
from mcl_jax.metrics.text import Tokenization, written

ORDER = 4
REMEMBERED = 2**15  # cached sets of answers and references, since sentence and corpus metrics use the same ones


@dataclass(frozen=True)
class BleuScores:
    """Sentence BLEU of K answers, with its statistics.

    Attributes:
      values: BLEU, [K], 0 to 100.
      statistics: [K, 10]: lengths of the answer and of the nearest reference, then numbers of matching and of all
        n-grams of orders 1 to 4. Their sums give corpus BLEU.
    """

    values: np.ndarray
    statistics: np.ndarray


def bleu_scores(
    answers: Sequence[str], references: Sequence[str], tokenization: Tokenization, smooth_method: str = "exp"
) -> BleuScores:
    """Computes sentence BLEU of each answer against all references together; blank references are ignored.

    Args:
      answers: K texts; a blank one scores 0.
      references: R texts, not all blank. Their n-grams are counted once.
      tokenization: splits texts into words.
      smooth_method: sacrebleu's smoothing: "exp", "add-k" (adds 1 to the orders above 1) or "none".
    """
    return _bleu_scores(tuple(answers), tuple(written(references)), tokenization, smooth_method)


@functools.lru_cache(maxsize=REMEMBERED)
def _bleu_scores(
    answers: tuple[str, ...], references: tuple[str, ...], tokenization: Tokenization, smooth_method: str
) -> BleuScores:
    with needed_for("scoring texts", "metrics"):
        from sacrebleu.metrics import BLEU
    scorer = BLEU(
        tokenize=tokenization.tokenize,
        lowercase=tokenization.lowercase,
        smooth_method=smooth_method,
        effective_order=True,
        references=[[reference] for reference in references],
    )
    scores = [scorer.corpus_score([answer], None) for answer in answers]
    statistics = [[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in scores]
    return BleuScores(np.array([s.score for s in scores]), np.array(statistics, np.float64))


def pooled_bleu(totals: np.ndarray, smooth_method: str = "exp") -> float:
    """Computes corpus BLEU, 0 to 100, from `statistics` [10] that were summed over answers.

    It equals `sacrebleu.corpus_bleu`, except that it uses only the existing orders if no answer has four words:
    sacrebleu's 0 would make a corpus of equal short answers look diverse.
    """
    from sacrebleu.metrics import BLEU

    sys_len, ref_len, *counts = np.rint(totals).astype(int).tolist()
    return BLEU.compute_bleu(
        counts[:ORDER],
        counts[ORDER:],
        sys_len,
        ref_len,
        smooth_method=smooth_method,
        effective_order=True,
    ).score


def corpus_score(per_item: np.ndarray, bootstrap: Bootstrap, smooth_method: str = "exp") -> Score:
    """Computes (1/S) Σ_s BLEU of all items pooled, where s are parallel systems or sets of references.

    Args:
      per_item: `statistics` [N, S, 10], NaN for items that do not count. The value of each item pools only its own
        answers.
      bootstrap: computes the interval, by pooling the statistics of resampled items.
      smooth_method: sacrebleu's smoothing.
    """

    def mean_bleu(sums: np.ndarray) -> float:
        return np.mean([pooled_bleu(s, smooth_method) for s in sums])

    counted = ~np.isnan(per_item).any(axis=(1, 2))
    own = [mean_bleu(sums) if counts else np.nan for sums, counts in zip(per_item, counted, strict=True)]

    def value(sums: np.ndarray, num_items: int) -> np.ndarray:
        flat = sums.reshape(-1, *per_item.shape[1:])
        return np.array([mean_bleu(s) for s in flat]).reshape(sums.shape[:-2])

    return bootstrap.pooled(own, per_item[counted], value)
