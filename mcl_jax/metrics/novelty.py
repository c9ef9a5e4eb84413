"""Novelty of answers: what of them the training texts do not contain."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from mcl_jax.metrics import coco_tokenizer
from mcl_jax.metrics.score import Bootstrap, Score
from mcl_jax.metrics.text import Texts, Tokenization, check_answers

ORDER = 4  # words in an n-gram

Words = Callable[[Sequence[str]], list[list[str]]]


@dataclass(frozen=True)
class TrainingTexts:
    """The texts of a training set, and the n-grams in them.

        known = TrainingTexts.of(texts)                       # words as in BLEU
        known = TrainingTexts.of_captions(texts)              # words of coco-caption: no case, no punctuation

    Attributes:
      words: splits texts into words.
      texts: the texts, as words joined by spaces.
      ngrams: their n-grams of 4 words, joined by spaces.
    """

    words: Words = field(repr=False)
    texts: frozenset[str] = field(repr=False)
    ngrams: frozenset[str] = field(repr=False)

    @classmethod
    def of(cls, texts: Iterable[str], tokenization: Tokenization | None = None) -> "TrainingTexts":
        """Reads texts with the words of `Tokenization`; None means 13a with case.

        Raises:
          ValueError: if there are no texts.
        """
        return cls._of(texts, (tokenization or Tokenization()).words)

    @classmethod
    def of_captions(cls, texts: Iterable[str]) -> "TrainingTexts":
        """Reads captions with coco-caption's words.

        Raises:
          ValueError: if there are no texts.
        """
        return cls._of(texts, _caption_words)

    @classmethod
    def _of(cls, texts: Iterable[str], words: Words) -> "TrainingTexts":
        if not (distinct := sorted(set(texts))):
            raise ValueError("novelty needs at least 1 training text, got none")
        split = words(distinct)
        return cls(words, frozenset(map(" ".join, split)), frozenset(gram for text in split for gram in _ngrams(text)))


def _caption_words(texts: Sequence[str]) -> list[list[str]]:
    return [text.split() for text in coco_tokenizer.tokenize(texts)]


def _ngrams(words: Sequence[str]) -> list[str]:
    return [" ".join(words[i : i + ORDER]) for i in range(len(words) - ORDER + 1)]


def novel_answers(answers: Texts, known: TrainingTexts, bootstrap: Bootstrap | None = None) -> Score:
    """Computes the share of an item's answers that are no training text, word for word.

    Both are compared after tokenization. A blank answer is not novel.

    Args:
      answers: N items of K texts.
      known: the training texts.
      bootstrap: computes the interval; None means 1000 resamples at 95 %.
    Raises:
      ValueError: if there are no items, or an item has no answers.
    """
    novel = [
        [bool(words) and " ".join(words) not in known.texts for words in texts] for texts in _split(answers, known)
    ]
    return (bootstrap or Bootstrap()).mean([sum(item) / len(item) for item in novel])


def novel_4grams(answers: Texts, known: TrainingTexts, bootstrap: Bootstrap | None = None) -> Score:
    """Computes the share of the n-grams of 4 words in an item's answers that no training text has.

    An n-gram that occurs twice counts twice. An item without any has NaN. Arguments and errors are as in
    `novel_answers`.

    Source: McCoy et al. (2023), "How much do language models copy from their training data? Evaluating linguistic
    novelty in text generation using RAVEN".
    """
    grams = [[gram for words in texts for gram in _ngrams(words)] for texts in _split(answers, known)]
    share = [sum(gram not in known.ngrams for gram in own) / len(own) if own else float("nan") for own in grams]
    return (bootstrap or Bootstrap()).mean(share)


def _split(answers: Texts, known: TrainingTexts) -> list[list[list[str]]]:
    """Returns the words of each answer, [N][K]; the k-th answers of all items are tokenized as one file."""
    check_answers(answers)
    columns = [
        iter(known.words([texts[k] for texts in answers if k < len(texts)])) for k in range(max(map(len, answers)))
    ]
    return [[next(column) for column in columns[: len(texts)]] for texts in answers]
