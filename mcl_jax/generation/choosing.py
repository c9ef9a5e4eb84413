"""Decoding under some of the hypotheses only, which a selector chooses for each prompt."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from mcl_jax import hypotheses, selector, token_ids
from mcl_jax.generation.inputs import Inputs, prompts_of
from mcl_jax.language_model import check_language_model
from mcl_jax.mesh import laid_out, over_data
from mcl_jax.models.decoder import Segment

ROW_AXES = Segment(keys=-4, values=-4, positions=-2, mask=-2, memory=-4)  # axis of the rows
# Axis of the hypotheses, or of the prompts once it is split off. That of scanned layers stays the first of all: with
# another axis in front, every step would turn all keys and values before the scan.
BATCH_AXES = jax.tree.map(lambda axis: axis - 1, ROW_AXES)


def prompt_features(
    model: hypotheses.AdaptedModule, params: Any, inputs: Inputs, *, mesh: Mesh | None = None
) -> Float[Array, "B D"]:
    """Returns the hidden state of the frozen base at the last token of each prompt, without adapters, in float32.

    Args:
      model: hypotheses of a language model.
      params: parameters of the base.
      inputs: the prompts, as passed to `decode`.
      mesh: devices to run on, as in `decode`; None means one device.
    Raises:
      ValueError: if the inputs are wrong, see `decode`.
    """
    check_language_model(model.module, ("hidden",))
    tokens, mask, features, _ = prompts_of(inputs, model.module)
    return _features(model, *laid_out(mesh, params, (tokens, mask, features)))[: len(tokens)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _features(model, layout, params, batch):
    def last(params, batch):
        tokens, mask, features = batch
        if getattr(model.module, "takes_prefix", False):
            features = features | {"prefix": mask}
        return model.apply_base(params, tokens, mask, **features, method="hidden")[:, -1].astype(jnp.float32)

    return over_data(last, layout, out_axis=0)(params, batch)


def chosen_of(
    model: hypotheses.AdaptedModule,
    params: Any,
    inputs: Inputs,
    num_hypotheses: int,
    by: selector.Selector | None,
    top: int | None,
    chosen: Int[Array, "m B"] | None,
    mesh: Mesh | None,
) -> Int[Array, "B m"] | None:
    """Returns the hypotheses of each prompt that `decode` decodes, from its arguments; None for all of them in order.

    Raises:
      ValueError: if the arguments contradict each other, or name hypotheses that there are not.
    """
    if chosen is not None:
        if by is not None or top is not None:
            raise ValueError("chosen gives the hypotheses of each prompt, so selector and top_hypotheses must be None")
        return _checked(chosen, len(prompts_of(inputs, model.module).tokens), num_hypotheses)
    if (by is None) != (top is None):
        raise ValueError(f"top_hypotheses and selector need each other, got top_hypotheses={top} and selector={by}")
    if by is None:
        return None
    if by.num_hypotheses != num_hypotheses:
        raise ValueError(f"the selector must have K = {num_hypotheses} hypotheses, got {by.num_hypotheses}")
    return selector.choose(by.log_gamma(prompt_features(model, params, inputs, mesh=mesh)), top).T


def _checked(chosen: Any, num_prompts: int, num_hypotheses: int) -> Int[Array, "B m"]:
    shape, values = jnp.shape(chosen), token_ids.known(chosen)
    if len(shape) != 2 or shape[1] != num_prompts or not shape[0]:
        raise ValueError(f"chosen must be hypotheses [m, B] of B = {num_prompts} prompts, got shape {shape}")
    if values is not None and not (
        np.issubdtype(values.dtype, np.integer) and values.min() >= 0 and values.max() < num_hypotheses
    ):
        raise ValueError(f"chosen must be integers in [0, K = {num_hypotheses}), got {values.min()} to {values.max()}")
    return jnp.asarray(chosen, jnp.int32).T


def extend_chosen(model, params, adapters, B, tokens, mask, positions, past, **features):
    """Runs the rows of each prompt under adapters of its own, as `generate` runs all rows under the same ones.

    Args:
      model, params: the hypotheses and their base.
      adapters: adapters with leading axes [m, B].
      B: number of prompts.
      tokens: [m, R, S] with R = B·r rows in the order (B, r).
      mask, positions: [R, S].
      past: segments with an axis m, see `BATCH_AXES`.
      **features: {"features": [B, N, D]} or nothing.
    Returns:
      Logits [m, R, 1, V] of the last position, and the segment with an axis m.
    """
    mask, positions, features = (jax.tree.map(lambda x: _split(x, 0, B), of) for of in (mask, positions, features))

    def prompt(adapters_kb, tokens, mask, positions, past, features):
        call = functools.partial(model.apply, params, adapters_kb)
        hidden, segment = call(tokens, mask, positions, past, **features, method="extend")
        return call(hidden[:, -1:], method="logits"), segment

    def one(adapters_k, tokens_k, past_k):
        axes = (hypotheses.axes(adapters), 0, 0, 0, (BATCH_AXES,) * len(past_k), 0)
        split = tuple(_by_axis(lambda x, axis: _split(x, axis, B), segment) for segment in past_k)
        every = jax.vmap(prompt, axes, (0, BATCH_AXES))
        logits, segment = every(adapters_k, _split(tokens_k, 0, B), mask, positions, split, features)
        return logits.reshape(-1, *logits.shape[2:]), _by_axis(_merge, segment)

    return jax.vmap(one, (hypotheses.axes(adapters), 0, (BATCH_AXES,) * len(past)), (0, BATCH_AXES))(
        adapters, tokens, past
    )


def _by_axis(change, segment: Segment) -> Segment:
    """Applies change(leaf, axis of its rows) to the leaves of a segment."""
    return jax.tree.map(lambda axis, part: jax.tree.map(lambda x: change(x, axis), part), ROW_AXES, segment)


def _split(x: Array, axis: int, size: int) -> Array:
    """Reshapes the axis of B·r rows to [B, r]."""
    return x.reshape(*x.shape[:axis], size, x.shape[axis] // size, *x.shape[axis + 1 :])


def _merge(x: Array, axis: int) -> Array:
    """Undoes `_split` for an axis that is counted from the end."""
    return x.reshape(*x.shape[: axis - 1], -1, *x.shape[axis + 1 :])
