"""Metrics of K translations with several references each: quality, coverage, and how alike the answers are.

Every function takes `answers` (N items of K texts) and most of them `references` (N items of R texts), and returns a
`Score` on sacrebleu's scale of 0 to 100. K and R may differ between items, except where said. A blank answer scores 0
against references; blank references are left out.

Sentence-level metrics average over items, so that each item has a value and an interval is easy; `corpus_` metrics
pool n-gram counts over all items first, as published tables do.
"""

from collections.abc import Sequence

import numpy as np

from mcl_jax.extras import needed_for
from mcl_jax.metrics.bleu import BleuScores, bleu_scores, corpus_score
from mcl_jax.metrics.score import Bootstrap, Score, average, oracle
from mcl_jax.metrics.text import (
    Texts,
    Tokenization,
    check_answers,
    check_pairs,
    mark_blanks,
    others_of,
    written,
)

# --- Quality ----------------------------------------------------------------------------------------------------------


def sentence_bleu(answers: Texts, references: Texts, tokenization: Tokenization | None = None) -> list[np.ndarray]:
    """Sentence BLEU of every answer against all references of its item, as `sacrebleu.sentence_bleu`.

    Args:
        answers: N items of K texts.
        references: N items of R texts.
        tokenization: how text becomes words; 13a with case if None.

    Returns:
        N vectors [K], 0 to 100; for `score.oracle` and `score.average`.

    Raises:
        ValueError: for items that do not match, or without an answer or a reference.
    """
    check_pairs(answers, references)
    tokenization = tokenization or Tokenization()
    return [bleu_scores(a, r, tokenization).values.copy() for a, r in zip(answers, references, strict=True)]


def sentence_chrf(answers: Texts, references: Texts, tokenization: Tokenization | None = None) -> list[np.ndarray]:
    """chrF2 of every answer: F_β of character n-grams up to 6, β = 2, best over the references, as sacrebleu's.

    Of `tokenization` only `lowercase` matters. Arguments, returns and errors as in `sentence_bleu`.
    Source: Popović (2015), "chrF: character n-gram F-score for automatic MT evaluation".
    """
    check_pairs(answers, references)
    lowercase = (tokenization or Tokenization()).lowercase
    return [_chrf(a, written(r), lowercase) for a, r in zip(answers, references, strict=True)]


def _chrf(answers: Sequence[str], references: Sequence[str], lowercase: bool) -> np.ndarray:
    with needed_for("scoring texts", "metrics"):
        from sacrebleu.metrics import CHRF
    scorer = CHRF(lowercase=lowercase, references=[[reference] for reference in references])
    return np.array([scorer.corpus_score([answer], None).score for answer in answers])


def oracle_bleu(
    answers: Texts, references: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """Sentence BLEU of each item's best answer: (1/N) Σ_n max_k BLEU(a_nk; r_n); arguments as in `sentence_bleu`."""
    return oracle(sentence_bleu(answers, references, tokenization), bootstrap)


def mean_bleu(
    answers: Texts, references: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """Sentence BLEU averaged over each item's answers, then over items; arguments as in `sentence_bleu`."""
    return average(sentence_bleu(answers, references, tokenization), bootstrap)


def oracle_bleu_per_reference(
    answers: Texts, references: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """Sentence BLEU of the best answer to each reference alone: (1/N) Σ_n (1/R) Σ_m max_k BLEU(a_nk; r_nm).

    What somebody gets who has one of the right answers in mind; K answers that all follow one reference do not score
    for the others, which `oracle_bleu` does not notice. Arguments and errors as in `sentence_bleu`.
    """
    check_pairs(answers, references)
    tokenization = tokenization or Tokenization()
    best = lambda a, one: bleu_scores(a, [one], tokenization).values.max()
    return (bootstrap or Bootstrap()).mean(
        [np.mean([best(a, one) for one in written(r)]) for a, r in zip(answers, references, strict=True)]
    )


def oracle_chrf(
    answers: Texts, references: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """chrF2 of each item's best answer; arguments as in `sentence_bleu`."""
    return oracle(sentence_chrf(answers, references, tokenization), bootstrap)


def mean_chrf(
    answers: Texts, references: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """chrF2 averaged over each item's answers, then over items; arguments as in `sentence_bleu`."""
    return average(sentence_chrf(answers, references, tokenization), bootstrap)


def corpus_oracle_bleu(
    answers: Texts, references: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """Corpus BLEU of the answers that an oracle picks, for each item the one of the highest sentence BLEU.

    Arguments and errors as in `sentence_bleu`.
    """
    check_pairs(answers, references)
    pooled = []
    for a, r in zip(answers, references, strict=True):
        scores = bleu_scores(a, r, tokenization or Tokenization())
        pooled.append(scores.statistics[[scores.values.argmax()]])
    return corpus_score(np.array(pooled), bootstrap or Bootstrap())


# --- References: leave one out, coverage ------------------------------------------------------------------------------


def leave_one_out_bleu(
    answers: Texts, references: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """Sentence BLEU against all references but one, averaged over the one: mean_{m,k} BLEU(a_k; r without r_m).

    It is on the scale that a human translation, scored against the R − 1 others, is on. NaN for an item with a single
    reference. Arguments and errors as in `sentence_bleu`.
    Source: Shen et al. (2019), "Mixture models for diverse machine translation: tricks of the trade", who pool the
    corpus: see `corpus_leave_one_out_bleu`.
    """
    check_pairs(answers, references)
    held_out = _leave_one_out(answers, references, tokenization)
    return (bootstrap or Bootstrap()).mean(
        [np.mean([scores.values for scores in item]) if item else np.nan for item in held_out]
    )


def corpus_leave_one_out_bleu(
    answers: Texts, references: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """Multi-reference BLEU as published: (1/R) Σ_m corpus BLEU of all answers against the references without r_m.

    Arguments as in `sentence_bleu`. Source: Shen et al. (2019), and fairseq's `examples/translation_moe`.

    Raises:
        ValueError: also if not every item has the same number of references, at least 2.
    """
    check_pairs(answers, references)
    sizes = sorted({len(written(r)) for r in references})
    if len(sizes) > 1 or sizes[0] < 2:
        raise ValueError(f"every item must have the same number of references, at least 2, got items with {sizes}")
    held_out = _leave_one_out(answers, references, tokenization)
    pooled = [[scores.statistics.sum(axis=0) for scores in item] for item in held_out]
    return corpus_score(np.array(pooled), bootstrap or Bootstrap())


def _leave_one_out(answers: Texts, references: Texts, tokenization: Tokenization | None) -> list[list[BleuScores]]:
    """Of each item and reference, the scores without it [N][R]; [] for an item with a single reference."""
    tokenization = tokenization or Tokenization()
    return [
        [bleu_scores(a, others, tokenization) for others in others_of(written(r)) if others]
        for a, r in zip(answers, references, strict=True)
    ]


def references_covered(
    answers: Texts, references: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """How many references of an item are the best match of some answer: |{argmax_m BLEU(a_k; r_m) : k}|.

    BLEU of a match adds 1 to the counts of orders 2 to 4. Equal references count once. A tie goes to the first
    reference (fairseq draws one), and an answer that shares no word with any reference matches none.
    Arguments and errors as in `sentence_bleu`. Source: Ott et al. (2018), "Analyzing uncertainty in neural machine
    translation"; Shen et al. (2019).
    """
    covered = _covered(answers, references, tokenization)
    return (bootstrap or Bootstrap()).mean([float(count) for count, _ in covered])


def reference_coverage(
    answers: Texts, references: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """`references_covered` as a share, 0 to 1, of an item's distinct references; at most min(K, R) / R."""
    covered = _covered(answers, references, tokenization)
    return (bootstrap or Bootstrap()).mean([count / total for count, total in covered])


def _covered(answers: Texts, references: Texts, tokenization: Tokenization | None) -> list[tuple[int, int]]:
    """(covered, distinct references) of each item."""
    check_pairs(answers, references)
    tokenization = tokenization or Tokenization()
    counts = []
    for a, r in zip(answers, references, strict=True):
        distinct = list(dict.fromkeys(text.strip() for text in written(r)))
        match = np.stack([bleu_scores(a, [one], tokenization, "add-k").values for one in distinct])  # [R, K]
        best, found = match.argmax(axis=0), match.max(axis=0) > 0.0
        counts.append((len(set(best[found].tolist())), len(distinct)))
    return counts


# --- Answers among themselves -----------------------------------------------------------------------------------------


def pairwise_bleu(
    answers: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """How alike an item's answers are, lower is more diverse: mean_{j≠k} BLEU(a_j; a_k), sentence BLEU.

    NaN for an item with one answer. Two blank answers are the same answer (100), a blank and another one are not (0).

    Args:
        answers: N items of K texts.
        tokenization: how text becomes words; 13a with case if None.
        bootstrap: of the interval; 1000 resamples at 95 % if None.

    Raises:
        ValueError: for no items, or an item without answers.

    Source: Shen et al. (2019), who pool the corpus: see `corpus_pairwise_bleu`.
    """
    pairs = _pairs(answers, tokenization)
    return (bootstrap or Bootstrap()).mean([p.values.mean() if len(p.values) else np.nan for p in pairs])


def corpus_pairwise_bleu(
    answers: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """Pairwise BLEU as published: corpus BLEU of all ordered pairs of answers of the same item, pooled.

    Arguments, errors and blank answers as in `pairwise_bleu`. Source: Shen et al. (2019), and fairseq's
    `examples/translation_moe`.
    """
    pairs = _pairs(answers, tokenization)
    pooled = [[p.statistics.sum(axis=0) if len(p.values) else np.full(10, np.nan)] for p in pairs]
    return corpus_score(np.array(pooled), bootstrap or Bootstrap())


def _pairs(answers: Texts, tokenization: Tokenization | None) -> list[BleuScores]:
    """Of each item, the scores of all ordered pairs of its answers: K (K − 1) of them."""
    check_answers(answers)
    tokenization = tokenization or Tokenization()
    pairs = []
    for texts in map(mark_blanks, answers):
        against = [bleu_scores(texts, [text], tokenization) for text in texts]
        other = ~np.eye(len(texts), dtype=bool)
        values, statistics = np.stack([s.values for s in against]), np.stack([s.statistics for s in against])
        pairs.append(BleuScores(values[other], statistics[other]))
    return pairs
