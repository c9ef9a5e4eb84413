"""What an adapter adds to the output of a layer, whichever library the layer is from.

A delta function asks little of the layer: its random keys, and the variables of its `"lora"` collection. These are
methods of `flax.linen.Module`; `mcl_jax.bases.nnx_layers` gives layers of `flax.nnx` the same.
"""

from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from mcl_jax.lora.config import SHARED_A, SHARED_B, LoraConfig
from mcl_jax.lora.dora import MAGNITUDE, decomposed_delta, outputs
from mcl_jax.lora.linear import LinearSpec, delta, delta_by_token, init_a, rank_axes

COLLECTION = "lora"


class Layer(Protocol):
    """The methods of a layer that delta functions use, as `flax.linen.Module` has them."""

    def has_rng(self, name: str) -> bool:
        """Whether there is a stream of random keys of this name."""

    def make_rng(self, name: str) -> Key[Array, ""]:
        """Returns the next key of a stream."""

    def is_mutable_collection(self, collection: str) -> bool:
        """Whether variables can be put into a collection."""

    def has_variable(self, collection: str, name: str) -> bool:
        """Whether the layer has a variable."""

    def get_variable(self, collection: str, name: str) -> Any:
        """Returns a variable."""

    def put_variable(self, collection: str, name: str, value: Any) -> None:
        """Sets a variable."""

    def sow(self, collection: str, name: str, value: Any) -> bool:
        """Adds a value to a collection; returns False if the collection is not mutable."""


# delta_fn(layer, path, spec, x) -> the term to add to the output of the target layer
DeltaFn = Callable[[Layer, str, LinearSpec, Array], Array]


def adapter_delta(config: LoraConfig, *, train: bool, k_of_token: Int[Array, "B T"] | None = None) -> DeltaFn:
    """Returns the delta function of one hypothesis; A and B are "lora" variables of the layer, declared if absent.

    With `k_of_token`, each token has the hypothesis of that number, and A and B have an axis K before their last one.
    """

    def delta_fn(layer, path, spec, x):
        rank = config.rank_of(path)
        shape_of_a, shape_of_b = (spec.shape_of(axes, rank) for axes in (spec.a, spec.b))
        check_shapes(path, spec, rank, shape_of_a, shape_of_b)
        a = variable(layer, path, "a", lambda: init_a(layer.make_rng("params"), spec, rank, config.param_dtype))
        b = variable(layer, path, "b", lambda: jnp.zeros(shape_of_b, config.param_dtype))
        probability, scale = config.dropout if train and not spec.lookup else 0.0, config.scale_of(path)
        x = dropout(layer, path, x, probability)
        if config.dora:
            kernel, shape = _kernel(layer, path, spec), spec.shape_of(outputs(spec), rank)
            m = variable(layer, path, MAGNITUDE, lambda: jnp.zeros(shape, config.param_dtype))
            return decomposed_delta(spec, x, kernel, a, b, m, scale)
        one = (spec, x, a, b, scale)
        own = delta(*one) if k_of_token is None else delta_by_token(*one, k_of_token)
        if not config.shared_rank:
            return own
        shapes = [spec.shape_of(axes, config.shared_rank) for axes in (spec.a, spec.b)]
        check_shapes(path, spec, config.shared_rank, *shapes)
        draw = lambda: init_a(layer.make_rng("params"), spec, config.shared_rank, config.param_dtype)
        shared_a = variable(layer, path, SHARED_A, draw)
        shared_b = variable(layer, path, SHARED_B, lambda: jnp.zeros(shapes[1], config.param_dtype))
        return own + delta(spec, x, shared_a, shared_b, scale)

    return delta_fn


def _kernel(layer: Layer, path: str, spec: LinearSpec) -> Array:
    """Returns the kernel of a layer, whose norm DoRA needs."""
    if spec.lookup:
        raise ValueError(f"{path} is a table of embeddings, which has no DoRA; leave it out of the targets")
    kernel = nn.meta.unbox(layer.get_variable("params", spec.leaf))
    if not isinstance(kernel, jax.Array | np.ndarray):
        raise ValueError(f"{path} is quantized, so the norms that DoRA needs are not exact; load the base unquantized")
    return kernel


def check_shapes(path: str, spec: LinearSpec, rank: int, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """Raises a ValueError if the shapes of A and B do not tell which axis of B is the rank."""
    if rank_axes(spec.shape, a, b)[0] != spec.b.index(spec.rank_axis):
        raise ValueError(
            f"{path}: at rank {rank} the shapes of A {a} and B {b} fit the kernel {spec.shape} in more than one way; "
            "choose another rank"
        )


class AbsentAdapterError(LookupError):
    """A target layer has no adapter in its `"lora"` collection and cannot declare one."""


def variable(layer: Layer, path: str, name: str, init: Callable[[], Array]) -> Array:
    """Returns a variable of the layer's `"lora"` collection; declares it as `init()` if it is absent.

    Raises:
      AbsentAdapterError: if the variable is absent and the collection is not mutable.
    """
    if not layer.has_variable(COLLECTION, name):
        if not layer.is_mutable_collection(COLLECTION):
            raise AbsentAdapterError(f"{path} is a target, but the adapters have no {path}/{name}")
        layer.put_variable(COLLECTION, name, init())
    return layer.get_variable(COLLECTION, name)


def dropout(layer: Layer, path: str, x: Array, probability: float) -> Array:
    """Drops each feature of x with the given probability and scales up the others; returns x if it is 0.

    Raises:
      ValueError: if the layer has no "dropout" stream of random keys.
    """
    if probability == 0.0:
        return x
    if not layer.has_rng("dropout"):
        raise ValueError(
            f'{path}: dropout needs a "dropout" stream of random keys; inside nn.scan, set '
            'split_rngs={"dropout": True}'
        )
    threshold = min(round(probability * 2**32), 2**32 - 1)
    keep = random_bits(layer.make_rng("dropout"), x.shape) >= jnp.uint32(threshold)
    return jnp.where(keep, x / (1.0 - probability), jnp.zeros_like(x))


def random_bits(key: Array, shape: tuple[int, ...]) -> Array:
    """Returns 32 random bits for each element: a hash of the words of the key and of the element's index.

    It takes far fewer operations than `jax.random.bits`, whose unrolled rounds make a large model slow to compile. It
    is for masks, not for cryptography.

    Args:
      key: random key of any implementation, new-style or raw.
      shape: shape of the result, of fewer than 2³² elements.
    """
    words = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    bits = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        bits = bits * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    for i in range(words.size):
        bits = _mix(bits ^ words[i])
    return bits


def _mix(x: Array) -> Array:
    """Permutes the 32-bit integers: lowbias32 of Chris Wellons (2018), "Prospecting for Hash Functions"."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
