"""Metrics of K captions with several references each, as coco-caption computes them.

`tokenize_captions` makes the words that all metrics here read. The metrics return one value per answer, for
`score.oracle` and `score.average`. CIDEr-D runs from 0 to 10, all others from 0 to 1. METEOR and SPICE are in `java`.

Differences from coco-caption: blank references are ignored, and an answer without words scores 0 (against a reference
without words, coco-caption's ROUGE-L is 1).
"""

import collections
import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mcl_jax.metrics.coco_tokenizer import tokenize
from mcl_jax.metrics.score import Bootstrap, Score
from mcl_jax.metrics.text import Texts, check_pairs, written

ORDER = 4
BETA = 1.2  # in ROUGE-L, recall counts β times as much as precision
SIGMA = 6.0  # in CIDEr-D, standard deviation of the length penalty, in words
TINY, SMALL = 1e-15, 1e-9  # in coco-caption's BLEU: without any n-gram the precision is 1e-6


@dataclass(frozen=True)
class Captions:
    """N items of K answers and R references, as coco-caption's words joined by spaces.

    Attributes:
      answers: N lists of K texts; "" for an answer without words.
      references: N lists of R texts.
    """

    answers: list[list[str]]
    references: list[list[str]]


def tokenize_captions(answers: Texts, references: Texts) -> Captions:
    """Tokenizes as coco-caption does: all references as one file, and the k-th answers of all items as one file.

    Args:
      answers: N items of K texts; K may differ between items.
      references: N items of R texts; blank ones are ignored.
    Returns:
      The tokenized captions.
    Raises:
      ValueError: if items do not match, or lack an answer or a reference.
    """
    check_pairs(answers, references)
    by_rank = [iter(tokenize([texts[k] for texts in answers if k < len(texts)])) for k in range(max(map(len, answers)))]
    return Captions(
        answers=[[next(column) for column in by_rank[: len(texts)]] for texts in answers],
        references=tokenize_references(references),
    )


def tokenize_references(references: Texts) -> list[list[str]]:
    """Tokenizes only references, as `tokenize_captions` does."""
    references = [written(texts) for texts in references]
    lines = iter(tokenize([text for texts in references for text in texts]))
    return [[next(lines) for _ in texts] for texts in references]


# --- Metrics whose value on a corpus is a function of summed counts ---------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """The counts of a metric for each answer, and the function of their sums.

    Attributes:
      counts: N arrays [K, S].
      value: function from sums [..., S] to values [...], 0 to 1.
    """

    counts: list[np.ndarray]
    value: Callable[[np.ndarray], np.ndarray] = dataclasses.field(repr=False)

    def per_answer(self) -> list[np.ndarray]:
        """Returns the values of single answers: N vectors [K]."""
        return [self.value(counts) for counts in self.counts]

    def corpus_oracle(self, bootstrap: Bootstrap | None = None) -> Score:
        """Computes the metric on all items pooled, each with its best answer."""
        return self._pooled([c[[self.value(c).argmax()]] for c in self.counts], bootstrap)

    def corpus_mean(self, bootstrap: Bootstrap | None = None) -> Score:
        """Averages over k the metric on all items pooled, each with its k-th answer: coco-caption's number if K = 1.

        Raises:
          ValueError: if items have different numbers of answers.
        """
        sizes = sorted({len(counts) for counts in self.counts})
        if len(sizes) > 1:
            raise ValueError(f"every item must have the same number of answers, got items with {sizes}")
        return self._pooled(self.counts, bootstrap)

    def _pooled(self, counts: Sequence[np.ndarray], bootstrap: Bootstrap | None) -> Score:
        counts = np.stack(counts)  # [N, systems, S]

        def value(sums: np.ndarray, num_items: int) -> np.ndarray:
            return self.value(sums).mean(axis=-1)

        return (bootstrap or Bootstrap()).pooled(value(counts, 1), counts, value)


def coco_bleu(captions: Captions) -> list[Counts]:
    """Computes coco-caption's BLEU-1, BLEU-2, BLEU-3 and BLEU-4: BP · (Π_{m≤n} p_m)^(1/n), not smoothed.

    An answer of fewer than four words has a BLEU-4 of at most 0.03, even if it is perfect: all four orders count, and
    an order without n-grams has precision 1e-6. Source: Papineni et al. (2002); Chen et al. (2015), "Microsoft COCO
    captions".
    """
    counts = [_bleu_counts(a, r) for a, r in zip(captions.answers, captions.references, strict=True)]
    return [Counts(counts, functools.partial(_bleu, order=order)) for order in range(1, ORDER + 1)]


def _bleu(sums: np.ndarray, order: int) -> np.ndarray:
    length, nearest, matches, total = sums[..., 0], sums[..., 1], sums[..., 2 : 2 + ORDER], sums[..., 2 + ORDER :]
    precision = ((matches + TINY) / (total + SMALL))[..., :order]
    brevity = np.minimum(0.0, 1.0 - (nearest + SMALL) / (length + TINY))
    return precision.prod(axis=-1) ** (1.0 / order) * np.exp(brevity)


def _bleu_counts(answers: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Returns [K, 10]: lengths of answer and nearest reference (the shorter in a tie); matching and all n-grams."""
    lengths = [len(text.split()) for text in references]
    highest = collections.defaultdict(int)  # largest count of an n-gram in any reference
    for text in references:
        for counts in _ngrams(text):
            for gram, count in counts.items():
                highest[gram] = max(highest[gram], count)
    rows = []
    for text in answers:
        ngrams = _ngrams(text)
        matches = [sum(min(count, highest.get(gram, 0)) for gram, count in counts.items()) for counts in ngrams]
        total = [counts.total() for counts in ngrams]
        nearest = min(lengths, key=lambda length: (abs(length - total[0]), length))
        rows.append([total[0], nearest, *matches, *total])
    return np.array(rows, np.float64)


def _ngrams(text: str) -> list[Counter]:
    """Counts the n-grams of a text, for the orders 1 to 4."""
    words = text.split()
    return [Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for n in range(1, ORDER + 1)]


# --- ROUGE-L and CIDEr-D ----------------------------------------------------------------------------------------------


def rouge_l(captions: Captions) -> list[np.ndarray]:
    """Computes ROUGE-L of every answer: F_β of the longest common subsequence; N vectors [K], 0 to 1.

    F = (1 + β²) P R / (R + β² P) with β = 1.2; P and R are each the highest over the references.
    Source: Lin (2004), "ROUGE: a package for automatic evaluation of summaries".
    """
    return [
        np.array([_rouge_l(answer, texts) for answer in answers])
        for answers, texts in zip(captions.answers, captions.references, strict=True)
    ]


def _rouge_l(answer: str, references: Sequence[str]) -> float:
    if not answer:
        return 0.0
    words, others = answer.split(" "), [text.split(" ") for text in references]
    common = [_common_subsequence(words, other) for other in others]
    precision = max(common) / len(words)
    recall = max(length / len(other) for length, other in zip(common, others, strict=True))
    if not precision:
        return 0.0
    return (1.0 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence."""
    row = [0] * (len(second) + 1)  # row[j]: for the words of `first` so far and the first j words of `second`
    for word in first:
        diagonal = 0
        for j, other in enumerate(second, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def cider_d(captions: Captions, split: Sequence[Sequence[str]] | None = None) -> list[np.ndarray]:
    """Computes CIDEr-D of every answer: 10 times the mean over n ≤ 4 and references of

        exp(−(l − l_r)² / 2σ²) · Σ min(g, g_r) g_r / (|g| |g_r|)

    g and g_r are the n-grams' counts times log(N / number of items that have them in a reference), l and l_r are
    lengths, and σ = 6. The N items are the split, and N enters the value: a subset has other values, and a single item
    has 0 whatever the answer is (see `tells_apart`).
    Source: Vedantam et al. (2015), "CIDEr: consensus-based image description evaluation".

    Args:
      captions: the items that have answers.
      split: references of all N items of the split, in coco-caption's words, if only some items have answers.
    Returns:
      N vectors [K], 0 to 10.
    """
    of_references = [[_ngrams(text) for text in texts] for texts in captions.references]
    of_split = of_references if split is None else [[_ngrams(text) for text in texts] for texts in split]
    frequency = _frequency(of_split)

    def rarity(gram: tuple[str, ...]) -> float:
        return math.log(len(of_split) / max(1, frequency[gram]))

    values = []
    for answers, texts in zip(captions.answers, of_references, strict=True):
        vectors = [_TfIdf.of(ngrams, rarity) for ngrams in texts]
        own = [_TfIdf.of(_ngrams(answer), rarity) for answer in answers]
        values.append(np.array([10.0 * np.mean([vector.similarity(other) for other in vectors]) for vector in own]))
    return values


def _frequency(of_split: Sequence[Sequence[list[Counter]]]) -> Counter:
    """Counts the items that have each n-gram in a reference."""
    return Counter(gram for texts in of_split for gram in {g for t in texts for c in t for g in c})


def tells_apart(references: Sequence[Sequence[str]], split: Sequence[Sequence[str]] | None = None) -> bool:
    """Whether some n-gram of the references has a weight; otherwise CIDEr-D is 0 whatever the answers are.

    Args:
      references: references of the items, in coco-caption's words.
      split: as in `cider_d`.
    """
    split = references if split is None else split
    frequency = _frequency([[_ngrams(text) for text in texts] for texts in split])
    grams = {gram for texts in references for text in texts for counts in _ngrams(text) for gram in counts}
    return any(max(1, frequency[gram]) < len(split) for gram in grams)


@dataclass(frozen=True)
class _TfIdf:
    """A caption for CIDEr-D: weights of n-grams and their norm for each order, and the number of words."""

    weights: list[dict[tuple[str, ...], float]]
    norms: list[float]
    length: int

    @classmethod
    def of(cls, ngrams: list[Counter], rarity: Callable[[tuple[str, ...]], float]) -> "_TfIdf":
        weights = [{gram: count * rarity(gram) for gram, count in counts.items()} for counts in ngrams]
        norms = [math.sqrt(sum(weight**2 for weight in w.values())) for w in weights]
        return cls(weights, norms, length=ngrams[0].total())

    def similarity(self, reference: "_TfIdf") -> float:
        cosines = [
            sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in own.items() if gram in theirs)
            / (norm * their_norm or 1.0)
            for own, norm, theirs, their_norm in zip(
                self.weights, self.norms, reference.weights, reference.norms, strict=True
            )
        ]
        return sum(cosines) / ORDER * math.exp(-((self.length - reference.length) ** 2) / (2.0 * SIGMA**2))
