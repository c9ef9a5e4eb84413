"""Metrics of K translations with several references: quality, coverage of references, and similarity of the answers.

Every function takes `answers` (N items of K texts), most also take `references` (N items of R texts), and all return a
`Score` on sacrebleu's scale of 0 to 100. K and R may differ between items unless stated otherwise. A blank answer
scores 0 against references; blank references are ignored.

Sentence-level metrics average over items, so that each item has a value; `corpus_` metrics first pool n-gram counts
over all items, as published tables do.
"""

from collections.abc import Sequence

import numpy as np

from mcl_jax.extras import needed_for
from mcl_jax.metrics.bleu import BleuScores, bleu_scores, corpus_score, pooled_bleu
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
    """Computes sentence BLEU of every answer against all references of its item, as `sacrebleu.sentence_bleu` does.

    Args:
      answers: N items of K texts.
      references: N items of R texts.
      tokenization: splits texts into words; None means 13a with case.
    Returns:
      N vectors [K], 0 to 100; for `score.oracle` and `score.average`.
    Raises:
      ValueError: if items do not match, or lack an answer or a reference.
    """
    check_pairs(answers, references)
    tokenization = tokenization or Tokenization()
    return [bleu_scores(a, r, tokenization).values.copy() for a, r in zip(answers, references, strict=True)]


def sentence_chrf(answers: Texts, references: Texts, tokenization: Tokenization | None = None) -> list[np.ndarray]:
    """Computes sacrebleu's chrF2 of every answer: F_β of character n-grams up to 6, β = 2, best over the references.

    Only `tokenization.lowercase` matters. Arguments, returns and errors are as in `sentence_bleu`.
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
    """Averages sentence BLEU of each item's best answer: (1/N) Σ_n max_k BLEU(a_nk; r_n). See `sentence_bleu`."""
    return oracle(sentence_bleu(answers, references, tokenization), bootstrap)


def mean_bleu(
    answers: Texts, references: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """Averages sentence BLEU over each item's answers, then over items. See `sentence_bleu` for the arguments."""
    return average(sentence_bleu(answers, references, tokenization), bootstrap)


def oracle_bleu_per_reference(
    answers: Texts, references: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """Averages sentence BLEU of the best answer for each reference: (1/N) Σ_n (1/R) Σ_m max_k BLEU(a_nk; r_nm).

    This is the score for a user who has one of the right answers in mind: K answers that all follow one reference score
    low for the others, which `oracle_bleu` does not notice. Arguments and errors are as in `sentence_bleu`.
    """
    check_pairs(answers, references)
    tokenization = tokenization or Tokenization()

    def best(texts: Sequence[str], reference: str) -> float:
        return bleu_scores(texts, [reference], tokenization).values.max()

    return (bootstrap or Bootstrap()).mean(
        [np.mean([best(a, one) for one in written(r)]) for a, r in zip(answers, references, strict=True)]
    )


def oracle_chrf(
    answers: Texts, references: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """Averages chrF2 of each item's best answer. See `sentence_bleu` for the arguments."""
    return oracle(sentence_chrf(answers, references, tokenization), bootstrap)


def mean_chrf(
    answers: Texts, references: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """Averages chrF2 over each item's answers, then over items. See `sentence_bleu` for the arguments."""
    return average(sentence_chrf(answers, references, tokenization), bootstrap)


def corpus_oracle_bleu(
    answers: Texts, references: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """Computes corpus BLEU of an oracle's answers: for each item, the one with the highest sentence BLEU.

    Arguments and errors are as in `sentence_bleu`.
    """
    check_pairs(answers, references)
    pooled = []
    for a, r in zip(answers, references, strict=True):
        scores = bleu_scores(a, r, tokenization or Tokenization())
        pooled.append(scores.statistics[[scores.values.argmax()]])
    return corpus_score(np.array(pooled), bootstrap or Bootstrap())


def corpus_bleu_of_each(answers: Texts, references: Texts, tokenization: Tokenization | None = None) -> np.ndarray:
    """Computes corpus BLEU of each hypothesis [K], which pools the k-th answers of all items.

    This is the score of a translation system that has hypothesis k alone. Arguments are as in `sentence_bleu`.

    Raises:
      ValueError: as `sentence_bleu` does, or if items have different numbers of answers.
    """
    check_pairs(answers, references)
    if len(sizes := sorted({len(a) for a in answers})) > 1:
        raise ValueError(f"every item must have the same number of answers, got items with {sizes}")
    scores = [bleu_scores(a, r, tokenization or Tokenization()) for a, r in zip(answers, references, strict=True)]
    return np.array([pooled_bleu(pooled) for pooled in sum(one.statistics for one in scores)])


# --- References: leave one out, coverage ------------------------------------------------------------------------------


def leave_one_out_bleu(
    answers: Texts, references: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """Averages sentence BLEU against all references but one over the one left out: mean_{m,k} BLEU(a_k; r without r_m).

    The scale is that of a human translation that is scored against the R − 1 others. An item with a single reference
    has NaN. Arguments and errors are as in `sentence_bleu`.
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
    """Computes multi-reference BLEU as published: (1/R) Σ_m corpus BLEU of all answers against r without r_m.

    Arguments are as in `sentence_bleu`. Source: Shen et al. (2019), and fairseq's `examples/translation_moe`.

    Raises:
      ValueError: as `sentence_bleu` does, or if items have different numbers of references or fewer than 2.
    """
    check_pairs(answers, references)
    sizes = sorted({len(written(r)) for r in references})
    if len(sizes) > 1 or sizes[0] < 2:
        raise ValueError(f"every item must have the same number of references, at least 2, got items with {sizes}")
    held_out = _leave_one_out(answers, references, tokenization)
    pooled = [[scores.statistics.sum(axis=0) for scores in item] for item in held_out]
    return corpus_score(np.array(pooled), bootstrap or Bootstrap())


def _leave_one_out(answers: Texts, references: Texts, tokenization: Tokenization | None) -> list[list[BleuScores]]:
    """Returns the scores without each reference, [N][R]; [] for an item with a single reference."""
    tokenization = tokenization or Tokenization()
    return [
        [bleu_scores(a, others, tokenization) for others in others_of(written(r)) if others]
        for a, r in zip(answers, references, strict=True)
    ]


def references_covered(
    answers: Texts, references: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """Counts the references of an item that are the best match of some answer: |{argmax_m BLEU(a_k; r_m) : k}|.

    BLEU of a match adds 1 to the counts of orders 2 to 4. Equal references count once. A tie goes to the first
    reference (fairseq draws one), and an answer that shares no word with any reference matches none.
    Arguments and errors are as in `sentence_bleu`. Source: Ott et al. (2018), "Analyzing uncertainty in neural machine
    translation"; Shen et al. (2019).
    """
    covered = _covered(answers, references, tokenization)
    return (bootstrap or Bootstrap()).mean([float(count) for count, _ in covered])


def reference_coverage(
    answers: Texts, references: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """Divides `references_covered` by the number of distinct references: 0 to 1, at most min(K, R) / R."""
    covered = _covered(answers, references, tokenization)
    return (bootstrap or Bootstrap()).mean([count / total for count, total in covered])


def _covered(answers: Texts, references: Texts, tokenization: Tokenization | None) -> list[tuple[int, int]]:
    """Returns (covered references, distinct references) of each item."""
    check_pairs(answers, references)
    tokenization = tokenization or Tokenization()
    counts = []
    for a, r in zip(answers, references, strict=True):
        distinct = list(dict.fromkeys(text.strip() for text in written(r)))
        match = np.stack([bleu_scores(a, [one], tokenization, "add-k").values for one in distinct])  # [R, K]
        best, matched = match.argmax(axis=0), match.max(axis=0) > 0.0
        counts.append((len(set(best[matched].tolist())), len(distinct)))
    return counts


# --- Answers among themselves -----------------------------------------------------------------------------------------


def pairwise_bleu(
    answers: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """Computes the similarity of an item's answers: mean_{j≠k} BLEU(a_j; a_k), sentence BLEU; lower is more diverse.

    An item with one answer has NaN. Two blank answers are equal (100); a blank and another one are not (0).

    Args:
      answers: N items of K texts.
      tokenization: splits texts into words; None means 13a with case.
      bootstrap: computes the interval; None means 1000 resamples at 95 %.
    Raises:
      ValueError: if there are no items, or an item has no answers.

    Source: Shen et al. (2019), who pool the corpus: see `corpus_pairwise_bleu`.
    """
    pairs = _pairs(answers, tokenization)
    return (bootstrap or Bootstrap()).mean([p.values.mean() if len(p.values) else np.nan for p in pairs])


def corpus_pairwise_bleu(
    answers: Texts, tokenization: Tokenization | None = None, bootstrap: Bootstrap | None = None
) -> Score:
    """Computes pairwise BLEU as published: corpus BLEU of all ordered pairs of answers of the same item.

    Arguments, errors and blank answers are as in `pairwise_bleu`. Source: Shen et al. (2019), and fairseq's
    `examples/translation_moe`.
    """
    pairs = _pairs(answers, tokenization)
    pooled = [[p.statistics.sum(axis=0) if len(p.values) else np.full(10, np.nan)] for p in pairs]
    return corpus_score(np.array(pooled), bootstrap or Bootstrap())


def _pairs(answers: Texts, tokenization: Tokenization | None) -> list[BleuScores]:
    """Returns the scores of all K (K − 1) ordered pairs of answers of each item."""
    check_answers(answers)
    tokenization = tokenization or Tokenization()
    pairs = []
    for texts in map(mark_blanks, answers):
        against = [bleu_scores(texts, [text], tokenization) for text in texts]
        other = ~np.eye(len(texts), dtype=bool)
        values, statistics = np.stack([s.values for s in against]), np.stack([s.statistics for s in against])
        pairs.append(BleuScores(values[other], statistics[other]))
    return pairs
