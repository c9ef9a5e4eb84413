"""Stop strings: texts that end a continuation. The device knows token sequences; texts are cut on the host."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from mcl_jax import token_ids
from mcl_jax.generation.limits import Generation
from mcl_jax.json_io import check_unicode
from mcl_jax.tokenization import ANCHOR, plain_ids


def checked(strings: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns the stop strings as a tuple; raises a ValueError if one is empty or no text."""
    strings = (strings,) if isinstance(strings, str) else tuple(strings or ())
    for string in strings:
        if not isinstance(string, str) or not string:
            raise ValueError(f"stop_strings must be texts that are not empty, got {string!r}")
        check_unicode(string, "a stop string")
    return strings


def sequences_of(tokenizer: Any, strings: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Returns the token sequences after which `decode` stops early: each stop string alone, or after a space or a line.

    A tokenizer may write the same text otherwise, for example as the end of a longer token. Then a continuation goes on
    to its end token or its limit, and `cut` removes what came after the stop string.
    """
    found = {}
    for string in strings:
        before, after = plain_ids(tokenizer, ANCHOR), plain_ids(tokenizer, ANCHOR + string)
        follows = after[len(before) :] if np.array_equal(after[: len(before)], before) else after[:0]
        for ids in (plain_ids(tokenizer, string), plain_ids(tokenizer, " " + string), follows):
            if len(ids) and string in tokenizer.decode(ids.tolist()):
                found[tuple(ids.tolist())] = None
    return tuple(found)


def cut(found: Generation, tokenizer: Any, strings: Sequence[str], pad: int) -> Generation:
    """Ends each continuation with the token that completes a stop string, as Hugging Face's `generate` does.

    A stop string is looked for in the continuation alone; Hugging Face also finds one that begins in the prompt.

    Args:
      found: continuations.
      tokenizer: decodes them, special tokens included.
      strings: the stop strings.
      pad: token after the end.
    Returns:
      The continuations, with their lengths. The scores are those from before.
    Raises:
      ValueError: if the tokens are traced.
    """
    tokens, lengths = token_ids.known(found.tokens), token_ids.known(found.lengths)
    if tokens is None or lengths is None:
        raise ValueError("stop_strings are cut from tokens on the host, but these are traced; decode without jax.jit")
    tokens, lengths = tokens.copy(), lengths.copy()
    for index in np.ndindex(lengths.shape):
        lengths[index] = _length(tokenizer, tokens[index][: lengths[index]], strings)
    tokens[np.arange(tokens.shape[-1]) >= lengths[..., None]] = pad
    return found.replace(tokens=jnp.asarray(tokens), lengths=jnp.asarray(lengths))


def _length(tokenizer: Any, row: Int[np.ndarray, " T"], strings: Sequence[str]) -> int:
    """Returns the number of tokens up to the one that completes a stop string; all of them if there is none."""
    holds = lambda n: any(string in tokenizer.decode(row[:n].tolist()) for string in strings)
    if not holds(len(row)):
        return len(row)
    return next(n for n in range(1, len(row) + 1) if holds(n))


def text_of(tokenizer: Any, tokens: Int[np.ndarray, " T"], strings: Sequence[str] = ()) -> str:
    """Returns the text of a continuation up to the first stop string, without special tokens."""
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    return text[: min((text.find(string) for string in strings if string in text), default=len(text))].strip()
