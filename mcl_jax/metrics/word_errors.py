"""Word error rate of K transcripts per item: the edits that turn an answer into a reference, per word of the reference.

    metrics.oracle_wer([["A red dog.", "Un perro"]], [["a red dog", "un perro rojo"]])   # 0: the first answer is right

A text is compared as its words: runs of letters and digits in NFC form, with case folded. So case and punctuation do
not matter; apostrophes and hyphens divide words ("l’oiseau" has two), and accents do matter. Languages that put no
spaces between words (Chinese, Thai) need another metric.

An answer belongs to the reference to which its rate is lowest, so with one reference per language it is compared with
the one in its own language. All rates are pooled over items, as usual: Σ edits / Σ words of the references. 0 is right;
a blank answer has 1, and a wrong one with too many words has more.
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mcl_jax.metrics.score import Bootstrap, Score
from mcl_jax.metrics.text import Texts, check_pairs

WORD = re.compile(r"[^\W_]+")


def spoken_words(text: str) -> list[str]:
    """Returns the words of a text without case and punctuation, by the rule above."""
    return WORD.findall(unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()))


def word_edits(answer: Sequence[str], reference: Sequence[str]) -> int:
    """Counts the words that must be inserted, deleted or replaced to turn an answer into a reference (Levenshtein)."""
    row = list(range(len(reference) + 1))  # edits from the answer so far to each beginning of the reference
    for i, word in enumerate(answer, 1):
        above, row = row, [i]
        for j, wanted in enumerate(reference, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (word != wanted)))
    return row[-1]


def oracle_wer(answers: Texts, references: Texts, bootstrap: Bootstrap | None = None) -> Score:
    """Computes the word error rate of each item's best answer, against the reference that it belongs to.

    Args:
      answers: N items of K texts.
      references: N items of R texts, such as one for each language. Those without words are ignored.
      bootstrap: computes the interval over items; None means 1000 resamples at 95 %.
    Returns:
      The score, lower is better; an item whose references have no words has NaN.
    Raises:
      ValueError: if items do not match, or lack an answer or a reference.
    """

    def best(edits: Float[np.ndarray, "K R"], words: Float[np.ndarray, " R"]) -> tuple[float, float]:
        k, r = np.unravel_index((edits / words).argmin(), edits.shape)
        return edits[k, r], words[r]

    return _pooled(answers, references, best, bootstrap)


def mean_wer(answers: Texts, references: Texts, bootstrap: Bootstrap | None = None) -> Score:
    """Computes the word error rate of all answers, each against the reference that it belongs to.

    Arguments, returns and errors are as in `oracle_wer`.
    """

    def each(edits: Float[np.ndarray, "K R"], words: Float[np.ndarray, " R"]) -> tuple[float, float]:
        own = (edits / words).argmin(1)
        return edits[np.arange(len(edits)), own].mean(), words[own].mean()

    return _pooled(answers, references, each, bootstrap)


def oracle_wer_per_reference(answers: Texts, references: Texts, bootstrap: Bootstrap | None = None) -> Score:
    """Computes the word error rate of the best answer for each reference, over all references.

    This is the rate for a user who wants one of the languages and does not say which: K answers in one language score
    badly for the others, which `oracle_wer` does not notice. Arguments, returns and errors are as in `oracle_wer`.
    """

    def for_each(edits: Float[np.ndarray, "K R"], words: Float[np.ndarray, " R"]) -> tuple[float, float]:
        return edits.min(0).sum(), words.sum()

    return _pooled(answers, references, for_each, bootstrap)


def _pooled(answers: Texts, references: Texts, counted, bootstrap: Bootstrap | None) -> Score:
    """Computes Σ edits / Σ words, where `counted` gives both for an item, from its edits [K, R] and words [R]."""
    check_pairs(answers, references)
    pairs = []
    for texts, of_item in zip(answers, references, strict=True):
        wanted = [words for text in of_item if (words := spoken_words(text))]
        edits = [[word_edits(words, reference) for reference in wanted] for words in map(spoken_words, texts)]
        pairs.append(counted(np.array(edits, float), np.array([*map(len, wanted)], float)) if wanted else (np.nan,) * 2)
    statistics = np.array(pairs)
    defined = statistics[~np.isnan(statistics[:, 1])]
    rate = lambda sums, _: sums[..., 0] / sums[..., 1]
    return (bootstrap or Bootstrap()).pooled(statistics[:, 0] / statistics[:, 1], defined, rate)
