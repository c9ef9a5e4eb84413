"""Low-rank adapters for Flax Linen modules that know nothing about them.

A method interceptor adds, at every targeted linear layer,

    y = W x + (α/r) · B A x

and keeps A and B in a variable collection of their own, `"lora"`, under the path of the layer:

    params                               lora (one hypothesis)
    └── block                            └── block
        └── q_proj                           └── q_proj
            ├── kernel [in, out]                 ├── a [in, r]
            └── bias   [out]                     └── b [r, out]

`a` keeps the contracted axes of the kernel and ends in r; `b` is the kernel with its contracted axes replaced by r, so
that both are read off the kernel for `nn.Dense`, `nn.DenseGeneral` and `nn.Einsum` alike, with any leading axis that
`nn.scan` adds in front. Source: Hu et al., LoRA (arXiv 2106.09685); rank-stabilised scaling α/√r: arXiv 2312.03732.
"""

import dataclasses
import difflib
import functools
import math
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mcl_jax import options

COLLECTION = "lora"
LINEAR_LAYERS = (nn.Dense, nn.DenseGeneral, nn.Einsum)


def matches(pattern: str, path: str) -> bool:
    """True if `pattern` is the last component(s) of the module path `a/b/c`, or a regular expression for all of it."""
    return path == pattern or path.endswith("/" + pattern) or re.fullmatch(pattern, path) is not None


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """What to adapt and how.

    Args:
      rank: r, the inner dimension of the adapters.
      alpha: α; the delta is scaled by α/r (by α/√r with `rank_stabilized`).
      dropout: probability of dropping each input feature of the adapter (not of the base layer) in training.
      targets: names of linear layers (`"q_proj"`, `"attn/out"`), or regular expressions over whole module paths
        (`r"layers_[0-3]/.*/q_proj"`). One string or a sequence of them.
      rank_stabilized: scale by α/√r.
      rank_pattern, alpha_pattern: target pattern → rank or alpha, for layers that differ; the first match wins.
      dtype: in which the delta is computed; None is the dtype of the layer's output.
      param_dtype: in which adapters are stored, float32 whatever the base is.

    Raises:
      ValueError: for a rank < 1, a dropout outside [0, 1), or no targets.
    """

    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    targets: str | Sequence[str] = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
    rank_stabilized: bool = False
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __post_init__(self):
        options.settle(self)
        for name, rank in [("rank", self.rank), *self.rank_pattern.items()]:
            if rank < 1:
                raise ValueError(f"LoraConfig: a rank must be at least 1, got {rank} for {name!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"LoraConfig: dropout must be in [0, 1), got {self.dropout}")
        if not self.patterns:
            raise ValueError("LoraConfig: targets is empty; name at least one linear layer")
        for pattern in (*self.patterns, *self.rank_pattern, *self.alpha_pattern):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"LoraConfig: {pattern!r} is not a valid regular expression: {error}") from error

    def __hash__(self):
        """Of what it says: mappings are not hashable themselves, and a config must be, to be static under jit."""
        return hash(repr(self))

    @property
    def patterns(self) -> tuple[str, ...]:
        """The targets as a tuple of patterns."""
        return (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)

    def rank_of(self, path: str) -> int:
        """r of the layer at `path`."""
        return next((r for pattern, r in self.rank_pattern.items() if matches(pattern, path)), self.rank)

    def scale_of(self, path: str) -> float:
        """The factor of B A x at `path`: α/r, or α/√r when rank-stabilised."""
        alpha = next((a for pattern, a in self.alpha_pattern.items() if matches(pattern, path)), self.alpha)
        rank = self.rank_of(path)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


@dataclasses.dataclass(frozen=True)
class LinearSpec:
    """A linear layer as the contraction `equation` = "x,kernel->y" of its input with a kernel of shape `shape`."""

    equation: str
    shape: tuple[int, ...]

    def __post_init__(self):
        if not self.kernel.startswith(self.batch) or self.contracted not in self.kernel or not self.contracted:
            raise ValueError(
                f"cannot factorise {self.equation!r}: the kernel must hold its batch axes first and its contracted "
                "axes side by side"
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
        return "".join(c for c in self.x if c not in self.contracted) + self.rank_axis


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def contract(equation: str, x: Array, weight: Array) -> Array:
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


contract.defvjp(_contract_forward, _contract_backward)


def init_a(key: Key[Array, ""], spec: LinearSpec, rank: int, dtype: Any) -> Float[Array, "*fan_in R"]:
    """A ~ U(−1/√d_in, 1/√d_in), torch's kaiming_uniform with a=√5."""
    bound = 1.0 / math.sqrt(math.prod(spec.shape_of(spec.contracted, rank)))
    return jax.random.uniform(key, spec.shape_of(spec.a, rank), dtype, -bound, bound)


def wide(dtype: jnp.dtype) -> jnp.dtype:
    """float32, or `dtype` itself if it is wider."""
    return max(dtype, jnp.dtype(jnp.float32), key=lambda dtype: dtype.itemsize)


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
    dtype = wide(kernel.dtype)
    product = jnp.einsum(f"{a_axes},{b_axes}->{axes}", a.astype(dtype), b.astype(dtype))
    return (kernel.astype(dtype) + scale * product).astype(kernel.dtype)


@dataclasses.dataclass
class Adapted:
    """What an interceptor saw: every module path, which of them are linear layers, and which are targets."""

    linear: dict[str, str] = dataclasses.field(default_factory=dict)
    other: dict[str, str] = dataclasses.field(default_factory=dict)
    targets: dict[str, LinearSpec] = dataclasses.field(default_factory=dict)

    def check(self, config: LoraConfig) -> None:
        """Raises a ValueError that lists the nearest module paths if any pattern of `config` names no linear layer."""
        for field, patterns in [
            ("targets", config.patterns),
            ("rank_pattern", config.rank_pattern),
            ("alpha_pattern", config.alpha_pattern),
        ]:
            known = self.linear if field == "targets" else self.targets
            for pattern in patterns:
                if not any(matches(pattern, path) for path in known):
                    raise ValueError(f"LoraConfig.{field}: {pattern!r} matches no linear layer. {self._hint(pattern)}")

    def _hint(self, pattern: str) -> str:
        found = [f"{path} is a {kind}" for path, kind in self.other.items() if matches(pattern, path)]
        by_name = {path.rsplit("/", 1)[-1]: path for path in self.linear}
        names = difflib.get_close_matches(pattern.rsplit("/", 1)[-1], by_name, n=5, cutoff=0.4)
        nearest = [by_name[name] for name in names] or list(self.linear)[:20]
        hint = f"Nearest of {len(self.linear)} linear layers: {', '.join(nearest) or 'none at all'}."
        adaptable = "nn.Dense, nn.DenseGeneral and nn.Einsum"
        return (f"{'; '.join(found[:3])}: only {adaptable} can be adapted. " if found else "") + hint


# delta_fn(layer, path, spec, x) -> what is added to the output of the target layer
DeltaFn = Callable[[nn.Module, str, LinearSpec, Array], Array]


def intercept(config: LoraConfig, delta_fn: DeltaFn, adapted: Adapted | None = None):
    """Context in which each targeted linear layer of any Linen module has `delta_fn` added to its output."""
    adapted = Adapted() if adapted is None else adapted

    def add_delta(next_fun, args, kwargs, context):
        y = next_fun(*args, **kwargs)
        layer, path = context.module, "/".join(context.module.path)
        if context.method_name != "__call__":
            return y
        if not isinstance(layer, LINEAR_LAYERS):
            adapted.other[path] = type(layer).__name__
            return y
        adapted.linear[path] = type(layer).__name__
        if not any(matches(pattern, path) for pattern in config.patterns):
            return y
        adapted.targets[path] = spec = linear_spec(layer, *args, **kwargs)
        x = jnp.asarray(args[0] if args else kwargs["inputs"], config.dtype or y.dtype)
        return y + delta_fn(layer, path, spec, x).astype(y.dtype)

    return nn.intercept_methods(add_delta)


def adapter_delta(config: LoraConfig, *, train: bool) -> DeltaFn:
    """The delta of one hypothesis, with A and B in the `"lora"` collection of the layer itself (declared if absent)."""

    def delta_fn(layer, path, spec, x):
        rank = config.rank_of(path)
        shape_of_a, shape_of_b = (spec.shape_of(axes, rank) for axes in (spec.a, spec.b))
        if rank_axes(spec.shape, shape_of_a, shape_of_b)[0] != spec.b.index(spec.rank_axis):
            raise ValueError(
                f"{path}: at rank {rank} the shapes of A {shape_of_a} and B {shape_of_b} do not tell how they fit the "
                f"kernel {spec.shape}; choose another rank"
            )
        a = variable(layer, path, "a", lambda: init_a(layer.make_rng("params"), spec, rank, config.param_dtype))
        b = variable(layer, path, "b", lambda: jnp.zeros(shape_of_b, config.param_dtype))
        x = dropout(layer, path, x, config.dropout if train else 0.0)
        return delta(spec, x, a, b, config.scale_of(path))

    return delta_fn


def variable(layer: nn.Module, path: str, name: str, init: Callable[[], Array]) -> Array:
    """What the `"lora"` collection of the layer holds under `name`; declared as `init()` if absent.

    Raises:
      ValueError: if it is absent and the collection is not mutable.
    """
    scope = layer.scope
    if not scope.has_variable(COLLECTION, name):
        if not scope.is_mutable_collection(COLLECTION):
            raise ValueError(
                f"{path} is a target, but the adapters hold no {path}/{name}. Were they made with other targets? "
                f'Inside nn.scan or nn.vmap the collection needs variable_axes={{"params": 0, "{COLLECTION}": 0}}.'
            )
        scope.put_variable(COLLECTION, name, init())
    return scope.get_variable(COLLECTION, name)


def dropout(layer: nn.Module, path: str, x: Array, probability: float) -> Array:
    """x with each feature dropped with this probability, the others scaled up; x itself at 0.

    Raises:
      ValueError: if the layer has no "dropout" stream of keys.
    """
    if probability == 0.0:
        return x
    if not layer.has_rng("dropout"):
        raise ValueError(f'{path}: dropout needs a "dropout" stream; nn.scan needs split_rngs={{"dropout": True}}')
    keep = jax.random.bernoulli(layer.make_rng("dropout"), 1.0 - probability, x.shape)
    return jnp.where(keep, x / (1.0 - probability), jnp.zeros_like(x))
