"""BLEU by sacrebleu, of many answers against the same references, and of statistics pooled over items.

BLEU = 100 · BP · exp((1/4) Σ_{n≤4} log p_n), p_n clipped n-gram precisions, BP = exp(min(0, 1 − ref_len / sys_len)).
Sentence BLEU here is `sacrebleu.sentence_bleu`: exponential smoothing, and only orders that the answer is long enough
for. Source: Papineni et al. (2002); Post (2018), "A call for clarity in reporting BLEU scores".
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mcl_jax.extras import needed_for
from mcl_jax.metrics.score import Bootstrap, Score
from mcl_jax.metrics.text import Tokenization, written

ORDER = 4
REMEMBERED = 2**15  # sets of answers and references: sentence and corpus metrics ask for the same ones


@dataclass(frozen=True)
class BleuScores:
    """Sentence BLEU of K answers, and what it is made of.

    Attributes:
        values: [K], 0 to 100.
        statistics: [K, 10]: length of the answer and of the nearest reference, then matching n-grams and all n-grams of
            orders 1 to 4. Sums of them give corpus BLEU.
    """

    values: np.ndarray
    statistics: np.ndarray


def bleu_scores(
    answers: Sequence[str], references: Sequence[str], tokenization: Tokenization, smooth_method: str = "exp"
) -> BleuScores:
    """Sentence BLEU of each answer against all the references at once; blank references are left out.

    Args:
        answers: K texts; a blank one scores 0.
        references: R texts, not all blank. Their n-grams are counted once.
        tokenization: how text becomes words.
        smooth_method: of sacrebleu: "exp", "add-k" (1 is added to the orders above 1) or "none".
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
    """Corpus BLEU, 0 to 100, of `statistics` [10] that were added up over answers.

    It is `sacrebleu.corpus_bleu`, but where no answer at all has four words it takes the orders there are: sacrebleu's
    0 would call a corpus of equal short answers a diverse one.
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
    """(1/S) Σ_s BLEU of all items pooled, where s are parallel systems or sets of references.

    Args:
        per_item: `statistics` [N, S, 10], NaN for items that do not count. The value reported for each item pools its
            own answers alone.
        bootstrap: of the interval: statistics of resampled items are pooled anew.
        smooth_method: of sacrebleu.
    """
    mean_bleu = lambda sums: np.mean([pooled_bleu(s, smooth_method) for s in sums])
    counted = ~np.isnan(per_item).any(axis=(1, 2))
    own = [mean_bleu(sums) if counts else np.nan for sums, counts in zip(per_item, counted, strict=True)]

    def value(sums: np.ndarray, num_items: int) -> np.ndarray:
        flat = sums.reshape(-1, *per_item.shape[1:])
        return np.array([mean_bleu(s) for s in flat]).reshape(sums.shape[:-2])

    return bootstrap.pooled(own, per_item[counted], value)
