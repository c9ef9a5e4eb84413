"""The interceptor that adds deltas to targeted linear layers, and the variables that it declares in them."""

import dataclasses
import difflib
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from mcl_jax.lora.config import LoraConfig, matches
from mcl_jax.lora.linear import LinearSpec, delta, init_a, linear_spec, rank_axes

COLLECTION = "lora"
LINEAR_LAYERS = (nn.Dense, nn.DenseGeneral, nn.Einsum)


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
