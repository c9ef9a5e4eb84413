"""The matrix products of a traced function, and the seconds that they take alone."""

import collections
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params
from jax.interpreters import partial_eval

AT_ONCE = 2**22  # bytes of results of one timed call
LONG_ENOUGH = 0.02  # seconds of a timed run


@dataclasses.dataclass(frozen=True)
class Product:
    """A product of two arrays: their shapes and dtypes, and the axes that it sums over and that it keeps."""

    left: tuple[tuple[int, ...], str]
    right: tuple[tuple[int, ...], str]
    dimension_numbers: tuple
    result: tuple[tuple[int, ...], str]

    @property
    def flop(self) -> int:
        """Number of multiplications and additions."""
        (contracted, _), _ = self.dimension_numbers
        return 2 * math.prod(self.result[0]) * math.prod(self.left[0][axis] for axis in contracted)

    @property
    def turned(self) -> "Product | None":
        """The same product with its right matrix transposed, as a compiler may store it; None if it is no matrix."""
        (left, right), batched = self.dimension_numbers
        shape, dtype = self.right
        if len(shape) != 2 or len(right) != 1 or batched != ((), ()):
            return None
        return dataclasses.replace(
            self, right=(shape[::-1], dtype), dimension_numbers=((left, (1 - right[0],)), batched)
        )

    def __call__(self, left: jax.Array, right: jax.Array) -> jax.Array:
        """Computes the product."""
        dtype = jnp.dtype(self.result[1])
        return jax.lax.dot_general(left, right, self.dimension_numbers, preferred_element_type=dtype)


Counts = collections.Counter[Product]


def of(function: Callable[..., Any], *arguments: Any) -> tuple[Counts, Counts]:
    """Counts the products of a function: those that run once, and those of one round of its while loops.

    A product within a scan counts once for each of its rounds. What no result depends on is left out.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    once, looped = collections.Counter(), collections.Counter()
    for product, times, in_loop in _found(jaxpr, 1, False):
        (looped if in_loop else once)[product] += times
    return once, looped


def _found(jaxpr: Any, times: int, in_loop: bool) -> Iterator[tuple[Product, int, bool]]:
    for eqn in jaxpr.eqns:
        # Only the product with the identity in a rotation has a precision of its own; it is no work of the model.
        if eqn.primitive.name == "dot_general" and eqn.params["precision"] is None:
            left, right, out = ((x.aval.shape, x.aval.dtype.name) for x in (*eqn.invars, *eqn.outvars))
            yield Product(left, right, eqn.params["dimension_numbers"], out), times, in_loop
        rounds = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for inner in jaxprs_in_params(eqn.params):
            yield from _found(inner, times * rounds, in_loop or eqn.primitive.name == "while")


def gflop(counts: Counts) -> float:
    """Returns the billions of multiplications and additions of all products."""
    return sum(times * product.flop for product, times in counts.items()) / 1e9


class Alone:
    """Times the products of a count one after another, each with operands of its own, as weights of several layers are.

    A right matrix is taken as it is or transposed, whichever is faster.

    Args:
      counts: the products.
      most: bytes of operands that are made for a product; beyond that they are used again.
    """

    def __init__(self, counts: Counts, most: int = 2**28):
        self._runs = [
            [_run_of(way, times, most) for way in (product, product.turned) if way is not None]
            for product, times in counts.items()
        ]

    def __call__(self) -> float:
        """Returns the seconds of all products."""
        return sum(min(run() for run in ways) for ways in self._runs)


def _run_of(product: Product, times: int, most: int) -> Callable[[], float]:
    """Returns a function that returns the seconds of so many products."""
    size = lambda array: math.prod(array[0]) * jnp.dtype(array[1]).itemsize
    at_once = max(1, min(times, AT_ONCE // size(product.result)))
    copies = max(1, min(times, most // (size(product.left) + size(product.right))))
    make = lambda array, i: jax.random.normal(jax.random.key(i), array[0], jnp.dtype(array[1]))
    operands = [(make(product.left, i), make(product.right, i + copies)) for i in range(copies)]
    several = jax.jit(lambda pairs: [product(*pair) for pair in pairs])
    groups = [[operands[(start + i) % copies] for i in range(at_once)] for start in range(0, times, at_once)]

    def once() -> float:
        started = time.perf_counter()
        for group in groups:
            jax.block_until_ready(several(group))
        return (time.perf_counter() - started) * times / (len(groups) * at_once)

    once()
    repeats = max(1, math.ceil(LONG_ENOUGH / max(once(), 1e-9)))
    return lambda: statistics.median(once() for _ in range(min(repeats, 5)))
