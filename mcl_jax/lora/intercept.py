"""The method interceptor that adds deltas to targeted linear layers and declares the adapters as their variables."""

import contextlib
import dataclasses
import difflib
import inspect
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.scope import in_filter
from jaxtyping import Array

from mcl_jax.lora.config import SHARED_A, SHARED_B, LoraConfig, layer_of, matches
from mcl_jax.lora.linear import LinearSpec, delta, init_a, linear_spec, rank_axes

COLLECTION = "lora"
LINEAR_LAYERS = (nn.Dense, nn.DenseGeneral, nn.Einsum)
LINEAR_CALLS = tuple(inspect.unwrap(layer.__call__) for layer in LINEAR_LAYERS)
REPARAMETERIZED = (nn.WeightNorm, nn.SpectralNorm)  # compute a new kernel from the parameters of the inner layer

STACKED_HINT = " Layers that nn.scan stacks share one path; give that path a sequence with one value per layer."


@dataclasses.dataclass
class Adapted:
    """The modules that an interceptor has seen.

    Attributes:
      linear: type of each linear layer, by path.
      other: type of every other module, by path.
      targets: contraction of each adapted layer, by path.
      lifted: paths of the adapted layers inside a lifted transformation, such as `nn.scan` or `nn.map_variables`.
      entered: modules whose calls have begun but not ended, the innermost last.
    """

    linear: dict[str, str] = dataclasses.field(default_factory=dict)
    other: dict[str, str] = dataclasses.field(default_factory=dict)
    targets: dict[str, LinearSpec] = dataclasses.field(default_factory=dict)
    lifted: set[str] = dataclasses.field(default_factory=set)
    entered: list[nn.Module] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def entering(self, module: nn.Module):
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

    def check(self, config: LoraConfig) -> None:
        """Checks that every pattern of `config` matches a linear layer.

        Raises:
          ValueError: if a pattern matches none, which lists the nearest module paths, or one of `config.layers` has no
            target.
        """
        self._check_layers(config)
        for field, patterns in [
            ("targets", config.patterns),
            ("rank_pattern", config.rank_pattern),
            ("alpha_pattern", config.alpha_pattern),
        ]:
            known = self.linear if field == "targets" else self.targets
            for pattern in patterns:
                if not any(matches(pattern, path) for path in known):
                    hint = self._hint(pattern) + ("" if field == "targets" else STACKED_HINT)
                    raise ValueError(f"LoraConfig.{field}: {pattern!r} matches no linear layer. {hint}")

    def _check_layers(self, config: LoraConfig) -> None:
        found = {layer_of(path) for path in self.linear if any(matches(p, path) for p in config.patterns)}
        if missing := sorted({*(config.layers or ())} - found):
            numbers = sorted(found - {None})
            known = f"the targets lie in the layers {numbers}" if numbers else "no target lies in a layer with a number"
            hint = "; load the base with scan=False, since stacked layers share one path" if None in found else ""
            raise ValueError(f"LoraConfig.layers: {missing} have no targets; {known}{hint}")

    def _hint(self, pattern: str) -> str:
        not_linear = [f"{path} is a {kind}" for path, kind in self.other.items() if matches(pattern, path)]
        by_name = {path.rsplit("/", 1)[-1]: path for path in self.linear}
        names = difflib.get_close_matches(pattern.rsplit("/", 1)[-1], by_name, n=5, cutoff=0.4)
        nearest = [by_name[name] for name in names] or list(self.linear)[:20]
        hint = f"The nearest of {len(self.linear)} linear layers: {', '.join(nearest) or 'none'}."
        adaptable = "nn.Dense, nn.DenseGeneral and nn.Einsum"
        return (f"{'; '.join(not_linear[:3])}; only {adaptable} can be adapted. " if not_linear else "") + hint


# delta_fn(layer, path, spec, x) -> the term to add to the output of the target layer
DeltaFn = Callable[[nn.Module, str, LinearSpec, Array], Array]


def intercept(config: LoraConfig, delta_fn: DeltaFn, adapted: Adapted | None = None):
    """Returns a context manager in which `delta_fn` is added to the output of every targeted linear layer.

    In a subclass of a linear layer, the call of the linear layer itself is adapted, once, whatever the subclass does
    before and after it: W + (α/r) B A takes the place of W.

    Args:
      config: targets, ranks and scales.
      delta_fn: computes the term to add.
      adapted: collects the modules that are called; a new one if None.
    """
    adapted = Adapted() if adapted is None else adapted

    def add_delta(next_fun, args, kwargs, context):
        if context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        layer, path = context.module, "/".join(context.module.path)
        if path == "params":
            raise ValueError('a submodule of the root is named "params", which Flax cannot apply; rename it')
        refuse_batch_statistics(layer, path, *args, **kwargs)
        with adapted.entering(layer):
            y = next_fun(*args, **kwargs)
        if not isinstance(layer, LINEAR_LAYERS):
            adapted.other[path] = type(layer).__name__
            return y
        adapted.linear[path] = type(layer).__name__
        if not config.adapts(path):
            return y
        if inspect.unwrap(context.orig_method.func) not in LINEAR_CALLS:
            return subclass_output(adapted, layer, path, y)
        refuse_reparameterized(adapted, path)
        adapted.targets[path] = spec = linear_spec(layer, *args, **kwargs)
        if layer.scope.root.path:  # a lifted transformation makes scopes of its own
            adapted.lifted.add(path)
        x = jnp.asarray(args[0] if args else kwargs["inputs"], config.dtype or y.dtype)
        try:
            return y + delta_fn(layer, path, spec, x).astype(y.dtype)
        except AbsentAdapterError as error:
            raise ValueError(f"{error}. {adapted.why_absent()}") from error

    return nn.intercept_methods(add_delta)


def subclass_output(adapted: Adapted, layer: nn.Module, path: str, y: Array) -> Array:
    """Returns the output y of a subclass's own `__call__`, after checking that the inner linear layer was adapted.

    Raises:
      ValueError: if the subclass did not call the linear layer.
    """
    if path not in adapted.targets:
        base = next(base.__name__ for base in LINEAR_LAYERS if isinstance(layer, base))
        raise ValueError(
            f"{path} is a {type(layer).__name__}, whose __call__ does not call that of nn.{base}, so its use of "
            f"the kernel is unknown; call super().__call__ in it, or leave {path} out of the targets"
        )
    return y


def refuse_reparameterized(adapted: Adapted, path: str) -> None:
    """Raises a ValueError if the layer at `path` is inside a module that computes a new kernel from its parameters."""
    outside = adapted.enclosing(REPARAMETERIZED)
    if outside is not None:
        kind = type(outside).__name__
        raise ValueError(
            f"{path} is inside nn.{kind}, which normalizes its kernel, so B A could not be merged into it; leave "
            f"{path} out of the targets, or fold the normalization into the kernel first"
        )


def refuse_batch_statistics(layer: nn.Module, path: str, *args, use_running_average: bool | None = None, **_) -> None:
    """Raises a ValueError if `layer` is a BatchNorm that would normalize by the statistics of the batch."""
    if not isinstance(layer, nn.BatchNorm):
        return
    given = args[1] if len(args) > 1 else use_running_average
    if not (layer.use_running_average if given is None else given):
        raise ValueError(
            f"{path} is an nn.BatchNorm in training mode, which makes the examples of a batch depend on each other, "
            "but hypotheses need independent examples; set use_running_average=True"
        )


def adapter_delta(config: LoraConfig, *, train: bool) -> DeltaFn:
    """Returns the delta function of one hypothesis; A and B are "lora" variables of the layer, declared if absent."""

    def delta_fn(layer, path, spec, x):
        rank = config.rank_of(path)
        shape_of_a, shape_of_b = (spec.shape_of(axes, rank) for axes in (spec.a, spec.b))
        check_shapes(path, spec, rank, shape_of_a, shape_of_b)
        a = variable(layer, path, "a", lambda: init_a(layer.make_rng("params"), spec, rank, config.param_dtype))
        b = variable(layer, path, "b", lambda: jnp.zeros(shape_of_b, config.param_dtype))
        x, scale = dropout(layer, path, x, config.dropout if train else 0.0), config.scale_of(path)
        own = delta(spec, x, a, b, scale)
        if not config.shared_rank:
            return own
        shapes = [spec.shape_of(axes, config.shared_rank) for axes in (spec.a, spec.b)]
        check_shapes(path, spec, config.shared_rank, *shapes)
        draw = lambda: init_a(layer.make_rng("params"), spec, config.shared_rank, config.param_dtype)
        shared_a = variable(layer, path, SHARED_A, draw)
        shared_b = variable(layer, path, SHARED_B, lambda: jnp.zeros(shapes[1], config.param_dtype))
        return own + delta(spec, x, shared_a, shared_b, scale)

    return delta_fn


def check_shapes(path: str, spec: LinearSpec, rank: int, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """Raises a ValueError if the shapes of A and B do not tell which axis of B is the rank."""
    if rank_axes(spec.shape, a, b)[0] != spec.b.index(spec.rank_axis):
        raise ValueError(
            f"{path}: at rank {rank} the shapes of A {a} and B {b} fit the kernel {spec.shape} in more than one way; "
            "choose another rank"
        )


class AbsentAdapterError(LookupError):
    """A target layer has no adapter in its `"lora"` collection and cannot declare one."""


def variable(layer: nn.Module, path: str, name: str, init: Callable[[], Array]) -> Array:
    """Returns a variable of the layer's `"lora"` collection; declares it as `init()` if it is absent.

    Raises:
      AbsentAdapterError: if the variable is absent and the collection is not mutable.
    """
    scope = layer.scope
    if not scope.has_variable(COLLECTION, name):
        if not scope.is_mutable_collection(COLLECTION):
            raise AbsentAdapterError(f"{path} is a target, but the adapters have no {path}/{name}")
        scope.put_variable(COLLECTION, name, init())
    return scope.get_variable(COLLECTION, name)


def dropout(layer: nn.Module, path: str, x: Array, probability: float) -> Array:
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
