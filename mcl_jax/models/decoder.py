"""What all decoder-only language models share: positions, which keys a query sees, attention, and the stack of layers.

Every model here is a Linen module with the same four methods:

    module(tokens, mask)                          next-token logits [B, T, V], float32
    module.hidden(tokens, mask)                   hidden states [B, T, D], for a likelihood that never holds the logits
    module.extend(tokens, mask, positions, past)  the same behind keys and values kept from before: (hidden, Segment)
    module.logits(hidden)                         the output layer alone

and `Module.unembedding(params)`, the output matrix [D, V]. `mask` is True on tokens and False on padding, on either
side, and what stands there changes nothing; positions count tokens only. A model never writes a cache: it reads
`past`, segments of keys and values, and returns the segment of the tokens it was given. What is kept of it, and where,
is up to the caller (`generation`).

A model that sees or hears has a fifth method, `encode`: its frozen tower, from pictures or clips to features [B, N, D],
run once an example whatever K. The first three then take `features=`, which stand in for placeholder tokens of the
prompt (`merge_features`).
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mcl_jax import token_ids

NO_WINDOW = jnp.iinfo(jnp.int32).max


@flax.struct.dataclass
class Segment:
    """Keys and values of S tokens in every layer.

    Rows may be fewer than those of the queries: n·B queries with B rows are n queries to a row, in the order (B, n), so
    that n continuations share one copy of their prompt.

    Attributes:
      keys, values: per layer, before they are repeated for groups of query heads.
      positions: of the tokens, from 0 in each row.
      mask: False where there is no token.
    """

    keys: Float[Array, "L B S Hkv d"]
    values: Float[Array, "L B S Hkv d"]
    positions: Int[Array, "B S"]
    mask: Bool[Array, "B S"]


def merge_features(
    x: Float[Array, "B T D"], tokens: Int[Array, "B T"], placeholder: int, features: Float[Array, "B N D"]
) -> Float[Array, "B T D"]:
    """Embeddings x of the tokens, with feature i of a row in the place of its i-th placeholder token.

    N is at least the number of placeholders of any row; features behind a row's last one are padding, and placeholders
    without a feature are NaN.

    Raises:
      ValueError: for features of another number of rows, or another width.
    """
    if features.ndim != 3 or (features.shape[0], features.shape[2]) != (x.shape[0], x.shape[2]):
        raise ValueError(f"features must be [B, N, D] with B and D of {x.shape} (B, T, D), got {features.shape}")
    here = tokens == placeholder
    index = jnp.maximum(jnp.cumsum(here, axis=1) - 1, 0)
    placed = jnp.take_along_axis(features.astype(x.dtype), index[..., None], axis=1, mode="fill", fill_value=jnp.nan)
    return jnp.where(here[..., None], placed, x)


def check_placeholders(tokens: Int[np.ndarray, "B T"], placeholder: int, most: int) -> None:
    """Raises a ValueError that names the rows with more placeholder tokens than `most`, the features of a row."""
    needed = (np.asarray(tokens) == placeholder).sum(1)
    if (rows := np.flatnonzero(needed > most)).size:
        raise ValueError(
            f"rows {rows.tolist()} have {needed[rows].tolist()} placeholder tokens ({placeholder}) for features of a "
            f"picture or clip, got {most} features a row"
        )


def embed(table: nn.Embed, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Embeddings; NaN for ids outside of the table, of which `jnp.take` counts the negative ones from its end."""
    tokens = jnp.asarray(tokens)
    if jnp.issubdtype(tokens.dtype, jnp.integer):  # `nn.Embed` refuses others
        tokens = jnp.where(tokens < 0, table.num_embeddings, tokens.astype(jnp.int32))
    return table(tokens)


def blank(x: Float[Array, "B T D"], mask: Bool[Array, "B T"] | None) -> Float[Array, "B T D"]:
    """x with zeros at padding: an id that is no token has no embedding, and a NaN would go through any weight of 0."""
    return x if mask is None else jnp.where(mask[..., None], x, jnp.zeros((), x.dtype))


def positions_of(tokens: Int[Array, "B T"], mask: Bool[Array, "B T"] | None) -> Int[Array, "B T"]:
    """Position of each token among the unmasked ones of its row, from 0; masked ones before the first also get 0."""
    if mask is None:
        return jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)


def distances(queries: Int[Array, "B T"], keys: Int[Array, "b S"], mask: Bool[Array, "b S"]) -> Int[Array, "B T S"]:
    """How many tokens each key lies behind each query; negative where it must not be seen."""
    repeat = queries.shape[0] // keys.shape[0]
    keys, mask = (jnp.repeat(x, repeat, axis=0) if repeat > 1 else x for x in (keys, mask))
    return jnp.where(mask[:, None], queries[:, :, None] - keys[:, None], -1)


def attend(
    q: Float[Array, "B T H d"],
    segments: Sequence[tuple[Float[Array, "b S Hkv d"], Float[Array, "b S Hkv d"], Int[Array, "B T S"]]],
    *,
    window: Int[Array, ""] | None = None,
    scale: float,
) -> Float[Array, "B T H d"]:
    """softmax(scale · Q Kᵀ) V over the keys of all segments, where 0 ≤ distance < window; scores in float32.

    Args:
      q: queries; heads come in Hkv groups of H / Hkv.
      segments: (keys, values, distances) of each.
      window: tokens that a query sees, itself included; no limit if None.
    """
    B, T, H, d = q.shape
    scores = []
    for keys, _, distance in segments:
        rows, S, groups, _ = keys.shape
        grouped = q.reshape(rows, B // rows, T, groups, H // groups, d).astype(jnp.float32)
        score = scale * jnp.einsum("bntghd,bsgd->bnghts", grouped, keys.astype(jnp.float32))
        visible = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        score = score.reshape(B, groups, H // groups, T, S)
        scores.append(jnp.where(visible[:, None, None], score, jnp.finfo(jnp.float32).min))
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1) if len(scores) > 1 else scores[0], axis=-1)
    y, start = 0.0, 0
    for keys, values, _ in segments:
        rows, S, groups, _ = keys.shape
        part = weights[..., start : start + S].reshape(rows, B // rows, groups, H // groups, T, S).astype(values.dtype)
        y, start = y + jnp.einsum("bnghts,bsgd->bntghd", part, values).reshape(B, T, H, d), start + S
    return y


def layer_stack(layer: type[nn.Module], config: Any, num_layers: int, *, scan: bool, remat: bool) -> Any:
    """L layers to be bound to a name in `setup`, a list or scanned into one; `run_layers` calls them.

    Scanned, one layer is compiled instead of L, parameters get a leading axis L, and the residual stream is held at
    each layer (XLA on a CPU otherwise sums it anew for every reader, from the first layer on).

    Args:
      layer: module whose call is (x, shared, (window, past)) -> (x, (keys, values) or None).
      remat: recompute each layer in the backward pass instead of keeping its activations.
    """
    if remat:
        layer = nn.remat(layer, prevent_cse=not scan)
    if not scan:
        return [layer(config) for _ in range(num_layers)]
    return nn.scan(
        layer,
        variable_axes={"params": 0, "lora": 0, "routing": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast, 0),
        length=num_layers,
    )(config)


def run_layers(layers: Any, x: Float[Array, "B T D"], shared: Any, windows: Sequence[int | None], past: Any) -> Any:
    """(x after all layers, what they returned, stacked over L).

    Args:
      layers: of `layer_stack`.
      shared: the same for all layers.
      windows: of each layer; None sees everything.
      past: pytree with leading axis L.
    """
    limits = None if not any(windows) else jnp.array([w or NO_WINDOW for w in windows], jnp.int32)
    if not isinstance(layers, (list, tuple)):
        return layers(x, shared, (limits, past))
    outs = []
    for i, layer in enumerate(layers):
        x, out = layer(x, shared, jax.tree.map(lambda leaf, i=i: leaf[i], (limits, past)))
        outs.append(out)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)


@flax.struct.dataclass
class Context:
    """What every layer is given: positions and distances of the tokens, and whether their keys are wanted."""

    positions: Int[Array, "B T"]
    own: Int[Array, "B T T"]
    past: tuple[Int[Array, "B T S"], ...]
    keep: bool = flax.struct.field(pytree_node=False, default=False)


def context_of(
    positions: Int[Array, "B T"], mask: Bool[Array, "B T"] | None, past: Sequence[Segment], *, keep: bool
) -> Context:
    """Positions and distances for tokens at `positions` behind `past`."""
    mask = jnp.ones(positions.shape, bool) if mask is None else mask
    own = distances(positions, positions, mask)
    return Context(positions, own, tuple(distances(positions, s.positions, s.mask) for s in past), keep)


def check_inputs(
    tokens: Int[Array, "B T"], mask: Bool[Array, "B T"] | None, vocab_size: int, max_positions: int | None = None
) -> None:
    """Raises a ValueError for shapes that do not fit, more tokens than positions, or ids outside of the vocabulary."""
    if tokens.ndim != 2:
        raise ValueError(f"tokens must be [B, T], got shape {tokens.shape}.")
    if max_positions is not None and tokens.shape[1] > max_positions:
        raise ValueError(
            f"tokens must have at most max_position_embeddings={max_positions} positions, got T={tokens.shape[1]}."
        )
    if mask is not None and (mask.shape != tokens.shape or mask.dtype != jnp.bool_):
        raise ValueError(f"mask must be bool{list(tokens.shape)} like tokens, got {mask.dtype}{list(mask.shape)}.")
    token_ids.check_vocabulary("tokens", tokens, mask, vocab_size)
