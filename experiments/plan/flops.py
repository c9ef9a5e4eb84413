"""FLOPs of a train step by formula: what the method needs, whatever a compiler makes of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from mcl_jax.models.llama import LlamaConfig


@dataclasses.dataclass(frozen=True)
class Forward:
    """FLOPs of the forward pass of one example.

    Attributes:
      products: products with the kernels of the layers.
      attention: scores and weighted sums, of all pairs of tokens.
      adapters: products with the adapters of one hypothesis.
      head: the output layer, at every token.
      last: the last product of each layer, whose result the backward pass does not need.
    """

    products: float
    attention: float
    adapters: float
    head: float
    last: float

    @property
    def layers(self) -> float:
        """FLOPs of all layers."""
        return self.products + self.attention + self.adapters


def forward(config: LlamaConfig, adapters: Mapping[str, Any], length: int) -> Forward:
    """Counts FLOPs, 2 per multiplication and addition.

    Args:
      config: sizes of the language model.
      adapters: shapes of adapters with leading axis K.
      length: number of tokens.
    """
    D, F, d = config.hidden_size, config.intermediate_size, config.head_dim
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    kernels = config.num_hidden_layers * (D * d * (heads + 2 * groups) + heads * d * D + 3 * D * F)
    sizes = {path: float(np.prod(leaf.shape[1:])) for path, leaf in flatten_dict(dict(adapters)).items()}
    last = sum(size for path, size in sizes.items() if path[-2:] == ("down_proj", "b"))
    return Forward(
        products=2.0 * length * kernels,
        attention=4.0 * length**2 * heads * d * config.num_hidden_layers,
        adapters=2.0 * length * sum(sizes.values()),
        head=2.0 * length * D * config.vocab_size,
        last=2.0 * length * (config.num_hidden_layers * D * F + last),
    )


def step(
    one: Forward, size: int, num_hypotheses: int, backward: str, remat: str, *, chooses_first: bool = False
) -> float:
    """Counts the FLOPs of a train step.

    The backward pass needs gradients of activations only, as the base is frozen: as many products as the forward pass;
    twice as many in attention and adapters, which have two factors. The output layer is computed again in it, and so
    are the layers with remat.

    Args:
      one: forward pass of one example.
      size: number of examples.
      num_hypotheses: K.
      backward: "winner", "sampled" or "all".
      remat: "none", "full" or "dots".
      chooses_first: whether scores without dropout are computed before the backward pass of "all".
    """
    again = {"none": 0.0, "full": one.layers - one.last, "dots": one.attention + one.adapters}[remat]
    forward_pass = one.layers + one.head
    backward_pass = one.products + 2 * (one.attention + one.adapters) + 2 * one.head + again
    if backward == "all" or num_hypotheses == 1:
        return size * num_hypotheses * ((1 + chooses_first) * forward_pass + backward_pass)
    return size * (num_hypotheses * forward_pass + forward_pass + backward_pass)
