"""The method interceptor that adds deltas to targeted layers of Flax Linen and declares the adapters as variables."""

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core.scope import in_filter
from jaxtyping import Array

from mcl_jax.lora.adapted import Adapted
from mcl_jax.lora.config import LoraConfig
from mcl_jax.lora.layer import COLLECTION, AbsentAdapterError, DeltaFn
from mcl_jax.lora.linear import LinearSpec, dense_general_spec, einsum_spec, lookup_spec

LINEAR_LAYERS = (nn.Dense, nn.DenseGeneral, nn.Einsum, nn.Embed)
LINEAR_CALLS = tuple(inspect.unwrap(layer.__call__) for layer in LINEAR_LAYERS)
ADAPTABLE = "nn.Dense, nn.DenseGeneral, nn.Einsum and nn.Embed"
REPARAMETERIZED = (nn.WeightNorm, nn.SpectralNorm)  # compute a new kernel from the parameters of the inner layer


@dataclasses.dataclass
class Calls:
    """Modules whose calls have begun but not ended, the innermost last."""

    entered: list[nn.Module] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def entering(self, module: nn.Module) -> Iterator[None]:
        """Keeps `module` in `entered` while it is called."""
        self.entered.append(module)
        try:
            yield
        finally:
            self.entered.pop()

    def enclosing(self, kinds: type | tuple[type, ...]) -> nn.Module | None:
        """Returns the innermost module of these types whose call has not ended, or None."""
        return next((module for module in reversed(self.entered) if isinstance(module, kinds)), None)

    def why_absent(self) -> str:
        """Explains why the layer that is being called may have no adapters."""
        recurrent = self.enclosing(nn.RNN)
        if recurrent is not None and not in_filter(recurrent.variable_broadcast, COLLECTION):
            return f'It is inside nn.RNN, which needs variable_broadcast=("params", "{COLLECTION}").'
        return (
            "Check that the adapters were made with the same targets. Inside nn.scan or nn.vmap the collection needs "
            f'variable_axes={{"params": 0, "{COLLECTION}": 0}}, or, if all steps share one kernel, '
            f'variable_broadcast=("params", "{COLLECTION}").'
        )


def intercept(config: LoraConfig, delta_fn: DeltaFn, adapted: Adapted | None = None):
    """Returns a context manager in which `delta_fn` is added to the output of every targeted linear layer.

    In a subclass of a linear layer, the call of the linear layer itself is adapted, once, whatever the subclass does
    before and after it: W + (α/r) B A takes the place of W.

    Args:
      config: targets, ranks and scales.
      delta_fn: computes the term to add.
      adapted: collects the modules that are called; a new one if None.
    """
    adapted, calls = Adapted(ADAPTABLE) if adapted is None else adapted, Calls()

    def add_delta(next_fun, args, kwargs, context):
        if context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        layer, path = context.module, "/".join(context.module.path)
        if path == "params":
            raise ValueError('a submodule of the root is named "params", which Flax cannot apply; rename it')
        if isinstance(layer, nn.BatchNorm):
            refuse_batch_statistics(layer, path, "nn.BatchNorm", *args, **kwargs)
        with calls.entering(layer):
            y = next_fun(*args, **kwargs)
        if not isinstance(layer, LINEAR_LAYERS) or (isinstance(layer, nn.Embed) and not config.names(path)):
            adapted.other[path] = type(layer).__name__
            return y
        adapted.linear[path] = type(layer).__name__
        if not config.adapts(path):
            return y
        if inspect.unwrap(context.orig_method.func) not in LINEAR_CALLS:
            return subclass_output(adapted, layer, path, y)
        refuse_reparameterized(calls, path)
        adapted.targets[path] = spec = linear_spec(layer, *args, **kwargs)
        if layer.scope.root.path:  # a lifted transformation makes scopes of its own
            adapted.lifted.add(path)
        x = jnp.asarray(args[0] if args else kwargs["inputs"], None if spec.lookup else config.dtype or y.dtype)
        try:
            return y + delta_fn(layer, path, spec, x).astype(y.dtype)
        except AbsentAdapterError as error:
            raise ValueError(f"{error}. {calls.why_absent()}") from error

    return nn.intercept_methods(add_delta)


def linear_spec(layer: nn.Module, inputs: Array, einsum_str: str | None = None) -> LinearSpec:
    """Returns the contraction that `layer` computes when it is called with these arguments."""
    if isinstance(layer, nn.Embed):
        return lookup_spec(inputs, (layer.num_embeddings, layer.features))
    if isinstance(layer, nn.Einsum):
        equation = nn.merge_param("einsum_str", layer.einsum_str, einsum_str)
        return einsum_spec(equation, jnp.ndim(inputs), layer.shape)
    if isinstance(layer, nn.Dense):
        return dense_general_spec(inputs, layer.features, axis=-1, batch_dims=())
    return dense_general_spec(inputs, layer.features, layer.axis, layer.batch_dims)


def subclass_output(adapted: Adapted, layer: Any, path: str, y: Array) -> Array:
    """Returns the output y of a subclass's own `__call__`, after checking that the inner linear layer was adapted.

    Raises:
      ValueError: if the subclass did not call the linear layer.
    """
    if path not in adapted.targets:
        base = next(base.__name__ for base in LINEAR_LAYERS if isinstance(layer, base))
        raise ValueError(unknown_use(path, type(layer).__name__, f"nn.{base}"))
    return y


def unknown_use(path: str, kind: str, base: str) -> str:
    """Says that a subclass of a linear layer may use the kernel in another way."""
    return (
        f"{path} is a {kind}, whose __call__ does not call that of {base}, so its use of the kernel is unknown; call "
        f"super().__call__ in it, or leave {path} out of the targets"
    )


def refuse_reparameterized(calls: Calls, path: str) -> None:
    """Raises a ValueError if the layer at `path` is inside a module that computes a new kernel from its parameters."""
    outside = calls.enclosing(REPARAMETERIZED)
    if outside is not None:
        raise ValueError(normalizes(path, f"nn.{type(outside).__name__}"))


def normalizes(path: str, outside: str) -> str:
    """Says that the module around a layer computes a new kernel from its parameters."""
    return (
        f"{path} is inside {outside}, which normalizes its kernel, so B A could not be merged into it; leave {path} "
        "out of the targets, or fold the normalization into the kernel first"
    )


def refuse_batch_statistics(
    layer: Any, path: str, kind: str, x: Any = None, use_running_average: bool | None = None, **_: Any
) -> None:
    """Raises a ValueError if a BatchNorm would normalize by the statistics of the batch when it is called like this."""
    if not (layer.use_running_average if use_running_average is None else use_running_average):
        raise ValueError(
            f"{path} is an {kind} in training mode, which makes the examples of a batch depend on each other, "
            "but hypotheses need independent examples; set use_running_average=True"
        )
