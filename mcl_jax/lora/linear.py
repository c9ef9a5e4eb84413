"""Linear layers as contractions of an input with a kernel, their low-rank deltas, and deltas merged into kernels."""

import dataclasses
import functools
import math
import re
import string
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mcl_jax.dtypes import at_least_float32


@dataclasses.dataclass(frozen=True)
class LinearSpec:
    """A linear layer as the contraction `equation` = "x,kernel->y" of its input with a kernel of shape `shape`."""

    equation: str
    shape: tuple[int, ...]

    def __post_init__(self):
        in_order = self.kernel.startswith(self.batch) and self.contracted in self.kernel
        if not in_order or not self.contracted or len(set(self.kernel)) < len(self.kernel):
            raise ValueError(
                f"cannot factorise {self.equation!r}: the kernel must hold its batch axes first and its contracted "
                "axes side by side, each once"
            )

    @property
    def x(self) -> str:
        return self.equation.split(",")[0]

    @property
    def kernel(self) -> str:
        return self.equation.split(",")[1].split("->")[0]

    @property
    def y(self) -> str:
        return self.equation.split("->")[1]

    @property
    def batch(self) -> str:
        return "".join(c for c in self.kernel if c in self.x and c in self.y)

    @property
    def contracted(self) -> str:
        return "".join(c for c in self.kernel if c in self.x and c not in self.y)

    @property
    def rank_axis(self) -> str:
        return next(c for c in string.ascii_letters if c not in self.equation)

    @property
    def a(self) -> str:
        """Axes of A: the batch and contracted axes of the kernel, then r."""
        return self.batch + self.contracted + self.rank_axis

    @property
    def b(self) -> str:
        """Axes of B: those of the kernel, with r in the place of the contracted ones."""
        return self.kernel.replace(self.contracted, self.rank_axis)

    def shape_of(self, axes: str, rank: int) -> tuple[int, ...]:
        sizes = dict(zip(self.kernel, self.shape, strict=True)) | {self.rank_axis: rank}
        return tuple(sizes[c] for c in axes)

    @property
    def hidden(self) -> str:
        """Axes of A x: those of x, with r in the place of the contracted ones."""
        return "".join(c for c in dict.fromkeys(self.x) if c not in self.contracted) + self.rank_axis


def linear_spec(layer: nn.Module, inputs: Array, einsum_str: str | None = None) -> LinearSpec:
    """How `layer`, called with these arguments, contracts its inputs with its kernel."""
    if isinstance(layer, nn.Einsum):
        equation = nn.merge_param("einsum_str", layer.einsum_str, einsum_str).replace(" ", "")
        return LinearSpec(_without_ellipsis(equation, jnp.ndim(inputs)), tuple(layer.shape))
    if isinstance(layer, nn.Dense):
        return _dense_general_spec(inputs, layer.features, axis=-1, batch_dims=())
    return _dense_general_spec(inputs, layer.features, layer.axis, layer.batch_dims)


def _without_ellipsis(equation: str, ndim: int) -> str:
    """The equation with "..." written out as the letters that an input of `ndim` axes needs."""
    named = len(equation.split(",")[0].replace("...", ""))
    free = [c for c in string.ascii_letters if c not in equation]
    return equation.replace("...", "".join(free[: ndim - named]))


def _dense_general_spec(x: Array, features, axis, batch_dims) -> LinearSpec:
    as_tuple = lambda value: (value,) if isinstance(value, int) else tuple(value)
    features = as_tuple(features)
    axes = x_axes = string.ascii_letters[: x.ndim]
    in_order = lambda dims: "".join(axes[i] for i in sorted(i % x.ndim for i in as_tuple(dims)))
    contracted, batch = in_order(axis), in_order(batch_dims)
    free = string.ascii_letters[x.ndim : x.ndim + len(features)]
    others = "".join(c for c in x_axes if c not in contracted + batch)
    sizes = dict(zip(x_axes, x.shape, strict=True))
    shape = tuple(sizes[c] for c in batch + contracted) + features
    return LinearSpec(f"{x_axes},{batch}{contracted}{free}->{batch}{others}{free}", shape)


def delta(spec: LinearSpec, x: Array, a: Array, b: Array, scale: float) -> Array:
    """scale · B A x in the dtype of x. Reverse mode only: see `contract`."""
    hidden = contract(f"{spec.x},{spec.a}->{spec.hidden}", x, a.astype(x.dtype))
    return scale * contract(f"{spec.hidden},{spec.b}->{spec.y}", hidden, b.astype(x.dtype))


def contract(equation: str, x: Array, weight: Array) -> Array:
    """jnp.einsum(equation, x, weight), with gradients written out where each is a contraction of the other two."""
    x_axes, weight_axes, y_axes = operands = re.split(",|->", equation)
    once = all(len(set(axes)) == len(axes) for axes in operands)
    if once and set(x_axes) <= {*weight_axes, *y_axes} and set(weight_axes) <= {*x_axes, *y_axes}:
        return _contract(equation, x, weight)
    return jnp.einsum(equation, x, weight)  # an axis is summed over or taken twice in one operand alone


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _contract(equation: str, x: Array, weight: Array) -> Array:
    """jnp.einsum(equation, x, weight).

    The gradients are the usual ones. They are written out for the order of their operands: from the order that JAX's
    own rule gives, XLA makes transposed copies of x and of the cotangent for every adapted layer, each with the chain
    of residual sums before it computed anew, which took half of the backward pass on a CPU.
    """
    return jnp.einsum(equation, x, weight)


def _contract_forward(equation, x, weight):
    return jnp.einsum(equation, x, weight), (x, weight)


def _contract_backward(equation, saved, g):
    (x, weight), (x_axes, weight_axes, y_axes) = saved, re.split(",|->", equation)
    d_x = jnp.einsum(f"{y_axes},{weight_axes}->{x_axes}", g, weight)
    d_weight = jnp.einsum(f"{x_axes},{y_axes}->{weight_axes}", x, g)
    return d_x, d_weight


_contract.defvjp(_contract_forward, _contract_backward)


def init_a(key: Key[Array, ""], spec: LinearSpec, rank: int, dtype: Any) -> Float[Array, "*fan_in R"]:
    """A ~ U(−1/√d_in, 1/√d_in), torch's kaiming_uniform with a=√5."""
    bound = 1.0 / math.sqrt(math.prod(spec.shape_of(spec.contracted, rank)))
    return jax.random.uniform(key, spec.shape_of(spec.a, rank), dtype, -bound, bound)


def rank_axes(kernel: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> list[int]:
    """Where r can stand among the axes of B, given the three shapes, most often one place.

    A rank as large as the inputs of a square layer leaves two; the first is then the right one, since `adapter_delta`
    refuses to make the others.
    """
    contracted = len(kernel) - len(b) + 1
    batch, inputs = len(a) - 1 - contracted, a[-1 - contracted : -1]
    if contracted < 1 or batch < 0:
        return []
    return [i for i in range(batch, len(b)) if b[i] == a[-1] and b[:i] + inputs + b[i + 1 :] == kernel]


def merge_kernel(kernel: Array, a: Array, b: Array, scale: float) -> Array:
    """kernel + scale · A B, computed in float32 or wider; the axes are read off the three shapes.

    Args:
      kernel: [*pre, *contracted, *post], with the layer axis of a scan in `pre`.
      a: [*batch, *contracted, r], where batch is the beginning of pre.
      b: [*pre, r, *post].
    Raises:
      ValueError: when the shapes do not fit together.
    """
    fits = rank_axes(kernel.shape, a.shape, b.shape)
    if not fits:
        raise ValueError(f"cannot merge: a {a.shape} and b {b.shape} do not fit the kernel {kernel.shape}")
    contracted = kernel.ndim - b.ndim + 1
    axes = string.ascii_letters[: kernel.ndim]
    inner = axes[fits[0] : fits[0] + contracted]
    a_axes, b_axes = axes[: a.ndim - 1 - contracted] + inner + "Z", axes.replace(inner, "Z")
    dtype = at_least_float32(kernel.dtype)
    product = jnp.einsum(f"{a_axes},{b_axes}->{axes}", a.astype(dtype), b.astype(dtype))
    return (kernel.astype(dtype) + scale * product).astype(kernel.dtype)
