"""K hypotheses: one frozen module, vmapped over K low-rank adapters that are stacked along a leading axis."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Int, Key

from mcl_jax import lora
from mcl_jax.adapted_module import AdaptedModule
from mcl_jax.bases import Call, Params
from mcl_jax.dtypes import at_least_float32
from mcl_jax.stacking import (
    Adapters,
    axes,
    count,
    example_key,
    first_of_shared,
    is_shared,
    labels,
    scale_parts,
    select,
)

__all__ = [
    "AdaptedModule",
    "Adapters",
    "Hypotheses",
    "LowRankModule",
    "Params",
    "axes",
    "count",
    "example_key",
    "is_shared",
    "labels",
    "scale_parts",
    "select",
]


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
        call, delta = Call(inputs, kwargs, method), self._delta(train=False)
        adapted = lora.Adapted(self.base.adaptable)

        def init_one(key):
            declared = self.base.declared(key, params, call, self.config, delta, adapted)
            return lora.with_layer_ranks(self.config, declared)

        jax.eval_shape(init_one, key)
        adapted.check(self.config)
        self._check_stacked(params, adapted)
        self.base.check(params, call, self.config, adapted)
        # vmap over K keys, instead of a leading axis in the initialiser, keeps the fan-in of A that of the layer.
        # jit drops the forward pass, whose result is not used.
        every = lambda keys: first_of_shared(jax.vmap(init_one)(keys))
        return self._started(params, adapted, jax.jit(every)(jax.random.split(key, num_hypotheses)))

    def _started(self, params: Params, adapted: lora.Adapted, adapters: Adapters) -> Adapters:
        """Returns new adapters with the values that depend on the parameters: m = ‖W‖ of DoRA."""
        if not self.config.dora:
            return adapters
        flat = flatten_dict(adapters)
        for (*path, name), leaf in flat.items():
            if name == lora.MAGNITUDE:
                place = "/".join(path)
                norm = lora.start_of_m(adapted.targets[place], self.base.kernel(params, place))
                flat[*path, name] = jnp.broadcast_to(norm, leaf.shape).astype(leaf.dtype)
        return unflatten_dict(flat)

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
        call, delta = Call(inputs, kwargs, method), self._delta(train=dropout_rng is not None)
        return self.base.adapted(params, adapters_k, call, self.config, delta, dropout_rng)

    def reached(
        self, params: Params, *inputs: Any, method: str | Callable | None = None, **kwargs: Any
    ) -> frozenset[str]:
        """Paths of the target layers that a call of the module passes through. Nothing is computed."""
        return frozenset(self.base.traced(params, Call(inputs, kwargs, method), self.config).targets)

    def _check_stacked(self, params: Params, adapted: lora.Adapted) -> None:
        """Raises a ValueError if the config has one value per stacked layer for a layer that is not stacked."""
        for path, spec in adapted.targets.items():
            if self.config.stacked(path) is None:
                continue
            kernel = jax.tree.leaves(self.base.kernel(params, path))[0]  # a quantized one has several
            if kernel.ndim == len(spec.shape):
                raise ValueError(f"LoraConfig: {path} is a single layer, so it needs a single rank and alpha")


@dataclasses.dataclass(frozen=True)
class Hypotheses(LowRankModule):
    """K low-rank hypotheses of any module of Flax Linen or NNX: y = W x + (α/r) · B_k A_k x at each target layer.

    With `LoraConfig.shared_rank`, a further term (α/r) · B A x is the same for all k. Adapters may also hold trained
    copies of parameters, see `mcl_jax.lora.copies`.

    Args:
      module: the base, see `AdaptedModule`.
      config: layers to adapt, ranks and scales.
    Raises:
      ValueError: if the config asks for DoRA in a module of flax.nnx.
    """

    config: lora.LoraConfig = dataclasses.field(default_factory=lora.LoraConfig)

    def __post_init__(self):
        super().__post_init__()
        if self.config.dora and not isinstance(self.module, nn.Module):
            raise ValueError("LoraConfig: dora needs a module of flax.linen, got one of flax.nnx")

    def _delta(self, *, train: bool) -> lora.DeltaFn:
        return lora.adapter_delta(self.config, train=train)

    def apply_by_token(
        self,
        params: Params,
        adapters: Adapters,
        k_of_token: Int[Array, "B T"],
        *inputs: Any,
        dropout_rng: Key[Array, ""] | None = None,
        method: str | Callable | None = None,
        **kwargs: Any,
    ) -> Any:
        """Calls the module with each token under its own hypothesis, for rows of several texts (`mcl_jax.packing`).

        The input of each adapted layer must begin with the axes [B, T]. It costs as much as one hypothesis of rank r·K.

        Args:
          params: parameters of the base.
          adapters: adapters with leading axis K.
          k_of_token: hypothesis of each token, in [0, K).
          *inputs, **kwargs, method: as in `apply`.
          dropout_rng: random key that switches dropout on; all hypotheses then drop the same inputs.
        Returns:
          The output of the module.
        Raises:
          ValueError: for adapters that are no factors A and B: DoRA's, or trained copies of parameters.
        """
        if self.config.dora or lora.split_copies(adapters)[1]:
            raise ValueError("DoRA and trained copies of parameters cannot differ from token to token")
        inside = lambda keys, leaf: leaf if is_shared(keys) else jnp.moveaxis(leaf, 0, -2)
        adapters = jax.tree_util.tree_map_with_path(inside, adapters)
        delta = lora.adapter_delta(self.config, train=dropout_rng is not None, k_of_token=k_of_token)
        return self.base.adapted(params, adapters, Call(inputs, kwargs, method), self.config, delta, dropout_rng)

    def merge(self, params: Params, adapters: Adapters, k: int) -> Params:
        """Folds hypothesis k into the parameters: W + (α/r) B A, in the dtype of each kernel. Trained copies stay.

        Args:
          params: parameters of the base; not changed.
          adapters: adapters with leading axis K.
          k: the hypothesis, in [0, K).
        Returns:
          Plain parameters of the module.
        Raises:
          ValueError: if k is outside [0, K), the adapters do not fit the parameters, or the table of an adapter of
            embeddings is the output layer too, which such an adapter does not change.
        """
        num_hypotheses = count(adapters)
        if not 0 <= k < num_hypotheses:
            raise ValueError(f"merge: k must be in [0, {num_hypotheses}), got {k}")
        one = select(adapters, k)
        params, (factors, _) = self.base.own(params, one), lora.split_copies(one)
        layers: dict[str, dict[str, Array]] = {}
        for (*path, name), leaf in flatten_dict(lora.with_layer_scales(self.config, factors)).items():
            layers.setdefault("/".join(path), {})[name] = leaf
        if tied := [path for path in layers if self.base.is_output(params, path)]:
            raise ValueError(
                f"merge: {tied[0]} is the output layer too, which an adapter of the embeddings does not change; load "
                "the base with tie_word_embeddings=False, where its class has an output layer of its own"
            )

        def with_delta(path: str, kernel: Any) -> Any:
            layer = layers.pop(path, None)
            return None if layer is None else self._merged(path, kernel, layer)

        merged = self.base.with_kernels(params, with_delta)
        if layers:
            raise ValueError(f"merge: the adapters hold {min(layers)}, but the parameters have no such layer")
        return merged

    def _merged(self, path: str, kernel: Any, layer: dict[str, Array]) -> Array:
        """Returns the kernel of one layer, or of stacked ones, with the products of its adapters added."""
        if not isinstance(kernel, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
            raise ValueError(f"merge: the kernel of {path} is quantized; merge into the base before quantizing it")
        merged, scale = kernel.astype(at_least_float32(kernel.dtype)), self.config.scale_of(path)
        for a, b in (("a", "b"), (lora.SHARED_A, lora.SHARED_B)):
            if a in layer:
                merged = lora.merge_kernel(merged, layer[a], layer[b], scale)
        if lora.MAGNITUDE in layer:
            merged = lora.with_length(merged, layer["a"], layer["b"], layer[lora.MAGNITUDE])
        return merged.astype(kernel.dtype)
