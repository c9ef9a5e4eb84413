"""Common parts of decoder-only language models: positions, visibility of keys, attention, and the stack of layers.

Every model is a Linen module with the same four methods:

    module(tokens, mask)                          next-token logits [B, T, V], float32
    module.hidden(tokens, mask)                   hidden states [B, T, D], for a likelihood without the full logits
    module.extend(tokens, mask, positions, past)  the same after earlier keys and values: (hidden, Segment)
    module.logits(hidden)                         the output layer alone

and `Module.unembedding(params)`, the output matrix [D, V]. `mask` is True on tokens and False on padding, which may be
on either side; token ids under padding have no effect, and positions count tokens only. The `hidden` of a model with
`takes_texts` also takes a mask of integers, for rows that hold several texts (`mcl_jax.packing`): the number of the
text of each token, from 1, and 0 on padding. Tokens see their own text only, whose positions start at 0. A model never
writes a cache: it reads `past`, a tuple of segments of keys and values, and returns the segment of the tokens it was
given. The caller (`generation`) decides what to keep of it.

A model that takes images or audio has a fifth method, `encode`: its frozen tower, from images or audio clips to
features [B, N, D], which runs once per example whatever K is. The first three methods then take `features=`, which
replace the placeholder tokens of the prompt (`merge_features`), or which every token attends to (`whisper`).
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mcl_jax import dtypes, fsdp, token_ids
from mcl_jax.likelihood import soft_cap

NO_WINDOW = jnp.iinfo(jnp.int32).max
MOST_SCORES = 2**20  # per row and head; `attend` takes the queries in blocks when there are more
QUERY_BLOCK = 128
MOST_PARTS, LEAST_QUERIES = 4, 64  # of the parts into which `attend` divides ordered queries

Order = Literal["any", "ordered", "causal"]

Mask = Bool[Array, "B T"] | Int[Array, "B T"]
Remat = Literal["none", "full", "dots"]
# What the backward pass finds of a layer: everything, only the input, or also the products with its matrices.
POLICIES = {
    "none": jax.checkpoint_policies.everything_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@flax.struct.dataclass
class PerLayer:
    """Arrays of L layers that are not scanned, where scanned ones have one array with an axis L in front.

    A decoding step then reads the buffer of a layer as it is; to read it out of a common one, XLA on a CPU copies it.

    Attributes:
      arrays: the array of each layer.
    """

    arrays: tuple[Array, ...]

    def __getitem__(self, layer: int) -> Array:
        return self.arrays[layer]


@flax.struct.dataclass
class Segment:
    """Keys and values of S tokens in every layer, as `stored` makes them of those of a layer.

    A segment may have fewer rows than the queries: with n·B queries and B rows, n queries share a row, in the order
    (B, n), so that n continuations share one copy of their prompt.

    Attributes:
      keys: keys of each layer, before they are repeated for groups of query heads; in the order in which attention
        multiplies by them. Layers that are not scanned may have them as `PerLayer`, without the axis L.
      values: values of each layer, likewise.
      positions: positions of the tokens, from 0 in each row.
      mask: False where there is no token.
      memory: (keys, values) of the features that a model with cross-attention attends to, in the same order, in the
        first segment of its rows; None in later segments, and in other models.
    """

    keys: Float[Array, "L B Hkv d S"] | PerLayer
    values: Float[Array, "L B Hkv S d"] | PerLayer
    positions: Int[Array, "B S"]
    mask: Bool[Array, "B S"]
    memory: tuple[Float[Array, "L B H d N"] | PerLayer, Float[Array, "L B H N d"] | PerLayer] | None = None


class Past(NamedTuple):
    """What one layer sees of an earlier segment.

    Attributes:
      keys: its keys, as `stored`.
      values: its values, as `stored`.
      distances: how many tokens before each query each of them lies.
    """

    keys: Float[Array, "b Hkv d S"]
    values: Float[Array, "b Hkv S d"]
    distances: Int[Array, "B T S"]


def merge_features(
    x: Float[Array, "B T D"], tokens: Int[Array, "B T"], placeholder: int, features: Float[Array, "B N D"]
) -> Float[Array, "B T D"]:
    """Replaces the embedding of the i-th placeholder token of each row by feature i.

    Args:
      x: embeddings of the tokens.
      tokens: token ids.
      placeholder: id of the placeholder token.
      features: features, at least as many as any row has placeholders; the rest is padding. A placeholder without a
        feature becomes NaN.
    Returns:
      The embeddings.
    Raises:
      ValueError: if the features have another number of rows, or another width.
    """
    if features.ndim != 3 or (features.shape[0], features.shape[2]) != (x.shape[0], x.shape[2]):
        raise ValueError(
            f"features must be [B, N, D] with B = {x.shape[0]} and D = {x.shape[2]}, as the embeddings, got "
            f"{features.shape}"
        )
    here = tokens == placeholder
    index = jnp.maximum(jnp.cumsum(here, axis=1) - 1, 0)
    placed = jnp.take_along_axis(features.astype(x.dtype), index[..., None], axis=1, mode="fill", fill_value=jnp.nan)
    return jnp.where(here[..., None], placed, x)


def check_placeholders(tokens: Int[np.ndarray, "B T"], placeholder: int, most: int) -> None:
    """Raises a ValueError that names the rows with more placeholder tokens than `most`, the features per row."""
    needed = (np.asarray(tokens) == placeholder).sum(1)
    if (rows := np.flatnonzero(needed > most)).size:
        raise ValueError(
            f"rows {rows.tolist()} have {needed[rows].tolist()} placeholder tokens ({placeholder}) for an image or "
            f"audio clip and need as many features, got {most} features per row"
        )


def embed(table: nn.Embed, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Looks up embeddings; NaN for ids outside the table (`jnp.take` would count negative ones from its end)."""
    tokens = jnp.asarray(tokens)
    if jnp.issubdtype(tokens.dtype, jnp.integer):  # `nn.Embed` refuses others
        tokens = jnp.where(tokens < 0, table.num_embeddings, tokens.astype(jnp.int32))
    return table(tokens)


def tied_logits(table: nn.Embed, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """Applies an output layer that is the transposed table of embeddings, and returns float32."""
    weights = table.embedding.astype(hidden.dtype)
    return jnp.einsum("btd,vd->btv", hidden, weights, preferred_element_type=jnp.float32)


def blank(x: Float[Array, "B T D"], mask: Mask | None) -> Float[Array, "B T D"]:
    """Sets x to zero at padding, where embeddings may be NaN: NaN times an attention weight of 0 is still NaN."""
    return x if mask is None else jnp.where(mask.astype(bool)[..., None], x, jnp.zeros((), x.dtype))


def positions_of(tokens: Int[Array, "B T"], mask: Mask | None) -> Int[Array, "B T"]:
    """Returns the position of each token among those of its text, from 0 (also for padding on the left)."""
    if mask is None:
        return jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    index = jnp.maximum(jnp.cumsum(mask.astype(bool), axis=1, dtype=jnp.int32) - 1, 0)
    if mask.dtype == jnp.bool_:
        return index
    starts = jnp.concatenate([jnp.zeros_like(mask[:, :1], bool), mask[:, 1:] != mask[:, :-1]], axis=1)
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def distances(queries: Int[Array, "B T"], keys: Int[Array, "b S"], mask: Bool[Array, "b S"]) -> Int[Array, "B T S"]:
    """Returns how many tokens before each query each key lies; negative if the query must not see the key."""
    repeat = queries.shape[0] // keys.shape[0]
    keys, mask = (jnp.repeat(x, repeat, axis=0) if repeat > 1 else x for x in (keys, mask))
    return jnp.where(mask[:, None], queries[:, :, None] - keys[:, None], -1)


def stored(
    keys: Float[Array, "B S Hkv d"], values: Float[Array, "B S Hkv d"]
) -> tuple[Float[Array, "B Hkv d S"], Float[Array, "B Hkv S d"]]:
    """Returns the keys and values of a layer as a `Segment` has them, so that no later step turns or checks them again.

    Where a key or value is not finite, the key is NaN in all heads and the value 0: a query that sees it becomes NaN,
    and no other.
    """
    _, sound, broken = _finite(keys, values)
    return jnp.where(broken[..., None, None], jnp.nan, keys).transpose(0, 2, 3, 1), sound.swapaxes(1, 2)


def attend(
    q: Float[Array, "B T H d"],
    own: tuple[Float[Array, "b S Hkv d"], Float[Array, "b S Hkv d"], Int[Array, "B T S"]] | None,
    past: Sequence[Past] = (),
    *,
    window: Int[Array, ""] | None = None,
    scale: float,
    cap: float | None = None,
    order: Order = "any",
) -> Float[Array, "B T H d"]:
    """Computes softmax(scale · Q Kᵀ) V over all keys where 0 ≤ distance < window; scores in float32.

    On a GPU, cuDNN computes causal attention of 16-bit queries in one kernel, which holds no scores. Otherwise, ordered
    queries are divided into at most `MOST_PARTS` parts, each of which meets only the keys up to its own end. With
    more than `MOST_SCORES` pairs of query and key, the queries are taken in blocks of `QUERY_BLOCK`, whose scores the
    backward pass computes again, so that the scores of one block exist at a time.

    Args:
      q: queries; the heads form Hkv groups of H / Hkv.
      own: keys, values and distances of the tokens themselves; None if only the past is seen.
      past: earlier segments.
      window: number of tokens that a query sees, including itself; None means no limit.
      scale: factor of the scores.
      cap: soft-cap of the scores after that, see `likelihood.soft_cap`; None leaves them as they are.
      order: what is known of `own`, which then has a key for each query. ordered: query t sees no key after t. causal:
        query t sees exactly the keys 0 to t.
    Returns:
      The weighted sums of the values; NaN for a query that sees a key or value that is not finite. Gradients reach the
      past only where all its keys are finite.
    """
    sound = None if own is None else _finite(*own[:2])
    far = [one.distances for one in past] + ([] if own is None else [own[2]])
    if order == "causal" and window is None and cap is None and _has_kernel(q):
        return _causal_kernel(q, *sound, scale)
    earlier, T, S = [one[:2] for one in past], q.shape[1], sum(distance.shape[2] for distance in far)
    attend_to = _attend_in_blocks if T > QUERY_BLOCK and T * S > MOST_SCORES else _attend_block
    if order == "any" or T <= LEAST_QUERIES:
        return attend_to(q, earlier, sound, far, window, scale, cap)
    size, parts = LEAST_QUERIES * -(-T // (MOST_PARTS * LEAST_QUERIES)), []
    for start in range(0, T, size):
        end = min(start + size, T)
        before = [distance[:, start:end] for distance in far]
        before[-1] = before[-1][:, :, :end]
        parts.append(attend_to(q[:, start:end], earlier, [x[:, :end] for x in sound], before, window, scale, cap))
    return jnp.concatenate(parts, axis=1)


def _attend_in_blocks(
    q: Float[Array, "B T H d"],
    past: Sequence[tuple[Float[Array, "b Hkv d S"], Float[Array, "b Hkv S d"]]],
    own: Sequence[Array] | None,
    far: Sequence[Int[Array, "B T S"]],
    window: Int[Array, ""] | None,
    scale: float,
    cap: float | None,
) -> Float[Array, "B T H d"]:
    """Attends with the scores of one block of queries at a time; the arguments are those of `_attend_block`."""
    T = q.shape[1]
    size = min(QUERY_BLOCK, T)

    def block(start_and_q):
        start, q = start_and_q
        rows = [jax.lax.dynamic_slice_in_dim(distance, start, size, axis=1) for distance in far]
        return _attend_block(q, past, own, rows, window, scale, cap)

    starts = np.minimum(np.arange(0, T, size), T - size)  # the last block may overlap the one before it
    blocks = jnp.stack([q[:, start : start + size] for start in starts])
    y = jax.lax.map(jax.checkpoint(block, prevent_cse=False), (jnp.asarray(starts, jnp.int32), blocks))
    overlap = len(starts) * size - T
    return jnp.concatenate([*y[:-1], y[-1, :, overlap:]], axis=1)


def _has_kernel(q: Float[Array, "B T H d"]) -> bool:
    """Whether cuDNN computes attention of these queries."""
    d = q.shape[-1]
    return jax.default_backend() == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16) and d % 8 == 0 and d <= 128


def _causal_kernel(
    q: Float[Array, "B T H d"],
    keys: Float[Array, "B T Hkv d"],
    values: Float[Array, "B T Hkv d"],
    broken: Bool[Array, "B T"],
    scale: float,
) -> Float[Array, "B T H d"]:
    """Attends with cuDNN's fused kernel."""
    # Its batching rule needs the axis of `vmap` in front, where a reshape puts it.
    T, pad = q.shape[1], ((0, 0), (0, q.shape[1] % 2), (0, 0), (0, 0))  # cuDNN needs an even length
    q, keys, values = (jnp.pad(x.reshape(*x.shape[:2], -1).reshape(x.shape), pad) for x in (q, keys, values))
    y = jax.nn.dot_product_attention(q, keys, values, scale=scale, is_causal=True, implementation="cudnn")[:, :T]
    tainted = jnp.cumsum(broken, axis=1, dtype=jnp.int32) > 0
    return jnp.where(tainted[..., None, None], jnp.nan, y)


def _attend_block(
    q: Float[Array, "B T H d"],
    past: Sequence[tuple[Float[Array, "b Hkv d S"], Float[Array, "b Hkv S d"]]],
    own: tuple[Float[Array, "b S Hkv d"], Float[Array, "b S Hkv d"], Bool[Array, "b S"]] | None,
    far: Sequence[Int[Array, "B T S"]],
    window: Int[Array, ""] | None,
    scale: float,
    cap: float | None,
) -> Float[Array, "B T H d"]:
    """Attends with all scores at once; `own` is the result of `_finite`, `far` the distances of the past and its."""
    B, T, H, d = q.shape
    # XLA on a CPU fails on some of these products in 16 bits, see test_sixteen_bits; none of them is faster there.
    wide = dtypes.widened if jax.default_backend() == "cpu" else lambda x: x
    parts = [(wide(keys), values, "bgds", "bgsd") for keys, values in past]
    if own is not None:
        parts.append((*own[:2], "bsgd", "bsgd"))
    visible = [f >= 0 if window is None else (f >= 0) & (f < window) for f in far]
    scores = []
    for (keys, _, axes, _), seen in zip(parts, visible, strict=True):
        rows, groups, S = keys.shape[0], keys.shape[axes.index("g")], keys.shape[axes.index("s")]
        n, h = B // rows, H // groups
        # One axis for all queries of a key: with more axes, of size 1, XLA on a CPU makes turned copies of the keys.
        grouped = q.reshape(rows, n, T, groups, h, d).transpose(0, 3, 1, 4, 2, 5).reshape(rows, groups, n * h * T, d)
        score = jnp.einsum(f"bgmd,{axes}->bgms", grouped.astype(keys.dtype), keys, preferred_element_type=jnp.float32)
        score = score.reshape(rows, groups, n, h, T, S).swapaxes(1, 2).reshape(B, groups, h, T, S)
        score = soft_cap(scale * score, cap)
        scores.append(jnp.where(seen[:, None, None], score, jnp.finfo(jnp.float32).min))
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1) if len(scores) > 1 else scores[0], axis=-1)
    y, start = 0.0, 0
    for (_, values, _, axes), distance in zip(parts, far, strict=True):
        rows, groups, S = values.shape[0], values.shape[axes.index("g")], distance.shape[2]
        n, h = B // rows, H // groups
        part = weights[..., start : start + S].reshape(rows, n, groups, h, T, S).swapaxes(1, 2)
        part = part.reshape(rows, groups, n * h * T, S).astype(values.dtype)
        mean = jnp.einsum(f"bgms,{axes}->bgmd", part, values).reshape(rows, groups, n, h, T, d)
        y, start = y + mean.transpose(0, 2, 4, 1, 3, 5).reshape(B, T, H, d), start + S
    if own is None:
        return y
    tainted = (visible[-1] & jnp.repeat(own[2], B // own[2].shape[0], axis=0)[:, None]).any(-1)
    return jnp.where(tainted[..., None, None], jnp.nan, y)


def _finite(
    keys: Float[Array, "b S Hkv d"], values: Float[Array, "b S Hkv d"]
) -> tuple[Float[Array, "b S Hkv d"], Float[Array, "b S Hkv d"], Bool[Array, "b S"]]:
    """Replaces keys and values that are not finite by 0 and says where; a weight of 0 times NaN would still be NaN."""
    finite = jnp.isfinite(keys) & jnp.isfinite(values)
    return jnp.where(finite, keys, 0), jnp.where(finite, values, 0), ~finite.all((-2, -1))


def layer_stack(layer: type[nn.Module], config: Any, num_layers: int, *, scan: bool, remat: bool | Remat) -> Any:
    """Makes L layers, as a list or scanned into one, to be assigned to a name in `setup`; `run_layers` calls them.

    With `scan`, one layer is compiled instead of L, parameters get a leading axis L, and the residual stream is stored
    at each layer (otherwise XLA on a CPU recomputes it from the first layer for every use).

    Args:
      layer: module with the call (x, shared, (window, own)) -> (x, (keys, values) or None).
      config: config of each layer.
      num_layers: L.
      scan: whether to scan the layers.
      remat: what the backward pass computes again, see `check_remat`.
    Returns:
      The layers.
    """
    layer = fsdp.gathers(layer)
    if (policy := check_remat(remat)) != "none":
        layer = nn.remat(layer, prevent_cse=not scan, policy=POLICIES[policy])
    if not scan:
        return [layer(config) for _ in range(num_layers)]
    return nn.scan(
        layer,
        variable_axes={"params": 0, "lora": 0, "routing": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast, 0),
        length=num_layers,
    )(config)


def check_remat(remat: bool | Remat) -> Remat:
    """Returns the policy: what the backward pass computes again instead of storing it.

    none (False): nothing. full (True): each layer, from its input. dots: each layer except its products with matrices,
    which take most of the time; attention and norms are computed again.

    Raises:
      ValueError: if it is something else.
    """
    policy = ("full" if remat else "none") if isinstance(remat, bool) else remat
    if policy not in POLICIES:
        raise ValueError(f"remat must be one of {', '.join(POLICIES)}, or true or false, got {remat!r}")
    return policy


def run_layers(layers: Any, x: Float[Array, "B T D"], shared: Any, windows: Sequence[int | None], own: Any) -> Any:
    """Runs the layers on x.

    Args:
      layers: the result of `layer_stack`.
      x: input of the first layer.
      shared: argument of every layer.
      windows: attention window of each layer in tokens; None sees everything.
      own: further arguments of each layer, such as earlier keys and values: a pytree of leaves with leading axis L,
        or of `PerLayer`.
    Returns:
      Output of the last layer, and the second results of all layers: stacked over L if scanned, else `PerLayer`.
    """
    limits = None if not any(windows) else jnp.array([w or NO_WINDOW for w in windows], jnp.int32)
    if not isinstance(layers, (list, tuple)):
        return layers(x, shared, (limits, own))
    outs = []
    for i, layer in enumerate(layers):
        of_layer = jax.tree.map(lambda leaf, i=i: leaf[i], (limits, own), is_leaf=lambda x: isinstance(x, PerLayer))
        x, out = layer(x, shared, of_layer)
        outs.append(out)
    return x, jax.tree.map(lambda *leaves: PerLayer(leaves), *outs)


@flax.struct.dataclass
class Context:
    """Arguments of every layer.

    Attributes:
      positions: positions of the tokens.
      own: distances between the tokens themselves.
      past: distances between the tokens and each earlier segment.
      keep: whether the layers return keys and values.
      order: what is known of the distances between the tokens, see `attend`.
    """

    positions: Int[Array, "B T"]
    own: Int[Array, "B T T"]
    past: tuple[Int[Array, "B T S"], ...]
    keep: bool = flax.struct.field(pytree_node=False, default=False)
    order: Order = flax.struct.field(pytree_node=False, default="any")

    def seen(self, past: Sequence[tuple[Array, Array]]) -> list[Past]:
        """Returns what a layer sees of earlier segments, from their stored keys and values of this layer."""
        return [Past(*kv, distances) for kv, distances in zip(past, self.past, strict=True)]

    def kept(self, keys: Float[Array, "B T Hkv d"], values: Float[Array, "B T Hkv d"]) -> tuple[Array, Array] | None:
        """Returns the keys and values of a layer as `stored`, or None if they are not kept."""
        return stored(keys, values) if self.keep else None


def context_of(
    positions: Int[Array, "B T"],
    mask: Mask | None,
    past: Sequence[Segment],
    *,
    keep: bool,
    prefix: Bool[Array, "B T"] | None = None,
) -> Context:
    """Makes the context for tokens at `positions` that follow the segments `past`.

    Args:
      positions: positions of the tokens.
      mask: False on padding, or the number of the text of each token.
      past: earlier segments.
      keep: whether the layers return keys and values.
      prefix: True on tokens that see one another, also later ones and beyond a window; None means that there are none.
    """
    order = "any" if prefix is not None else "ordered" if past or mask is not None else "causal"
    mask = jnp.ones(positions.shape, bool) if mask is None else mask
    own = distances(positions, positions, mask.astype(bool))
    if mask.dtype != jnp.bool_:
        own = jnp.where(mask[:, :, None] == mask[:, None], own, -1)
    if prefix is not None:
        own = jnp.where(prefix[:, :, None] & (prefix & mask)[:, None], 0, own)
    return Context(positions, own, tuple(distances(positions, s.positions, s.mask) for s in past), keep, order)


def check_inputs(
    tokens: Int[Array, "B T"],
    mask: Mask | None,
    vocab_size: int,
    max_positions: int | None = None,
    *,
    takes_texts: bool = False,
) -> None:
    """Raises a ValueError if shapes do not fit, there are more tokens than positions, or ids outside the vocabulary.

    With `takes_texts`, the mask may be of integers.
    """
    if tokens.ndim != 2:
        raise ValueError(f"tokens must be [B, T], got shape {tokens.shape}.")
    if max_positions is not None and tokens.shape[1] > max_positions:
        raise ValueError(
            f"tokens must have at most max_position_embeddings={max_positions} positions, got T={tokens.shape[1]}."
        )
    if mask is not None:
        sound = mask.dtype == jnp.bool_ or (takes_texts and jnp.issubdtype(mask.dtype, jnp.integer))
        if not sound or mask.shape != tokens.shape:
            also = ", or integers" if takes_texts else ""
            raise ValueError(
                f"mask must be bool{list(tokens.shape)} like tokens{also}, got {mask.dtype}{list(mask.shape)}."
            )
    token_ids.check_vocabulary("tokens", tokens, mask, vocab_size)
