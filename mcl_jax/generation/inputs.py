"""Prompts for `decode`. Names, shapes and values are checked once per call, before anything is traced."""

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mcl_jax import options, token_ids
from mcl_jax.models.decoder import check_placeholders

Inputs = Int[Array, "B P"] | Mapping[str, Array]
NAMES = ("tokens", "mask", "features")
TOKENIZERS = {"input_ids": "tokens", "attention_mask": "mask"}  # names that Hugging Face's tokenizers use
SEGMENTS = "token_type_ids"  # also from tokenizers; ignored where all are 0
MEDIA = ("pixel_values", "index", "tiles", "mel", "frames")  # outputs of a processor, inputs of the model's `encode`


class Prompts(NamedTuple):
    """Checked prompts.

    Attributes:
      tokens: token ids, padded on the left.
      mask: False on padding.
      features: {"features": [B, N, D]} of images or audio clips, for the module's methods; {} if there are none.
      longest: number of tokens of the longest prompt, without padding; P if the mask is traced.
    """

    tokens: Int[Array, "B P"]
    mask: Bool[Array, "B P"]
    features: dict[str, Float[Array, "B N D"]]
    longest: int


def prompts_of(inputs: Inputs, module: Any) -> Prompts:
    """Checks prompts, given as an array of tokens or as a dict with our names or a tokenizer's.

    Args:
      inputs: see `decode`.
      module: the base model.
    Returns:
      The prompts.
    Raises:
      ValueError: if a name is unknown, a shape or dtype is wrong, there are no prompts, a prompt is empty or padded on
        the right, an id is outside the vocabulary, the features do not fit, or there are more placeholder tokens than
        features. The message names the rows.
    """
    entries = _named(inputs)
    tokens, mask = _array("tokens", entries["tokens"]), entries.get("mask")
    mask = np.ones(tokens.shape, bool) if mask is None else _array("mask", mask)
    if tokens.ndim != 2 or mask.shape != tokens.shape or not tokens.shape[0]:
        raise ValueError(
            f"prompts must be tokens [B, P] with a mask of the same shape and B of at least 1, got {tokens.shape} and "
            f"{mask.shape}"
        )
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens must be integers, got {tokens.dtype}")
    token_ids.check_mask("mask", mask)
    longest = _check_padding(mask)
    token_ids.check_vocabulary("tokens", tokens, mask, getattr(module, "vocab_size", None))
    features = _features(entries, tokens, module)
    return Prompts(jnp.asarray(tokens, jnp.int32), jnp.asarray(mask, bool), features, longest)


def check_room(module: Any, longest: int, new: int) -> None:
    """Raises a ValueError if the model has fewer position embeddings than a prompt plus `new` tokens need."""
    most = getattr(module, "max_positions", None)
    if most is not None and longest + new > most:
        raise ValueError(
            f"a prompt of {longest} tokens and {new} new tokens need {longest + new} positions, but the model has only "
            f"{most}; shorten the prompt or lower max_new_tokens"
        )


def _named(inputs: Inputs) -> dict[str, Any]:
    """Returns the inputs under our names."""
    if not isinstance(inputs, Mapping):
        return {"tokens": inputs}
    entries = {}
    for name, value in options.given(inputs).items():
        ours = TOKENIZERS.get(name, name)
        if ours in entries:
            raise ValueError(f"inputs must have {ours!r} once, got it under our name and under a tokenizer's")
        if name == SEGMENTS and not np.any(token_ids.known(value)):
            continue
        if ours not in NAMES:
            raise ValueError(f"inputs may have the names {', '.join(NAMES)}, got {name!r}; {_hint(name)}")
        entries[ours] = value
    if "tokens" not in entries:
        raise ValueError(f"inputs must have 'tokens' (or a tokenizer's 'input_ids'), got {sorted(inputs)}")
    return entries


def _hint(name: str) -> str:
    if name in MEDIA:
        return "call the model's method 'encode' first, and pass its result as 'features'"
    near = difflib.get_close_matches(str(name), (*NAMES, *TOKENIZERS), n=1, cutoff=0.8)
    return f"did you mean {near[0]!r}?" if near else "remove what decoding does not use"


def _array(name: str, value: Any) -> Any:
    if isinstance(value, jax.Array):
        return value
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(
            f"{name} must be one array [B, P], got rows that do not form one ({error}); pad them on the left to the "
            "same length"
        ) from None


def _check_padding(mask: Any) -> int:
    """Returns the number of tokens of the longest prompt; raises if a prompt is empty or padded on the right."""
    values = token_ids.known(mask)
    if values is None:
        return mask.shape[1]
    values = values.astype(np.int8)
    right = (np.diff(values, axis=1) < 0).any(1) | ~values.any(1)
    if right.any():
        rows = np.flatnonzero(right).tolist()
        raise ValueError(
            f"prompts must be non-empty and padded on the left, but rows {rows} are empty or padded on the right"
        )
    return int(values.sum(1).max())


def _features(entries: Mapping[str, Any], tokens: Any, module: Any) -> dict[str, Array]:
    features, width = entries.get("features"), getattr(module, "feature_size", None)
    placeholder, name = getattr(module, "placeholder", None), type(module).__name__
    if width is None and features is not None:
        raise ValueError(f"{name} takes text only, so inputs must not have 'features'")
    if width is not None and features is None and placeholder is None:
        raise ValueError(f"{name} needs inputs with 'features' [B, N, D], as its 'encode' returns them, got none")
    if features is not None and (jnp.ndim(features) != 3 or (len(features), features.shape[2]) != (len(tokens), width)):
        raise ValueError(
            f"features must be [B, N, D] with B = {len(tokens)} prompts and D = {width}, as the model's 'encode' "
            f"returns them, got {jnp.shape(features)}"
        )
    if placeholder is not None and (ids := token_ids.known(tokens)) is not None:
        check_placeholders(ids, placeholder, 0 if features is None else features.shape[1])
    return {} if features is None else {"features": jnp.asarray(features)}
