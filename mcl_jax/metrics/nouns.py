"""The head noun of an English caption, and whether answers name it.

    head_noun("A floppy-eared bunny, asleep on grass.")           # "bunny"
    noun_named([["A white rabbit.", "A cat."]], [["A rabbit."]])  # 1: an answer has the word "rabbit"

The rule needs no parser, so that it is exact and the same everywhere:

1. A caption is cut into clauses at . , ; : ! ? brackets and dashes, and a clause into phrases at `ENDS` (prepositions,
   relative words and forms of be, have and do) and at "and" or "or" before a determiner.
2. The head noun is the last word of the first phrase that has a word besides `DETERMINERS`. If a preposition other than
   "of" follows, words in -ing or -ed at the end of the phrase are passed over, unless they are `NOUNS` or the only
   word: "a woman dancing in a gown".
3. If that word is one of `MEASURES` and "of" follows, the head noun comes from the next phrase: "a bunch of grapes".

A noun is named if an answer has it as a word, in any place; case, and a plural in -s, -es or -ies, do not matter. Other
plurals (mice), synonyms (bunny, rabbit) and words in other languages do not match. The rule errs where a comma divides
adjectives ("a ripe, red tomato") and at verbs that it does not know ("a wheel turns").
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mcl_jax.metrics.score import Bootstrap, Score
from mcl_jax.metrics.text import Texts, check_pairs

CLAUSE_ENDS = re.compile(r"[.,;:!?()\[\]{}—–\n]+|\s-+\s")
WORD = re.compile(r"\w+(?:[-'’]\w+)*")


def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


DETERMINERS = _words(
    "a an the this that these those some any another each every both all no my your his her its our their it's it’s",
    "it there here i you he she we they one two three four five six seven eight nine ten many several few",
)
ENDS = _words(
    "about above across after against ahead along among around as at atop before behind below beneath beside between",
    "beyond by down during for from in inside into like near next of off on onto out outside over past through to",
    "toward towards under underneath until up upon via with within without",
    "which who whom whose where when while because if than",
    "is are was were be been being has have had does do did made worn held shown seen called",
)
MEASURES = _words(
    "bunch pair piece slice set group kind type sort lot couple number row stack pile bit cluster quarter half",
    "picture photo photograph image",
)
NOUNS = _words(
    "bed building ceiling clothing crossing drawing earring feed king painting pudding red ring seed shed sibling sled",
    "spring string swing thing weed wedding wing",
)


def head_noun(caption: str) -> str | None:
    """Returns the head noun of an English caption in lower case, by the rule above; None if it has no such word."""
    for clause in CLAUSE_ENDS.split(caption.casefold()):
        for phrase, end in _phrases(WORD.findall(clause)):
            if phrase and not (phrase[-1] in MEASURES and end == "of"):
                return _last_noun(phrase) if end not in ("", "of") else phrase[-1]
    return None


def _last_noun(phrase: list[str]) -> str:
    """Returns the last word of a phrase that is no participle, or its first word."""
    participle = lambda word: word.endswith(("ing", "ed")) and word not in NOUNS
    return next((word for word in reversed(phrase) if not participle(word)), phrase[0])


def _phrases(words: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    """Yields the phrases of a clause without determiners, each with the word that ends it ("" at the end)."""
    phrase: list[str] = []
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        if word in ENDS or (word in ("and", "or") and following in DETERMINERS):
            yield phrase, word
            phrase = []
        elif word not in DETERMINERS:
            phrase.append(word)
    yield phrase, ""


def head_nouns(captions: Sequence[str]) -> set[str]:
    """Returns the head nouns of the captions of one item."""
    return {noun for caption in captions if (noun := head_noun(caption)) is not None}


def words_of(texts: Iterable[str]) -> set[str]:
    """Returns the words of texts in lower case, with the singulars that each may be a plural of."""
    words = {word for text in texts for word in WORD.findall(text.casefold())}
    return words.union(*map(_singulars, words))


def names(nouns: Iterable[str], words: set[str]) -> bool:
    """Whether one of the nouns, in singular or plural, is among the `words_of` texts."""
    return any(noun in words or _singulars(noun) & words for noun in nouns)


def _singulars(word: str) -> set[str]:
    """Returns the words whose plural in -s, -es or -ies is `word`; words below two letters are none."""
    endings = {"s": "", "es": "", "ies": "y"}
    found = {word.removesuffix(end) + singular for end, singular in endings.items() if word.endswith(end)}
    return {singular for singular in found if len(singular) > 1}


def noun_named(answers: Texts, references: Texts, bootstrap: Bootstrap | None = None) -> Score:
    """Computes the share of items of which one of the K answers names the head noun of a reference.

    Args:
      answers: N items of K texts.
      references: N items of R English texts.
      bootstrap: computes the interval over items; None means 1000 resamples at 95 %.
    Returns:
      The score: 1 or 0 per item, NaN where no reference has a head noun.
    Raises:
      ValueError: if items do not match, or lack an answer or a reference.
    """
    check_pairs(answers, references)
    nouns = [head_nouns(texts) for texts in references]
    named = [names(n, words_of(texts)) if n else np.nan for n, texts in zip(nouns, answers, strict=True)]
    return (bootstrap or Bootstrap()).mean(named)


def seen_in(references: Texts, captions: Iterable[str]) -> np.ndarray:
    """Returns for each item whether a head noun of its references is a word of the training captions, bool [N].

    Args:
      references: N items of R English texts.
      captions: English captions that the model was trained on.
    """
    words = words_of(captions)
    return np.array([names(head_nouns(texts), words) for texts in references], bool)
