"""Trained copies of parameters, which take the place of those of the base: of embeddings or an output layer, say.

A copy is a leaf of the adapters that has the path and the name of a parameter, as `lm_head/kernel` [K, D, V] beside the
parameter `lm_head/kernel` [D, V]. One that all hypotheses share, `lm_head/shared_kernel`, has no axis K. K copies take
K times the memory of the parameter, and a training step holds one for each example of a batch.
"""

from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, PyTree

from mcl_jax.lora.config import SHARED, SHARED_A, SHARED_B
from mcl_jax.lora.dora import MAGNITUDE

FACTORS = ("a", "b", MAGNITUDE, SHARED_A, SHARED_B, "router", "prompt")  # leaves that stand beside the parameters


def split_copies(adapters_k: PyTree[Array]) -> tuple[PyTree[Array], dict[tuple[str, ...], Any]]:
    """Returns one set of adapters without its copies, and the copies by the path of the parameter that they replace."""
    flat = flatten_dict(adapters_k)
    copies = {path: leaf for path, leaf in flat.items() if path[-1] not in FACTORS}
    if not copies:
        return adapters_k, {}
    factors = unflatten_dict({path: leaf for path, leaf in flat.items() if path not in copies})
    return factors, {(*path[:-1], path[-1].removeprefix(SHARED)): leaf for path, leaf in copies.items()}
