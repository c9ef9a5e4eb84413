"""Short examples that share rows, so that less of a batch is padding.

    packed = packing.pack(batch, length=128)       # 8 examples in 2 rows, say
    state, metrics = step(state, packed)           # the same update, but for rounding and dropout

    tokens        prompt answer eos prompt answer eos padding     [R, T + 1]
    texts           1      1     0    2      2     0     0        [R, T], of the tokens but the last
    packed        [0, 1, -1, -1]                                  [R, S], the example of each text

An end token predicts nothing, so it belongs to no text, but as the target of the token before it. Tokens see their own
text only, and their positions start at 0 in each. Every example therefore has the likelihood that it would have in a
row of its own, and a winner of its own. What a row costs in attention grows with the square of its length, and the
products with A and B take K times as long; all other products save what padding would cost.

The base must have `takes_texts`, see `mcl_jax.language_model.LanguageModel`: the decoder-only families do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from mcl_jax import options

INPUTS = ("tokens", "target_mask", "texts", "packed")  # what the likelihood needs of a packed batch
NONE = -1  # number of an example where there is none


def pack(batch: Mapping[str, np.ndarray], length: int, *, multiple: int = 1) -> dict[str, np.ndarray]:
    """Puts several examples into each row of a batch, the longest first, each into the first row that has room.

    Args:
      batch: "tokens" int [N, T + 1] and "target_mask" bool [N, T], as `language_model.encode` makes them, and other
        arrays of one number for each example, [N]. An example ends at its last target; without targets it is left out.
      length: number of predicted positions of a row.
      multiple: what divides the number of rows, such as the number of devices.
    Returns:
      "tokens" int [R, length + 1], "target_mask" bool [R, length], "texts" int32 [R, length] and "packed" int32 [R, N],
      see `mcl_jax.language_model`; the other arrays as [R, N], with `NONE` where there is no example. R is `multiple`
      times one of 1 to 8, 10, 12, 14, 16, 20 and so on, the least that holds the examples: a step compiles for few R.
    Raises:
      ValueError: if the batch has features or other arrays of more than one number for each example, if it is packed,
        or if an example is longer than a row; names it.
    """
    options.check_integers(1, length=length, multiple=multiple)
    others = {name: np.asarray(x) for name, x in batch.items() if name not in ("tokens", "target_mask")}
    tokens, mask = np.asarray(batch["tokens"]), np.asarray(batch["target_mask"])
    if wrong := [name for name, x in others.items() if x.shape != tokens.shape[:1]]:
        raise ValueError(
            f"only batches of tokens, with one number for each example beside them, can be packed; got {wrong[0]!r} of "
            f"shape {others[wrong[0]].shape}"
        )
    positions = np.where(mask.any(1), mask.shape[1] - np.argmax(mask[:, ::-1], axis=1), 0)
    if (longest := int(positions.max(initial=0))) > length:
        raise ValueError(
            f"example {int(np.argmax(positions))} has {longest} predicted positions, more than the {length} of a row"
        )
    rows = _first_fit(positions, length)
    N, R = len(tokens), multiple * _rounded(max(1, -(-len(rows) // multiple)))
    out = {
        "tokens": np.zeros((R, length + 1), tokens.dtype),
        "target_mask": np.zeros((R, length), bool),
        "texts": np.zeros((R, length), np.int32),
        "packed": np.full((R, N), NONE, np.int32),
        **{name: np.full((R, N), NONE, x.dtype) for name, x in others.items()},
    }
    for r, row in enumerate(rows):
        start = 0
        for s, n in enumerate(row):
            end = start + positions[n]
            out["tokens"][r, start : end + 1] = tokens[n, : positions[n] + 1]
            out["target_mask"][r, start:end] = mask[n, : positions[n]]
            out["texts"][r, start:end] = s + 1
            out["packed"][r, s] = n
            for name, x in others.items():
                out[name][r, s] = x[n]
            start = end + 1
    return out


def _first_fit(positions: Sequence[int], length: int) -> list[list[int]]:
    """Returns the examples of each row: first-fit decreasing. A row holds one token more than predicted positions."""
    rows, room = [], []
    for n in np.argsort(-np.asarray(positions), kind="stable"):
        if not positions[n]:
            continue
        needed = int(positions[n]) + 1
        r = next((r for r, free in enumerate(room) if free >= needed), len(rows))
        if r == len(rows):
            rows.append([])
            room.append(length + 1)
        rows[r].append(int(n))
        room[r] -= needed
    return rows


def _rounded(number: int) -> int:
    """Rounds a number up to three binary digits: 1 to 8, 10, 12, 14, 16, 20 and so on."""
    step = 2 ** max(0, (number - 1).bit_length() - 3)
    return -(-number // step) * step


def is_packed(batch: Any) -> bool:
    """Whether the rows of a batch may hold several examples."""
    return isinstance(batch, Mapping) and "texts" in batch and "packed" in batch


def texts_per_row(batch: Any) -> tuple[int, ...]:
    """Returns (S,), the largest number of examples in a row, for a packed batch, and () for any other."""
    return jnp.shape(batch["packed"])[1:] if is_packed(batch) else ()


def examples_of_rows(index: Int[Array, " B"], batch: Any) -> Int[Array, " N"]:
    """Returns the number of each example among all of a step, from the numbers of the rows."""
    for size in texts_per_row(batch):
        index = (index[:, None] * size + jnp.arange(size)[None]).ravel()
    return index
