"""What adapted modules ask of a frozen base, whichever library its module is from."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from mcl_jax import lora

Params = Mapping[str, Any]
Adapters = PyTree[Array]


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a module.

    Attributes:
      inputs, kwargs: its arguments.
      method: the method, by name or as a function of the module and the arguments; None is `__call__`.
    """

    inputs: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    method: str | Callable | None = None

    def filled(self) -> "Call":
        """Returns the call with JAX arrays in place of NumPy arrays, and zeros in place of shapes."""
        inputs, kwargs = jax.tree.map(_filled, (self.inputs, dict(self.kwargs)))
        return Call(inputs, kwargs, self.method)

    def split(self) -> tuple[list[Any], Callable[[Sequence[Any]], "Call"]]:
        """Returns the arrays among the arguments, and a function that rebuilds the call with others in their place."""
        leaves, treedef = jax.tree.flatten((self.inputs, dict(self.kwargs)))
        places = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape")]

        def rebuild(arrays: Sequence[Any]) -> Call:
            replaced = dict(zip(places, arrays, strict=True))
            rebuilt = [replaced.get(i, leaf) for i, leaf in enumerate(leaves)]
            return Call(*jax.tree.unflatten(treedef, rebuilt), self.method)

        return [leaves[i] for i in places], rebuild


def _filled(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.zeros(leaf.shape, leaf.dtype)
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf


class Base(Protocol):
    """A module without its parameters. It is hashable, and equal to another one that computes the same.

    Attributes:
      module: the module.
      adaptable: names of the layers that can have adapters, for errors.
    """

    module: Any
    adaptable: str

    def plain(self, params: Params, call: Call) -> Any:
        """Returns the output of the module without adapters."""

    def adapted(
        self,
        params: Params,
        adapters_k: Adapters,
        call: Call,
        config: lora.LoraConfig,
        delta: lora.DeltaFn,
        dropout_rng: Key[Array, ""] | None,
        collections: tuple[str, ...] = (),
    ) -> Any:
        """Returns the output of the module with `delta` added to its targets.

        With `collections`, it returns a pair of the output and of what the layers put into these collections.
        """

    def traced(self, params: Params, call: Call, config: lora.LoraConfig) -> lora.Adapted:
        """Returns the layers that a call passes through. Nothing is computed."""

    def declared(
        self,
        key: Key[Array, ""],
        params: Params,
        call: Call,
        config: lora.LoraConfig,
        delta: lora.DeltaFn,
        seen: lora.Adapted,
    ) -> Adapters:
        """Returns the new adapters of one hypothesis, as `delta` declares them, and adds to `seen` what was called.

        The values of `params` do not count.
        """

    def check(self, params: Params, call: Call, config: lora.LoraConfig, adapted: lora.Adapted) -> None:
        """Raises a ValueError if B A cannot be merged into the kernel of an adapted layer."""

    def kernel(self, params: Params, path: str) -> Any:
        """Returns the kernel of the layer at this path, with the axes of stacked layers in front."""

    def own(self, params: Params, adapters_k: Adapters) -> Params:
        """Returns the parameters of one hypothesis, with its trained copies in the places of those of the base.

        Raises:
          ValueError: if a copy does not fit its parameter; names it.
        """

    def is_output(self, params: Params, path: str) -> bool:
        """Whether the table of embeddings at this path is the output layer of a language model, too."""

    def with_kernels(self, params: Params, change: Callable[[str, Any], Any | None]) -> Params:
        """Returns the same structure with `change(path, kernel)` in place of each kernel, unless that is None."""
