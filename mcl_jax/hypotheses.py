"""K hypotheses: one frozen Linen module, vmapped over K low-rank adapters that are stacked along a leading axis."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Int, Key, PyTree

from mcl_jax import independence, lora, sharding
from mcl_jax.dtypes import at_least_float32

Params = Mapping[str, Any]
Adapters = PyTree[Array]


def count(adapters: Adapters) -> int:
    """Returns K, the size of the leading axis that all leaves of stacked adapters share, except the shared part.

    Raises:
      ValueError: if there are no leaves, or their leading axes differ.
    """
    leaves = jax.tree_util.tree_leaves_with_path(adapters)
    own = [leaf for keys, leaf in leaves if not is_shared(keys)]
    return sharding.leading_axis(own, "adapters need one leading axis K")


def select(adapters: Adapters, k: Int[Array, "..."] | slice | int) -> Adapters:
    """Returns the adapters of hypothesis k; if k has shape [B], one set per example with leading axis B.

    The shared part has no such axis and stays as it is.
    """
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: leaf if is_shared(keys) else jnp.asarray(leaf)[k], adapters
    )


def is_shared(keys: tuple[Any, ...]) -> bool:
    """Whether the leaf at this path belongs to the part that all hypotheses share (`LoraConfig.shared_rank`)."""
    return getattr(keys[-1], "key", None) in (lora.SHARED_A, lora.SHARED_B) if keys else False


def axes(adapters: Adapters) -> PyTree[int | None]:
    """Returns the `in_axes` with which `jax.vmap` runs over hypotheses: 0, and None for the shared part."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: None if is_shared(keys) else 0, adapters)


def labels(adapters: Adapters) -> PyTree[str]:
    """Returns "shared" or "own" for each leaf, such as `optax.multi_transform` takes to treat the two differently."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: "shared" if is_shared(keys) else "own", adapters)


def scale_parts(
    own: float | optax.Schedule = 1.0, shared: float | optax.Schedule = 1.0
) -> optax.GradientTransformation:
    """Scales the updates of what each hypothesis has of its own, and those of the part that all share.

    Put it last in `optax.chain`, where a factor is one on the learning rate: own=4 lets hypotheses move apart faster
    than the shared part learns. A schedule that starts with 0 lets one part learn alone at first: the shared one, as
    one model, or the own ones, so that hypotheses find their modes before they share. Adapters without a shared part
    (`LoraConfig.shared_rank`) are left alone.

    Args:
      own: the factor, or a schedule of it over steps.
      shared: the same for the shared part.
    """
    scales = {"own": own, "shared": shared}
    return optax.chain(*(_scale(kind, factor) for kind, factor in scales.items()))


def _scale(kind: str, factor: float | optax.Schedule) -> optax.GradientTransformation:
    def of(adapters: Adapters) -> PyTree[bool]:
        kinds = labels(adapters)
        shares = "shared" in jax.tree.leaves(kinds)
        return jax.tree.map(lambda found: shares and found == kind, kinds)

    scale = optax.scale_by_schedule(factor) if callable(factor) else optax.scale(factor)
    return optax.masked(scale, of)


def example_key(rng: Key[Array, ""], k: Int[Array, ""] | int, b: Int[Array, ""] | int) -> Key[Array, ""]:
    """Returns the random key of example b under hypothesis k, so that two passes draw the same dropout masks."""
    return jax.random.fold_in(jax.random.fold_in(rng, k), b)


@dataclasses.dataclass(frozen=True)
class AdaptedModule(abc.ABC):
    """Any Flax Linen module with K sets of adapters. It holds no arrays; every method is a pure function.

    Args:
      module: the base. Its parameters are passed to the methods: `module.init(...)["params"]`, or the whole dictionary
        of variables if the module has further collections.
    Raises:
      ValueError: if `module` is not an instance of flax.linen.Module.
    """

    module: nn.Module

    def __post_init__(self):
        if not isinstance(self.module, nn.Module):
            kind = self.module if isinstance(self.module, type) else type(self.module)
            article = "the class" if kind is self.module else "an instance of"
            raise ValueError(
                f"{type(self).__name__} adapts instances of flax.linen.Module, got {article} "
                f"{kind.__module__}.{kind.__qualname__}. Modules of flax.nnx and of other libraries cannot be adapted"
            )

    @property
    def has_dropout(self) -> bool:
        """Whether the adapters drop anything in training."""
        return False

    @property
    def added_positions(self) -> int:
        """Number of positions that the adapters of a language model take before the first token."""
        return 0

    @abc.abstractmethod
    def init(
        self,
        key: Key[Array, ""],
        params: Params,
        *inputs: Any,
        num_hypotheses: int,
        method: str | Callable | None = None,
        **kwargs: Any,
    ) -> Adapters:
        """Creates adapters with leading axis K for a module that is called with these arguments."""

    @abc.abstractmethod
    def apply(
        self,
        params: Params,
        adapters_k: Adapters,
        *inputs: Any,
        dropout_rng: Key[Array, ""] | None = None,
        method: str | Callable | None = None,
        **kwargs: Any,
    ) -> Any:
        """Calls the module under one hypothesis, whose adapters have no axis K."""

    @abc.abstractmethod
    def reached(
        self, params: Params, *inputs: Any, method: str | Callable | None = None, **kwargs: Any
    ) -> frozenset[str]:
        """Paths of the adapted layers that a call of the module passes through. Nothing is computed."""

    def apply_base(self, params: Params, *inputs: Any, method: str | Callable | None = None, **kwargs: Any) -> Any:
        """Calls the module without adapters.

        Args:
          params: parameters of the base.
          *inputs, **kwargs: arguments of the module.
          method: method of the module to call; `__call__` by default.
        Returns:
          The output of the module.
        """
        return self.module.apply(_variables(params), *inputs, method=method, **kwargs)

    def apply_all(
        self, params: Params, adapters: Adapters, *inputs: Any, dropout_rng: Key[Array, ""] | None = None, **kwargs: Any
    ) -> Any:
        """Calls the module on the same inputs under every hypothesis.

        Args:
          params: parameters of the base.
          adapters: adapters with leading axis K.
          *inputs, **kwargs: arguments of the module.
          dropout_rng: random key that switches dropout on. Each example then has its own masks, keyed by example and
            hypothesis as in `apply_assigned`, and input arrays need a leading batch axis.
        Returns:
          The outputs with leading axis K.
        """
        num_hypotheses = count(adapters)
        if dropout_rng is None:
            every = jax.vmap(lambda adapters_k: self.apply(params, adapters_k, *inputs, **kwargs), (axes(adapters),))
            return every(adapters)

        def one(k: Int[Array, ""]) -> Any:
            k_of_example = jnp.full(independence.batch_size((inputs, kwargs)), k)
            return self.apply_assigned(params, adapters, k_of_example, *inputs, dropout_rng=dropout_rng, **kwargs)

        return jax.vmap(one)(jnp.arange(num_hypotheses))

    def apply_assigned(
        self,
        params: Params,
        adapters: Adapters,
        k_of_example: Int[Array, " B"],
        *inputs: Any,
        dropout_rng: Key[Array, ""] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Calls the module on example b under hypothesis `k_of_example[b]`, in one pass of B rows.

        Input arrays (except scalars) need a leading batch axis; everything else is passed on unchanged. The module must
        treat the examples of a batch independently, since each one runs as a batch of one under vmap.

        Args:
          params: parameters of the base.
          adapters: adapters with leading axis K.
          k_of_example: hypothesis of each example, in [0, K).
          *inputs, **kwargs: arguments of the module.
          dropout_rng: random key that switches dropout on.
        Returns:
          The outputs with leading axis B.
        Raises:
          ValueError: if the batch sizes of k_of_example and the inputs differ, or an output has no leading batch axis.
        """
        batch = independence.batch_size((inputs, kwargs))
        if jnp.shape(k_of_example) != (batch,):
            raise ValueError(f"k_of_example must have shape [B] = ({batch},), got {jnp.shape(k_of_example)}")
        arrays, rebuild = independence.split((inputs, kwargs))

        def one(adapters_b, k, b, arrays):
            one_inputs, one_kwargs = rebuild([array[None] for array in arrays])
            key = None if dropout_rng is None else example_key(dropout_rng, k, b)
            out = self.apply(params, adapters_b, *one_inputs, dropout_rng=key, **one_kwargs)
            return jax.tree_util.tree_map_with_path(independence.only_example, out)

        in_axes = (axes(adapters), 0, 0, 0)
        return jax.vmap(one, in_axes)(select(adapters, k_of_example), k_of_example, jnp.arange(batch), arrays)

    def check(self, params: Params, adapters: Adapters, *inputs: Any, **kwargs: Any) -> None:
        """Checks that the module treats the examples of a batch independently.

        The first two examples run under the first two hypotheses: `apply_all` and `apply_assigned` must agree, and an
        example must give the same output whichever example is beside it. This costs four forward passes of two examples
        and two compilations. If an argument contains a `jax.ShapeDtypeStruct`, only shapes are compared.

        Args:
          params: parameters of the base.
          adapters: adapters with leading axis K.
          *inputs, **kwargs: arguments of the module, with at least two different examples.
        Raises:
          ValueError: if an output depends on other examples or has no leading batch axis; names it.
        """
        arrays, rebuild = independence.split((inputs, kwargs))
        k_of_example = np.array([min(1, count(adapters) - 1), 0])

        def together(operands, pair):
            (params, adapters), (inputs, kwargs) = operands, rebuild(pair)
            both = select(adapters, slice(2))
            return independence.of_pair(self.apply_all(params, both, *inputs, **kwargs), k_of_example)

        def alone(operands, pair):
            (params, adapters), (inputs, kwargs) = operands, rebuild(pair)
            return self.apply_assigned(params, adapters, k_of_example, *inputs, **kwargs)

        independence.check(together, alone, (params, adapters), arrays)


@dataclasses.dataclass(frozen=True)
class LowRankModule(AdaptedModule):
    """A module whose linear layers have low-rank adapters.

    Args:
      module: the base, see `AdaptedModule`.
      config: layers to adapt, ranks and scales.
    """

    config: lora.LoraConfig

    @property
    def has_dropout(self) -> bool:
        """Whether the adapters drop anything in training."""
        return self.config.dropout > 0.0

    @abc.abstractmethod
    def _delta(self, *, train: bool) -> lora.DeltaFn:
        """Returns the function that computes what one set of adapters adds to a target layer."""

    def init(
        self,
        key: Key[Array, ""],
        params: Params,
        *inputs: Any,
        num_hypotheses: int,
        method: str | Callable | None = None,
        **kwargs: Any,
    ) -> Adapters:
        """Creates adapters with leading axis K. A is random, B is zero, so every hypothesis starts equal to the base.

        Any array may be given as a `jax.ShapeDtypeStruct`: shapes matter, values do not.

        Args:
          key: random key for A.
          params: parameters of the base.
          *inputs, **kwargs: arguments of an example call of the module.
          num_hypotheses: K.
          method: method of the module to call; `__call__` by default.
        Returns:
          A pytree with leading axis K.
        Raises:
          ValueError: if K < 1, or a pattern of the config matches no linear layer (lists the nearest paths) or does not
            fit it, or a target layer does not use its kernel as the parameters store it.
        """
        if num_hypotheses < 1:
            raise ValueError(f"num_hypotheses must be at least 1, got {num_hypotheses}")
        adapted = lora.Adapted()

        def init_one(key):
            delta, rngs, mutable = self._delta(train=False), {"params": key}, [lora.COLLECTION]
            zeros = jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), leaf.dtype), params)
            given, options = jax.tree.map(_filled, (inputs, kwargs))
            _, variables = self._run(delta, zeros, {}, given, options, rngs, method, mutable, adapted)
            return lora.with_layer_ranks(self.config, variables.get(lora.COLLECTION, {}))

        jax.eval_shape(init_one, key)
        adapted.check(self.config)
        self._check_stacked(params, adapted)
        if adapted.lifted:
            self._check_kernels(params, inputs, kwargs, method)
        # vmap over K keys, instead of a leading axis in the initialiser, keeps the fan-in of A that of the layer.
        # jit drops the forward pass, whose result is not used.
        every = lambda keys: _first_of_shared(jax.vmap(init_one)(keys))
        return jax.jit(every)(jax.random.split(key, num_hypotheses))

    def apply(
        self,
        params: Params,
        adapters_k: Adapters,
        *inputs: Any,
        dropout_rng: Key[Array, ""] | None = None,
        method: str | Callable | None = None,
        **kwargs: Any,
    ) -> Any:
        """Calls the module under one hypothesis.

        Args:
          params: parameters of the base.
          adapters_k: adapters of one hypothesis, without the leading axis K.
          *inputs, **kwargs: arguments of the module.
          dropout_rng: random key that switches adapter dropout on, for training; also the module's "dropout" stream.
          method: method of the module to call; `__call__` by default.
        Returns:
          The output of the module.
        """
        delta = self._delta(train=dropout_rng is not None)
        return self._run(delta, params, adapters_k, inputs, kwargs, {"dropout": dropout_rng}, method)

    def reached(
        self, params: Params, *inputs: Any, method: str | Callable | None = None, **kwargs: Any
    ) -> frozenset[str]:
        """Paths of the target layers that a call of the module passes through. Nothing is computed."""
        adapted, nothing = lora.Adapted(), lambda layer, path, spec, x: jnp.zeros((), x.dtype)
        rngs = {"dropout": None}
        run = lambda params, arrays: self._run(nothing, params, {}, *arrays, rngs, method, adapted=adapted)
        jax.eval_shape(run, params, (inputs, kwargs))
        return frozenset(adapted.targets)

    def _check_stacked(self, params: Params, adapted: lora.Adapted) -> None:
        """Raises a ValueError if the config has one value per stacked layer for a layer that is not stacked."""
        for path, spec in adapted.targets.items():
            if self.config.stacked(path) is None:
                continue
            kernel = _at(_variables(params)["params"], (*path.split("/"), "kernel"))
            if jax.tree.leaves(kernel)[0].ndim == len(spec.shape):
                raise ValueError(f"LoraConfig: {path} is a single layer, so it needs a single rank and alpha")

    def _check_kernels(self, params: Params, inputs: Any, kwargs: Any, method: str | Callable | None) -> None:
        """Raises a ValueError if a target layer computes with another kernel than its own in the parameters."""
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
            return  # only shapes are known
        given, options = jax.tree.map(_filled, (inputs, kwargs))

        @jax.jit  # drops the forward pass, whose result is not used
        def samples(params):
            _, variables = self._run(lora.sampling_delta, params, {}, given, options, {}, method, [lora.COLLECTION])
            return variables.get(lora.COLLECTION, {})

        seen = samples(params)
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((params, seen))):
            lora.check_kernels(_variables(params)["params"], seen)

    def _run(self, delta, params, adapters_k, inputs, kwargs, rngs, method=None, mutable=False, adapted=None):
        variables = {**_variables(params), lora.COLLECTION: lora.with_layer_scales(self.config, adapters_k)}
        rngs = {name: key for name, key in rngs.items() if key is not None}
        with lora.intercept(self.config, delta, adapted):
            return self.module.apply(variables, *inputs, rngs=rngs, method=method, mutable=mutable, **kwargs)


@dataclasses.dataclass(frozen=True)
class Hypotheses(LowRankModule):
    """K low-rank hypotheses of any Flax Linen module: y = W x + (α/r) · B_k A_k x at each target layer.

    With `LoraConfig.shared_rank`, a further term (α/r) · B A x is the same for all k.

    Args:
      module: the base, see `AdaptedModule`.
      config: layers to adapt, ranks and scales.
    """

    config: lora.LoraConfig = dataclasses.field(default_factory=lora.LoraConfig)

    def _delta(self, *, train: bool) -> lora.DeltaFn:
        return lora.adapter_delta(self.config, train=train)

    def merge(self, params: Params, adapters: Adapters, k: int) -> Params:
        """Folds hypothesis k into the parameters: W + (α/r) B A, in the dtype of each kernel.

        Args:
          params: parameters of the base; not changed.
          adapters: adapters with leading axis K.
          k: the hypothesis, in [0, K).
        Returns:
          Plain parameters of the module.
        Raises:
          ValueError: if k is outside [0, K), or the adapters do not fit the parameters.
        """
        num_hypotheses = count(adapters)
        if not 0 <= k < num_hypotheses:
            raise ValueError(f"merge: k must be in [0, {num_hypotheses}), got {k}")
        variables, adapters_k = _variables(params), lora.with_layer_scales(self.config, select(adapters, k))
        low_rank = {path[:-1]: _at(adapters_k, path[:-1]) for path in flatten_dict(adapters_k)}

        def with_delta(keys, leaf):
            *path, name = (getattr(key, "key", None) for key in keys)
            layer = low_rank.pop(tuple(path), None) if name == "kernel" else None
            if layer is None:
                return leaf
            kernel = nn.meta.unbox(leaf)
            if not isinstance(kernel, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
                layer = "/".join(path)
                raise ValueError(f"merge: the kernel of {layer} is quantized; merge into the base before quantizing it")
            merged, scale = kernel.astype(at_least_float32(kernel.dtype)), self.config.scale_of("/".join(path))
            for a, b in (("a", "b"), (lora.SHARED_A, lora.SHARED_B)):
                if a in layer:
                    merged = lora.merge_kernel(merged, layer[a], layer[b], scale)
            return nn.meta.replace_boxed(leaf, merged.astype(kernel.dtype))

        whole = lambda node: not isinstance(node, Mapping)  # boxed and quantized kernels too
        params_of_k = jax.tree_util.tree_map_with_path(with_delta, variables["params"], is_leaf=whole)
        if low_rank:
            path = "/".join(min(low_rank))
            raise ValueError(f"merge: the adapters hold {path}, but the parameters have no such layer")
        return {**variables, "params": params_of_k} if variables is params else params_of_k


def _variables(params: Params) -> Params:
    """Returns the whole dictionary of variables.

    Raises:
      ValueError: if the parameters contain "params" themselves.
    """
    variables = params if "params" in params else {"params": params}
    if "params" in variables["params"]:
        raise ValueError(
            'the parameters contain "params" inside "params"; unwrap them if they were wrapped twice; if a submodule '
            'is named "params", which Flax cannot apply, rename it'
        )
    return variables


def _first_of_shared(adapters: Adapters) -> Adapters:
    """Returns adapters whose shared part, equal for all K so far or not, is that of the first hypothesis alone."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: leaf[0] if is_shared(keys) else leaf, adapters)


def _at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _filled(leaf: Any) -> Any:
    """Returns zeros for a `jax.ShapeDtypeStruct`, a JAX array for a NumPy array, and anything else unchanged."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.zeros(leaf.shape, leaf.dtype)
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf
