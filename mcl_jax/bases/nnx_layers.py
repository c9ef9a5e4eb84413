"""How the target layers of a module of Flax NNX are adapted.

NNX has no interceptors. Instead, `adapt` makes every target layer of a module that was just built an instance of a
subclass, whose `__call__` adds the delta. The adding class comes directly before `nnx.Linear`, `nnx.LinearGeneral` or
`nnx.Einsum` in the method resolution order. So a layer of the user's own subclass is adapted where it calls
`super().__call__`, and the kernel stays where it is. Adapters are variables of the layer beside its kernel, which
`nnx.scan`, `nnx.vmap` and `nnx.remat` treat as they treat parameters.
"""

import collections
import dataclasses
import functools
import itertools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from mcl_jax import lora
from mcl_jax.lora.intercept import normalizes, refuse_batch_statistics, unknown_use

LINEAR_LAYERS = (nnx.Linear, nnx.LinearGeneral, nnx.Einsum)
REPARAMETERIZED = (nnx.WeightNorm, nnx.SpectralNorm)
VARIABLE = "lora_"  # beginning of the names of variables that a target layer gets: lora_a, lora_b
DROPOUT_KEY = VARIABLE + "dropout_key"


def folded(key: Key[Array, ""], path: str) -> Key[Array, ""]:
    """Returns the key of what is at this path."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def adapt(
    module: nnx.Module,
    config: lora.LoraConfig,
    delta: lora.DeltaFn,
    layers: dict[str, dict[str, Array]],
    dropout_rng: Key[Array, ""] | None,
    seen: lora.Adapted | None = None,
) -> None:
    """Makes the target layers of a module that was just built add `delta` to their outputs.

    Args:
      module: the module; changed in place.
      config: targets and dtype.
      delta: computes the term to add.
      layers: adapters of each layer by path.
      dropout_rng: key of adapter dropout, or None.
      seen: collects the modules, and the targets that are called.
    Raises:
      ValueError: if B A could not be merged into the kernel of a target.
    """
    modules = {"/".join(map(str, path)): node for path, node in nnx.iter_modules(module)}
    refuse = _Refusals(modules)
    for path, node in modules.items():
        if isinstance(node, nnx.BatchNorm):
            _become(node, Adaptation(path))
        elif not isinstance(node, LINEAR_LAYERS):
            if seen is not None:
                seen.other[path] = type(node).__name__
        else:
            if seen is not None:
                seen.linear[path] = type(node).__name__
            if not config.adapts(path):
                continue
            stack = refuse(path, node)
            for name, leaf in layers.get(path, {}).items():
                setattr(node, VARIABLE + name, nnx.LoRAParam(leaf))
            if dropout_rng is not None:
                keys = jax.random.split(folded(dropout_rng, f"{path}/{DROPOUT_KEY}"), stack)
                setattr(node, DROPOUT_KEY, nnx.LoRAParam(keys))
            _become(node, Adaptation(path, config, delta, seen))


class _Refusals:
    """Refuses targets whose kernels are not theirs alone, or not used as the parameters store them."""

    def __init__(self, modules: dict[str, nnx.Module]):
        variables = [leaf for node in modules.values() for leaf in vars(node).values() if isinstance(leaf, nnx.Param)]
        self.owners = collections.Counter(map(id, variables))
        self.normalized = {
            id(inner): type(node).__name__
            for node in modules.values()
            if isinstance(node, REPARAMETERIZED)
            for _, inner in nnx.iter_modules(node)
        }

    def __call__(self, path: str, layer: Any) -> tuple[int, ...]:
        """Returns the axes of the kernel along which layers are stacked, or raises a ValueError."""
        if (outside := self.normalized.get(id(layer))) is not None:
            raise ValueError(normalizes(path, f"nnx.{outside}"))
        if self.owners[id(layer.kernel)] > 1:
            raise ValueError(
                f"{path} shares its kernel with another layer, so B A could not be merged into it; leave {path} out of "
                "the targets"
            )
        expected, shape = _kernel_shape(layer), layer.kernel.shape
        stacked = len(shape) - len(expected)
        if stacked < 0 or shape[stacked:] != expected:
            raise ValueError(
                f"{path} needs a kernel of shape {expected}, with the axes of stacked layers in front, got {shape}"
            )
        return shape[:stacked]


def _kernel_shape(layer: Any) -> tuple[int, ...]:
    if isinstance(layer, nnx.Einsum):
        return tuple(layer.kernel_shape)
    if isinstance(layer, nnx.Linear):
        return layer.in_features, layer.out_features
    return *layer.batch_axis.values(), *layer.in_features, *layer.out_features


@dataclasses.dataclass(frozen=True, eq=False)
class Adaptation:
    """What a layer that was made adaptable knows: a static attribute of it.

    Attributes:
      path: path of the layer.
      config, delta, seen: as in `adapt`.
    """

    path: str
    config: lora.LoraConfig | None = None
    delta: lora.DeltaFn | None = None
    seen: lora.Adapted | None = None

    def added(self, layer: nnx.Module, y: Array, spec: lora.LinearSpec, inputs: Array) -> Array:
        """Returns the output y of the layer plus the delta."""
        if self.seen is not None:
            self.seen.targets[self.path] = spec
        x = jnp.asarray(inputs, self.config.dtype or y.dtype)
        try:
            return y + self.delta(_Layer(layer), self.path, spec, x).astype(y.dtype)
        except lora.AbsentAdapterError as error:
            raise ValueError(f"{error}. Check that the adapters were made with the same targets.") from error

    def check(self, kind: type) -> None:
        """Raises a ValueError if a subclass's own `__call__`, which was called, did not call the linear layer."""
        if self.seen is not None and self.path not in self.seen.targets:
            base = next(base.__name__ for base in LINEAR_LAYERS if issubclass(kind, base))
            raise ValueError(unknown_use(self.path, kind.__name__, f"nnx.{base}"))


def _become(layer: nnx.Module, adaptation: Adaptation) -> None:
    """Makes the layer an instance of the subclass that uses the adaptation."""
    layer.lora_adaptation = adaptation
    object.__setattr__(layer, "__class__", _adaptable(type(layer)))


class _Linear(nnx.Linear):
    def __call__(self, inputs, *args, **kwargs):
        spec = lora.dense_general_spec(inputs, self.out_features, axis=-1, batch_dims=())
        return self.lora_adaptation.added(self, super().__call__(inputs, *args, **kwargs), spec, inputs)


class _LinearGeneral(nnx.LinearGeneral):
    def __call__(self, inputs, *args, **kwargs):
        spec = lora.dense_general_spec(inputs, self.out_features, self.axis, tuple(self.batch_axis))
        return self.lora_adaptation.added(self, super().__call__(inputs, *args, **kwargs), spec, inputs)


class _Einsum(nnx.Einsum):
    def __call__(self, inputs, einsum_str=None, *args, **kwargs):
        y = super().__call__(inputs, einsum_str, *args, **kwargs)
        spec = lora.einsum_spec(einsum_str or self.einsum_str, inputs.ndim, self.kernel_shape)
        return self.lora_adaptation.added(self, y, spec, inputs)


class _BatchNorm(nnx.BatchNorm):
    def __call__(self, x, *args, **kwargs):
        refuse_batch_statistics(self, self.lora_adaptation.path, "nnx.BatchNorm", x, *args, **kwargs)
        return super().__call__(x, *args, **kwargs)


ADAPTABLE = {nnx.Linear: _Linear, nnx.LinearGeneral: _LinearGeneral, nnx.Einsum: _Einsum, nnx.BatchNorm: _BatchNorm}


@functools.cache
def _adaptable(kind: type) -> type:
    """Returns the subclass of a layer's class that uses its `lora_adaptation`."""
    if kind in ADAPTABLE:
        return ADAPTABLE[kind]
    base = next(base for base in ADAPTABLE if issubclass(kind, base))

    def call(self, *args, **kwargs):
        y = kind.__call__(self, *args, **kwargs)
        self.lora_adaptation.check(kind)
        return y

    own = {} if base is nnx.BatchNorm else {"__call__": call}
    return type(kind.__name__, (kind, ADAPTABLE[base]), {"__module__": kind.__module__, **own})


class _Layer:
    """A layer as a delta function sees it, see `lora.Layer`: its adapters cannot be declared."""

    def __init__(self, layer: nnx.Module):
        self.layer = layer

    def has_rng(self, name):
        return name == "dropout" and hasattr(self.layer, DROPOUT_KEY)

    def make_rng(self, name):
        return getattr(self.layer, DROPOUT_KEY)[...]  # the same each time: a layer that is called twice drops the same

    def is_mutable_collection(self, collection):
        return False

    def has_variable(self, collection, name):
        return hasattr(self.layer, VARIABLE + name)

    def get_variable(self, collection, name):
        return getattr(self.layer, VARIABLE + name)[...]


class Declaring:
    """A layer whose adapters are being declared."""

    def __init__(self, key: Key[Array, ""]):
        self.keys = (jax.random.fold_in(key, number) for number in itertools.count())
        self.variables: dict[str, Array] = {}

    def has_rng(self, name):
        return name == "params"

    def make_rng(self, name):
        return next(self.keys)

    def is_mutable_collection(self, collection):
        return True

    def has_variable(self, collection, name):
        return name in self.variables

    def get_variable(self, collection, name):
        return self.variables[name]

    def put_variable(self, collection, name, value):
        self.variables[name] = value
