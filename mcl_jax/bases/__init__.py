"""Frozen bases: modules of Flax Linen and of Flax NNX behind one interface, `Base`.

linen_base   calls of layers are intercepted
nnx_base     each call builds the module from its graph definition and the parameters
nnx_layers   the target layers of a module that was built add the deltas
"""

import sys
from typing import Any

import flax.linen as nn

from mcl_jax.bases.base import Adapters, Base, Call, Params
from mcl_jax.bases.linen_base import LinenBase

__all__ = ["Adapters", "Base", "Call", "LinenBase", "Params", "base_of"]


def base_of(module: Any, adapter: str) -> Base:
    """Returns the base of a module.

    Args:
      module: a module of Flax Linen or Flax NNX.
      adapter: name of what adapts it, for the error.
    Raises:
      ValueError: if it is neither.
    """
    if isinstance(module, nn.Module):
        return LinenBase(module)
    nnx = sys.modules.get("flax.nnx")  # who has such a module has imported it; for others it only takes time
    if nnx is not None and isinstance(module, nnx.Module):
        from mcl_jax.bases.nnx_base import NnxBase

        return NnxBase.of(module)
    kind = module if isinstance(module, type) else type(module)
    article = "the class" if kind is module else "an instance of"
    raise ValueError(
        f"{adapter} adapts instances of flax.linen.Module or flax.nnx.Module, got {article} "
        f"{kind.__module__}.{kind.__qualname__}. Modules of other libraries cannot be adapted"
    )
