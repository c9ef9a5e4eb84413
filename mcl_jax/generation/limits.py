"""Limits of every continuation, whatever the decoder, and the continuations themselves."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import flax.struct
from jaxtyping import Array, Float, Int

from mcl_jax import options

MAX_NEW_TOKENS = 64


@flax.struct.dataclass
class Generation:
    """The continuations that `decode` returns.

    Attributes:
      tokens: the continuations; the end token is kept, and padding tokens follow it.
      scores: Σ log p in nats for greedy decoding and sampling; Σ log p / length^α for beams, best first. NaN where the
        model's log p is NaN, for which `decode` raises an error unless it is traced.
      lengths: lengths in tokens, including the end token.
      hypothesis: if each prompt was decoded under m hypotheses of its own, these; K is m then. None if it was decoded
        under all of them, in their order.
    """

    tokens: Int[Array, "K B n T"]
    scores: Float[Array, "K B n"]
    lengths: Int[Array, "K B n"]
    hypothesis: Int[Array, "K B"] | None = None


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of every continuation, whatever the decoder. None means the default of each field.

    Args:
      max_new_tokens: T.
      min_new_tokens: number of tokens before which no end token is allowed.
      eos_token_id: one or more tokens that end a continuation; () for none.
      pad_token_id: token after the end, inside or outside the vocabulary; if None, the first end token, or 0 if there
        is none.
      repetition_penalty: a value above 1 makes the tokens of the prompt and of the continuation less probable.
      no_repeat_ngram_size: n, so that no n tokens in a row occur twice in a prompt and its continuation; 0 allows all.
        Hugging Face counts padding as tokens of the prompt; here it is none.
      stop_sequences: sequences of tokens that end a continuation, as end tokens do. `min_new_tokens` does not prevent
        them.
    Raises:
      ValueError: if a value is outside its range.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    min_new_tokens: int = 0
    eos_token_id: int | Sequence[int] = ()
    pad_token_id: int | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    stop_sequences: Sequence[Sequence[int]] = ()

    def __post_init__(self):
        options.settle(self)
        options.check_integers(1, max_new_tokens=self.max_new_tokens)
        options.check_integers(0, no_repeat_ngram_size=self.no_repeat_ngram_size)
        options.check_numbers(min_new_tokens=self.min_new_tokens, repetition_penalty=self.repetition_penalty)
        if not isinstance(self.min_new_tokens, int) or not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(f"min_new_tokens must be in [0, {self.max_new_tokens}], got {self.min_new_tokens}")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty must be positive and finite, got {self.repetition_penalty}")
        single = isinstance(self.eos_token_id, (int, str)) or not isinstance(self.eos_token_id, Iterable)
        ends = (self.eos_token_id,) if single else tuple(self.eos_token_id)
        for token in ends:
            options.check_integers(0, eos_token_id=token)
        pad = (*ends, 0)[0] if self.pad_token_id is None else self.pad_token_id
        options.check_integers(-(2**31), pad_token_id=pad)
        object.__setattr__(self, "eos_token_id", ends)
        object.__setattr__(self, "pad_token_id", pad)
        object.__setattr__(self, "stop_sequences", tuple(map(_sequence, self.stop_sequences)))

    def check_vocabulary(self, vocab_size: int | None) -> None:
        """Raises a ValueError if an end token is outside the vocabulary, since no continuation would end with it."""
        given = {"eos_token_id": self.eos_token_id, "stop_sequences": sum(self.stop_sequences, ())}
        for name, tokens in given.items():
            if vocab_size is not None and (outside := [token for token in tokens if token >= vocab_size]):
                raise ValueError(f"{name} must be in the vocabulary [0, {vocab_size}), got {outside}")


def _sequence(tokens: Any) -> tuple[int, ...]:
    if not isinstance(tokens, (list, tuple)) or not tokens:
        raise ValueError(f"stop_sequences must be sequences of at least one token, got {tokens!r}")
    for token in tokens:
        options.check_integers(0, stop_sequences=token)
    return tuple(tokens)


def new_tokens(max_new_tokens: int | None, max_length: int | None, prompt_length: int) -> int:
    """Returns the largest number of new tokens.

    Args:
      max_new_tokens: this number; the default is 64 if both are None.
      max_length: length of prompt and continuation together; the other way to say it.
      prompt_length: P, with padding, as Hugging Face counts it.
    Raises:
      ValueError: if both are given (Hugging Face lets max_new_tokens win), or max_length leaves no room for a token.
    """
    if max_length is None:
        return MAX_NEW_TOKENS if max_new_tokens is None else max_new_tokens
    if max_new_tokens is not None:
        raise ValueError(
            f"give max_new_tokens or max_length, which counts the prompt too, not both; got {max_new_tokens} and "
            f"{max_length}"
        )
    max_length = options.plain(max_length)
    options.check_integers(1, max_length=max_length)
    if max_length <= prompt_length:
        raise ValueError(
            f"max_length must be above the length of the prompts, {prompt_length} tokens with padding, got {max_length}"
        )
    return max_length - prompt_length
