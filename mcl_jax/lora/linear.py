"""Linear layers as contractions of an input with a kernel; their low-rank deltas, and how to merge deltas.

A lookup in a table of embeddings is the contraction of one-hot rows with the table.
"""

import dataclasses
import functools
import math
import re
import string
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mcl_jax.dtypes import at_least_float32

KERNELS = ("kernel", "embedding")  # names of the parameters that adapters change


@dataclasses.dataclass(frozen=True)
class LinearSpec:
    """A linear layer as the contraction of its input with a kernel.

    Attributes:
      equation: an einsum equation "x,kernel->y".
      shape: shape of the kernel.
      lookup: whether the input holds numbers of rows of the kernel, in place of the contracted axis.
    Raises:
      ValueError: if the kernel's batch axes do not come first, or its contracted axes are not adjacent.
    """

    equation: str
    shape: tuple[int, ...]
    lookup: bool = False

    def __post_init__(self):
        in_order = self.kernel.startswith(self.batch) and self.contracted in self.kernel
        if not in_order or not self.contracted or len(set(self.kernel)) < len(self.kernel):
            raise ValueError(
                f"cannot factorise {self.equation!r}: the kernel must have its batch axes first and its contracted "
                "axes next to each other, each axis once"
            )

    @property
    def x(self) -> str:
        """Axes of the input."""
        return self.equation.split(",")[0]

    @property
    def kernel(self) -> str:
        """Axes of the kernel."""
        return self.equation.split(",")[1].split("->")[0]

    @property
    def y(self) -> str:
        """Axes of the output."""
        return self.equation.split("->")[1]

    @property
    def batch(self) -> str:
        """Axes of the kernel that the input and the output have too."""
        return "".join(c for c in self.kernel if c in self.x and c in self.y)

    @property
    def contracted(self) -> str:
        """Axes of the kernel that are summed over."""
        return "".join(c for c in self.kernel if c in self.x and c not in self.y)

    @property
    def rank_axis(self) -> str:
        """Letter of the rank axis r, one that the equation does not use."""
        return next(c for c in string.ascii_letters if c not in self.equation)

    @property
    def a(self) -> str:
        """Axes of A: the batch and contracted axes of the kernel, then r."""
        return self.batch + self.contracted + self.rank_axis

    @property
    def b(self) -> str:
        """Axes of B: those of the kernel, with r in place of the contracted ones."""
        return self.kernel.replace(self.contracted, self.rank_axis)

    @property
    def leaf(self) -> str:
        """Name of the kernel among the parameters of its layer."""
        return "embedding" if self.lookup else "kernel"

    def shape_of(self, axes: str, rank: int) -> tuple[int, ...]:
        """Returns the sizes of these axes, given r."""
        sizes = dict(zip(self.kernel, self.shape, strict=True)) | {self.rank_axis: rank}
        return tuple(sizes[c] for c in axes)

    @property
    def hidden(self) -> str:
        """Axes of A x: those of x, with r in place of the contracted ones."""
        return "".join(c for c in dict.fromkeys(self.x) if c not in self.contracted) + self.rank_axis


def einsum_spec(equation: str, ndim: int, shape: Sequence[int]) -> LinearSpec:
    """Returns the contraction of an input with `ndim` axes, in which "..." may stand for some, and a kernel."""
    return LinearSpec(_without_ellipsis(equation.replace(" ", ""), ndim), tuple(shape))


def _without_ellipsis(equation: str, ndim: int) -> str:
    """Replaces "..." in the equation by the letters that an input of `ndim` axes needs."""
    named = len(equation.split(",")[0].replace("...", ""))
    free = [c for c in string.ascii_letters if c not in equation]
    return equation.replace("...", "".join(free[: ndim - named]))


def dense_general_spec(
    x: Array, features: int | Sequence[int], axis: int | Sequence[int], batch_dims: int | Sequence[int]
) -> LinearSpec:
    """Returns the contraction of axes of x with a kernel [*batch, *contracted, *features]."""
    x_axes = string.ascii_letters[: x.ndim]

    def as_tuple(value):
        return (value,) if isinstance(value, int) else tuple(value)

    def in_order(dims):
        return "".join(x_axes[i] for i in sorted(i % x.ndim for i in as_tuple(dims)))

    features, contracted, batch = as_tuple(features), in_order(axis), in_order(batch_dims)
    free = string.ascii_letters[x.ndim : x.ndim + len(features)]
    others = "".join(c for c in x_axes if c not in contracted + batch)
    sizes = dict(zip(x_axes, x.shape, strict=True))
    shape = tuple(sizes[c] for c in batch + contracted) + features
    return LinearSpec(f"{x_axes},{batch}{contracted}{free}->{batch}{others}{free}", shape)


def lookup_spec(ids: Array, shape: Sequence[int]) -> LinearSpec:
    """Returns the contraction of one-hot rows for these numbers with a table [V, D]."""
    x = string.ascii_letters[: jnp.ndim(ids)]
    row, feature = string.ascii_letters[jnp.ndim(ids) : jnp.ndim(ids) + 2]
    return LinearSpec(f"{x}{row},{row}{feature}->{x}{feature}", tuple(shape), lookup=True)


def delta(spec: LinearSpec, x: Array, a: Array, b: Array, scale: float) -> Array:
    """Computes scale · B A x in the dtype of x, or for a lookup that of A. Only for reverse mode, see `contract`."""
    hidden = a[x] if spec.lookup else contract(f"{spec.x},{spec.a}->{spec.hidden}", x, a.astype(x.dtype))
    return scale * contract(f"{spec.hidden},{spec.b}->{spec.y}", hidden, b.astype(hidden.dtype))


def delta_by_token(
    spec: LinearSpec, x: Array, a: Array, b: Array, scale: float, k_of_token: Int[Array, "B T"]
) -> Array:
    """Computes scale · B_k A_k x with the adapters of hypothesis k = `k_of_token[b, t]` for the token t of row b.

    A x is computed for all k, and set to 0 for all but that of the token. Thus, the adapters take part in one product
    for all tokens, as one adapter of rank r·K would.

    Args:
      spec, x, scale: as in `delta`.
      a, b: A and B of all hypotheses, with the axis K before their last one.
      k_of_token: hypothesis of each token.
    Raises:
      ValueError: if the first axes of x are not those of the tokens.
    """
    if x.shape[:2] != k_of_token.shape:
        raise ValueError(
            f"the input of an adapted layer must begin with the axes [B, T] = {k_of_token.shape} of the tokens, got "
            f"shape {x.shape}"
        )
    K = next(c for c in string.ascii_letters if c not in spec.equation + spec.rank_axis)
    a_axes, b_axes, hidden_axes = (f"{axes[:-1]}{K}{axes[-1]}" for axes in (spec.a, spec.b, spec.hidden))
    hidden = a[x] if spec.lookup else contract(f"{spec.x},{a_axes}->{hidden_axes}", x, a.astype(x.dtype))
    of_token = k_of_token[..., None] == jnp.arange(a.shape[-2])[None, None]  # [B, T, K]
    of_token = of_token.reshape(*k_of_token.shape, *(1,) * (hidden.ndim - 4), -1, 1)
    hidden = jnp.where(of_token, hidden, jnp.zeros((), hidden.dtype))
    return scale * contract(f"{hidden_axes},{b_axes}->{spec.y}", hidden, b.astype(hidden.dtype))


def contract(equation: str, x: Array, weight: Array) -> Array:
    """Computes jnp.einsum(equation, x, weight), with explicit gradients where these are contractions themselves."""
    x_axes, weight_axes, y_axes = operands = re.split(",|->", equation)
    once = all(len(set(axes)) == len(axes) for axes in operands)
    if once and set(x_axes) <= {*weight_axes, *y_axes} and set(weight_axes) <= {*x_axes, *y_axes}:
        return _contract(equation, x, weight)
    return jnp.einsum(equation, x, weight)  # one operand alone has an axis that is summed over or occurs twice


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _contract(equation: str, x: Array, weight: Array) -> Array:
    """Computes jnp.einsum(equation, x, weight).

    The gradients are the usual ones, but with another order of operands. With the order of JAX's own rule, XLA makes
    transposed copies of x and of the cotangent for every adapted layer and recomputes the residual stream for each,
    which took half of the backward pass on a CPU.
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
    """Draws A ~ U(−1/√d_in, 1/√d_in), as torch's kaiming_uniform does with a=√5. Of a lookup's inputs one is not 0."""
    d_in = 1 if spec.lookup else math.prod(spec.shape_of(spec.contracted, rank))
    bound = 1.0 / math.sqrt(d_in)
    return jax.random.uniform(key, spec.shape_of(spec.a, rank), dtype, -bound, bound)


def rank_axes(kernel: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> list[int]:
    """Returns the possible positions of r among the axes of B, given the three shapes; usually there is one.

    If the rank equals the input size of a square layer there are two; the first one is right, since `adapter_delta`
    refuses to create the others.
    """
    contracted = len(kernel) - len(b) + 1
    batch, inputs = len(a) - 1 - contracted, a[-1 - contracted : -1]
    if contracted < 1 or batch < 0:
        return []
    return [i for i in range(batch, len(b)) if b[i] == a[-1] and b[:i] + inputs + b[i + 1 :] == kernel]


def merge_kernel(kernel: Array, a: Array, b: Array, scale: float) -> Array:
    """Computes kernel + scale · A B in float32 or wider. The three shapes determine the axes.

    Args:
      kernel: [*pre, *contracted, *post], with the layer axis of a scan in `pre`.
      a: [*batch, *contracted, r], where `batch` is the beginning of `pre`.
      b: [*pre, r, *post].
      scale: factor of A B.
    Returns:
      The merged kernel, in the dtype of `kernel`.
    Raises:
      ValueError: if the shapes do not fit together.
    """
    fits = rank_axes(kernel.shape, a.shape, b.shape)
    if not fits:
        raise ValueError(f"cannot merge: A {a.shape} and B {b.shape} do not fit the kernel {kernel.shape}")
    contracted = kernel.ndim - b.ndim + 1
    axes = string.ascii_letters[: kernel.ndim]
    inner = axes[fits[0] : fits[0] + contracted]
    a_axes, b_axes = axes[: a.ndim - 1 - contracted] + inner + "Z", axes.replace(inner, "Z")
    dtype = at_least_float32(kernel.dtype)
    product = jnp.einsum(f"{a_axes},{b_axes}->{axes}", a.astype(dtype), b.astype(dtype))
    return (kernel.astype(dtype) + scale * product).astype(kernel.dtype)
