"""Texts of answers and references: blank texts, tokenization, and checks of their shape."""

from collections.abc import Sequence
from dataclasses import dataclass

from mcl_jax.extras import needed_for

Texts = Sequence[Sequence[str]]  # N items, each of K answers or R references

# A blank answer counts as this word, which no other text contains, so two blank answers are equal and a blank one has
# nothing in common with any other.
BLANK_WORD = "\ue000"


@dataclass(frozen=True)
class Tokenization:
    """Splits texts into words.

    Args:
      tokenize: a tokenizer of sacrebleu: "13a" (Western languages), "intl", "zh", "char", "none" (split at spaces).
      lowercase: whether to ignore case.
    Raises:
        ValueError: for a tokenizer that sacrebleu does not have.
        MissingExtra: if sacrebleu is not installed.
    """

    tokenize: str = "13a"
    lowercase: bool = False

    def __post_init__(self):
        with needed_for("scoring texts", "metrics"):
            from sacrebleu.metrics import BLEU
        if self.tokenize not in BLEU.TOKENIZERS:
            raise ValueError(f"tokenize must be one of {sorted(BLEU.TOKENIZERS)}, got {self.tokenize!r}")

    def words(self, texts: Sequence[str]) -> list[list[str]]:
        """The words of each text, punctuation included."""
        from sacrebleu.metrics import BLEU

        split = BLEU(tokenize=self.tokenize).tokenizer
        return [split((text.lower() if self.lowercase else text).strip()).split() for text in texts]


def is_blank(text: str) -> bool:
    """Whether a text is empty or whitespace."""
    return not text.strip()


def written(texts: Sequence[str]) -> list[str]:
    """Returns the texts that are not blank."""
    return [text for text in texts if not is_blank(text)]


def mark_blanks(answers: Sequence[str]) -> list[str]:
    """Returns the answers, with `BLANK_WORD` in place of each blank one."""
    return [BLANK_WORD if is_blank(answer) else answer for answer in answers]


def others_of(texts: Sequence[str]) -> list[list[str]]:
    """Returns the other texts, for each text."""
    return [[*texts[:m], *texts[m + 1 :]] for m in range(len(texts))]


def check_answers(answers: Texts) -> None:
    """Checks that there are items with at least one answer each; answers may be blank.

    Raises:
      ValueError: if an item is wrong; names it, what it needs and what came.
    """
    if isinstance(answers, str) or len(answers) == 0:
        raise ValueError(f"answers must be a list of at least 1 item, got {answers!r}")
    for n, texts in enumerate(answers):
        _check_item(f"answers[{n}]", texts)


def check_pairs(answers: Texts, references: Texts) -> None:
    """Checks answers as `check_answers` does, and that each item has a reference that is not blank.

    Raises:
      ValueError: if an item is wrong; names it, what it needs and what came.
    """
    check_answers(answers)
    if len(answers) != len(references):
        raise ValueError(
            f"answers and references must have the same items, got {len(answers)} and {len(references)} items"
        )
    for n, texts in enumerate(references):
        _check_item(f"references[{n}]", texts)
        if not written(texts):
            raise ValueError(f"references[{n}] must contain at least 1 text that is not blank, got {list(texts)!r}")


def _check_item(name: str, texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} must be a list of texts, got {texts!r}")
    if len(texts) == 0:
        raise ValueError(f"{name} must contain at least 1 text, got none")
