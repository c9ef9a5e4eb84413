"""A language model that computes in fewer bits with the same parameters, for passes that need not be exact."""

import dataclasses
from typing import Any, Literal, get_args

import flax.linen as nn
import jax.numpy as jnp

from mcl_jax.extras import needed_for
from mcl_jax.models import families
from mcl_jax.models.quantized import LAYERS, is_quantized_module, methods_of

Narrow = Literal["bfloat16", "int8"]


def narrowed(module: nn.Module, dtype: Narrow) -> nn.Module:
    """Returns a copy of a language model whose passes are cheaper and less exact.

    It takes the parameters of the module itself, which are converted in each pass, so it needs no second base. Its use
    is to choose winners (`choose_fn` of `mcl_jax.make_train_step`):

        cheap = mcl.Hypotheses(mcl.models.narrowed(module, "bfloat16"), config)
        step = mcl.make_train_step(log_p, objective, optimizer, choose_fn=language_model.log_likelihood_fn(cheap))

    Args:
      module: a language model from `mcl_jax.models`.
      dtype: "bfloat16" computes as `dtype=jnp.bfloat16` of `from_pretrained` does. "int8" multiplies the inputs of the
        layers by their kernels in int8, with a scale for each row of inputs and each output; adapters, attention, norms
        and the output layer stay as they are. The gradient of such a pass is of no use.
    Raises:
      TypeError: if the module is another one.
      ValueError: if the dtype is another one, or the kernels are quantized already.
      MissingExtra: if qwix is not installed, for int8.
    """
    if dtype not in get_args(Narrow):
        raise ValueError(f"dtype must be one of {', '.join(get_args(Narrow))}, got {dtype!r}")
    families.of_module(module)
    if is_quantized_module(module):
        raise ValueError(f"narrowed needs a base whose kernels are not quantized yet, got {type(module)}")
    if dtype == "bfloat16":
        return module.clone(config=_computing_in(module.config, jnp.bfloat16))
    with needed_for("an int8 pass", "quantize"):
        import qwix
    products = qwix.QtRule(module_path=LAYERS, weight_qtype="int8", act_qtype="int8", op_names=("dot_general",))
    return qwix.quantize_model(module, qwix.QtProvider([products]), methods=methods_of(module))


def _computing_in(config: Any, dtype: Any) -> Any:
    """Returns a config, and the configs in its fields, with another dtype of the computation."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    changed = {name: _computing_in(value, dtype) for name, value in fields.items() if dataclasses.is_dataclass(value)}
    return dataclasses.replace(config, **changed, **({"dtype": dtype} if "dtype" in fields else {}))
