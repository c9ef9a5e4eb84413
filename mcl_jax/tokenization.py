"""Texts to token ids: prompts with whatever the tokenizer puts before a text, answers that end with its end token.

Prompt and answer are encoded apart from each other, so that a prompt has the same tokens when the model generates.
"""

import inspect
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int


class Tokenizer(Protocol):
    """What is needed of a tokenizer; Hugging Face's `PreTrainedTokenizerFast` has it.

    `encode` may take `add_special_tokens`: then prompts get what the tokenizer puts before a text, and answers nothing.
    `pad_token_id` is used if there is one.
    """

    eos_token_id: int

    def encode(self, text: str) -> list[int]: ...


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Raises a TypeError if the tokenizer has no end token."""
    eos = getattr(tokenizer, "eos_token_id", None)
    if not isinstance(eos, (int, np.integer)):
        name = type(tokenizer).__name__
        raise TypeError(f"the tokenizer needs eos_token_id, which targets end with; {name} has {eos!r}")


def prompt_ids(tokenizer: Tokenizer, text: str) -> Int[np.ndarray, " P"]:
    """Token ids of a prompt, with the tokenizer's first tokens (such as bos) but no end of sequence.

    Raises:
      ValueError: if there are none.
    """
    ids = _encode(tokenizer, text)
    if len(ids) and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    if not len(ids):
        raise ValueError(f"the prompt {text!r} has no tokens; needed one before the target")
    return ids


def answer_ids(tokenizer: Tokenizer, text: str, name: str) -> Int[np.ndarray, " N"]:
    """Token ids of an answer and the end token, without any first tokens.

    Args:
      name: subject of the errors, such as "record '7'".
    Raises:
      ValueError: for a text that is empty or holds the end token.
    """
    takes = "add_special_tokens" in inspect.signature(tokenizer.encode).parameters
    ids = _encode(tokenizer, text, **({"add_special_tokens": False} if takes else {}))
    if not len(ids):
        raise ValueError(f"{name}: the target {text!r} is empty, or has no tokens")
    if tokenizer.eos_token_id in ids:
        raise ValueError(f"{name}: the target holds the end-of-sequence token: {text[:60]!r}")
    return np.append(ids, np.int32(tokenizer.eos_token_id))


def pad_id(tokenizer: Tokenizer) -> int:
    """The padding token, or the end token where there is none."""
    pad = getattr(tokenizer, "pad_token_id", None)
    return int(tokenizer.eos_token_id if pad is None else pad)


def _encode(tokenizer: Any, text: str, **options: bool) -> Int[np.ndarray, " N"]:
    ids = tokenizer.encode(text, **options)
    try:
        return np.array(ids, np.int32).reshape(len(ids))
    except (TypeError, ValueError):
        raise TypeError(f"tokenizer.encode must give a list of token ids, got {type(ids).__name__}") from None
