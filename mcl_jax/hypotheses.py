"""K hypotheses: one frozen Linen module, K low-rank adapters stacked along a leading axis, vmapped."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Int, Key, PyTree

from mcl_jax import lora

Params = Mapping[str, Any]
Adapters = PyTree[Array]


def count(adapters: Adapters) -> int:
    """K, the leading axis that all leaves of a stack of adapters share.

    Raises:
      ValueError: if there are no leaves, or their leading axes differ.
    """
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(adapters)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(f"adapters need one leading axis K shared by all leaves, got leading axes {sorted(sizes)}")
    return sizes.pop()[0]


def select(adapters: Adapters, k: Int[Array, "..."] | int) -> Adapters:
    """Adapters of hypothesis k; with k of shape [B], one set of adapters an example, leading axis B."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[k], adapters)


def example_key(rng: Key[Array, ""], k: Int[Array, ""] | int, b: Int[Array, ""] | int) -> Key[Array, ""]:
    """The random stream of example b under hypothesis k: what makes one pass repeat another's dropout masks."""
    return jax.random.fold_in(jax.random.fold_in(rng, k), b)


@dataclasses.dataclass(frozen=True)
class AdaptedModule(abc.ABC):
    """Any Flax Linen module under K sets of adapters. Holds no arrays; every method is a pure function.

    Args:
      module: the base. Parameters stay outside, as `module.init(...)["params"]`, or as the whole dictionary of
        variables where the module has further collections.
      config: which layers are adapted and how.
    """

    module: nn.Module
    config: lora.LoraConfig

    @abc.abstractmethod
    def _delta(self, *, train: bool) -> lora.DeltaFn:
        """What one set of adapters adds to a target layer."""

    def init(
        self, key: Key[Array, ""], params: Params, *inputs: Any, num_hypotheses: int,
        method: str | Callable | None = None, **kwargs: Any,
    ) -> Adapters:  # fmt: skip
        """Adapters with leading axis K: A different for each hypothesis, B zero, so that each equals the base.

        Args:
          key: for A.
          params: of the base.
          *inputs, **kwargs: an example call of the module (shapes matter, values do not).
          num_hypotheses: K.
          method: of the module; `__call__` by default.
        Raises:
          ValueError: if K < 1, or a pattern of the config matches no linear layer (lists the nearest paths).
        """
        if num_hypotheses < 1:
            raise ValueError(f"num_hypotheses must be at least 1, got {num_hypotheses}")
        adapted = lora.Adapted()

        def init_one(key):
            delta, rngs, mutable = self._delta(train=False), {"params": key}, [lora.COLLECTION]
            _, variables = self._run(delta, params, {}, inputs, kwargs, rngs, method, mutable, adapted)
            return variables.get(lora.COLLECTION, {})

        jax.eval_shape(init_one, key)
        adapted.check(self.config)
        # Under vmap over K keys, not with a leading axis in the initialiser: the fan-in of A stays that of the layer.
        # Under jit the forward pass, whose result nobody asks for, is dropped.
        return jax.jit(jax.vmap(init_one))(jax.random.split(key, num_hypotheses))

    def apply(
        self, params: Params, adapters_k: Adapters, *inputs: Any, dropout_rng: Key[Array, ""] | None = None,
        method: str | Callable | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """One hypothesis: what the module returns with the adapters (no leading axis K) added.

        Args:
          dropout_rng: given in training, it switches adapter dropout on (and is the module's "dropout" stream).
          method: of the module; `__call__` by default.
        """
        delta = self._delta(train=dropout_rng is not None)
        return self._run(delta, params, adapters_k, inputs, kwargs, {"dropout": dropout_rng}, method)

    def apply_all(
        self, params: Params, adapters: Adapters, *inputs: Any, dropout_rng: Key[Array, ""] | None = None, **kwargs: Any
    ) -> Any:
        """Every hypothesis on the same inputs: outputs with leading axis K.

        With `dropout_rng` each example has masks of its own, keyed by example and hypothesis as in `apply_assigned`;
        arrays among the inputs then need a leading batch axis.
        """
        num_hypotheses = count(adapters)
        if dropout_rng is None:
            return jax.vmap(lambda adapters_k: self.apply(params, adapters_k, *inputs, **kwargs))(adapters)
        everyone = lambda k: jnp.full(_batch_size((inputs, kwargs)), k)
        return jax.vmap(
            lambda k: self.apply_assigned(params, adapters, everyone(k), *inputs, dropout_rng=dropout_rng, **kwargs)
        )(jnp.arange(num_hypotheses))

    def apply_assigned(
        self, params: Params, adapters: Adapters, k_of_example: Int[Array, " B"], *inputs: Any,
        dropout_rng: Key[Array, ""] | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Example b under hypothesis `k_of_example[b]`, in one pass of B rows: outputs with leading axis B.

        Arrays among the inputs (0-d ones aside) carry a leading batch axis; everything else is passed as it is. The
        module must treat the examples of a batch independently, since each is run as a batch of one under vmap.

        Raises:
          ValueError: if the batch sizes of k_of_example and the inputs differ.
        """
        batch = _batch_size((inputs, kwargs))
        if jnp.shape(k_of_example) != (batch,):
            raise ValueError(f"k_of_example must have shape [B] = ({batch},), got {jnp.shape(k_of_example)}")
        leaves, treedef = jax.tree.flatten((inputs, kwargs))
        batched = [i for i, leaf in enumerate(leaves) if _is_batched(leaf)]

        def one(adapters_b, k, b, arrays):
            one_leaves = list(leaves)
            for i, array in zip(batched, arrays, strict=True):
                one_leaves[i] = array[None]
            one_inputs, one_kwargs = jax.tree.unflatten(treedef, one_leaves)
            key = None if dropout_rng is None else example_key(dropout_rng, k, b)
            out = self.apply(params, adapters_b, *one_inputs, dropout_rng=key, **one_kwargs)
            return jax.tree.map(lambda leaf: leaf[0], out)

        arrays = [leaves[i] for i in batched]
        return jax.vmap(one)(select(adapters, k_of_example), k_of_example, jnp.arange(batch), arrays)

    def _run(self, delta, params, adapters_k, inputs, kwargs, rngs, method=None, mutable=False, adapted=None):
        variables = {**_variables(params), lora.COLLECTION: adapters_k}
        rngs = {name: key for name, key in rngs.items() if key is not None}
        with lora.intercept(self.config, delta, adapted):
            return self.module.apply(variables, *inputs, rngs=rngs, method=method, mutable=mutable, **kwargs)


@dataclasses.dataclass(frozen=True)
class Hypotheses(AdaptedModule):
    """K low-rank hypotheses of any Flax Linen module: y = W x + (α/r) · B_k A_k x at each target.

    Args:
      module, config: see `AdaptedModule`.
    """

    config: lora.LoraConfig = dataclasses.field(default_factory=lora.LoraConfig)

    def _delta(self, *, train: bool) -> lora.DeltaFn:
        return lora.adapter_delta(self.config, train=train)

    def merge(self, params: Params, adapters: Adapters, k: int) -> Params:
        """Plain parameters W + (α/r) B A of hypothesis k, in the dtype of each kernel; the base is not changed.

        Raises:
          ValueError: for a k outside [0, K), or adapters that do not fit the parameters.
        """
        num_hypotheses = count(adapters)
        if not 0 <= k < num_hypotheses:
            raise ValueError(f"merge: k must be in [0, {num_hypotheses}), got {k}")
        variables = _variables(params)
        flat = flatten_dict(variables["params"])
        for path in {path[:-1] for path in flatten_dict(adapters)}:
            a, b = (_at(adapters, path)[name][k] for name in ("a", "b"))
            kernel = (*path, "kernel")
            if kernel not in flat:
                raise ValueError(f"merge: the adapters hold {'/'.join(path)}, but the parameters have no such layer")
            flat[kernel] = lora.merge_kernel(flat[kernel], a, b, self.config.scale_of("/".join(path)))
        merged = unflatten_dict(flat)
        return {**variables, "params": merged} if variables is params else merged


def _variables(params: Params) -> Params:
    return params if "params" in params else {"params": params}


def _at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _is_batched(leaf: Any) -> bool:
    return hasattr(leaf, "ndim") and leaf.ndim > 0


def _batch_size(tree: PyTree) -> int:
    """B, the leading axis that all arrays of `tree` share.

    Raises:
      ValueError: if there is no array, or their leading axes differ.
    """
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(tree) if _is_batched(leaf)}
    if len(sizes) != 1:
        raise ValueError(f"inputs need one leading batch axis shared by all arrays, got sizes {sorted(sizes)}")
    return sizes.pop()
