"""A frozen base in fewer bits: the kernels of its layers as int8 or NF4 (QLoRA, arXiv 2305.14314), by qwix.

Adapters, embeddings, norms and the output layer stay as they are. Kernels are quantized one by one as they are read.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict
from jaxtyping import Array

from mcl_jax.extras import needed_for

Quantization = Literal["int8", "nf4"]
LAYERS = r".*\b((q|k|v|qkv|o|out|gate|up|gate_up|down|c)_proj|c_attn|c_fc|fc1|fc2)"
METHODS = ("__call__", "hidden", "extend", "encode")
TILE = 64  # inputs that share a scale in NF4; int8 has one scale per output


def quantized(module: nn.Module, quantization: Quantization) -> nn.Module:
    """Returns a copy of a language model that computes with quantized kernels.

    Args:
      module: a language model from `mcl_jax.models`.
      quantization: "int8" (absmax, a scale per output) or "nf4" (a scale per output and 64 inputs).
    Raises:
      ValueError: if the quantization is unknown.
      MissingExtra: if qwix is not installed.
    """
    if quantization not in get_args(Quantization):
        raise ValueError(f"quantization must be one of {', '.join(get_args(Quantization))}, got {quantization!r}")
    with needed_for("a quantized base", "quantize"):
        import qwix
    options = {"weight_qtype": "int8"} if quantization == "int8" else {"weight_qtype": "nf4", "tile_size": TILE}
    provider = qwix.PtqProvider([qwix.QuantizationRule(module_path=LAYERS, **options)])
    return qwix.quantize_model(module, provider, methods=methods_of(module))


def methods_of(module: nn.Module) -> tuple[str, ...]:
    """Returns the methods of a language model that qwix must change."""
    return tuple(name for name in METHODS if hasattr(module, name))


def is_quantized_module(module: nn.Module) -> bool:
    """Whether a module computes with quantized kernels."""
    return type(module).__module__.startswith("qwix.")


def quantizer(abstract: Any) -> Callable[[tuple[str, ...], Array], Any]:
    """Returns `(path, kernel) -> kernel`, which quantizes kernels and returns other parameters unchanged.

    Args:
      abstract: parameters of a quantized module as shapes.
    """
    from qwix._src.core import qarray

    flat = flatten_dict(abstract)

    def quantize(path: tuple[str, ...], leaf: Array) -> Any:
        template = flat[path]
        if not is_quantized(template):
            return leaf
        one = partial(qarray.quantize, how=template.how)
        stacked = leaf.ndim > 2  # layers that are scanned, each with scales of its own
        return template.replace(array=jax.jit(jax.vmap(one) if stacked else one)(leaf))

    return quantize


def is_quantized(leaf: Any) -> bool:
    """Whether a parameter is one of qwix' quantized arrays."""
    return hasattr(leaf, "how") and hasattr(leaf, "array")
