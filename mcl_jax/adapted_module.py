"""A frozen module with K sets of adapters of any kind: calls under one hypothesis, all of them, or one per row."""

import abc
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from mcl_jax import bases, independence
from mcl_jax.bases import Call, Params
from mcl_jax.stacking import Adapters, axes, count, example_key, select

if TYPE_CHECKING:
    from flax import nnx


@dataclasses.dataclass(frozen=True)
class AdaptedModule(abc.ABC):
    """Any module of Flax Linen or NNX with K sets of adapters. It holds no arrays; every method is a pure function.

    Args:
      module: the base. Its parameters are passed to the methods. Of a Linen module they are
        `module.init(...)["params"]`, or the whole dictionary of variables if the module has further collections. Of an
        NNX module they are `nnx.state(module)`; the module is kept with shapes in place of its arrays.
    Raises:
      ValueError: if `module` is not an instance of flax.linen.Module or flax.nnx.Module.
    """

    module: "nn.Module | nnx.Module" = dataclasses.field(compare=False)
    base: bases.Base = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        base = bases.base_of(self.module, type(self).__name__)
        object.__setattr__(self, "base", base)
        object.__setattr__(self, "module", base.module)

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
        return self.base.plain(params, Call(inputs, kwargs, method))

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
