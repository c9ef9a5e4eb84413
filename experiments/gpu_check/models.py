"""Random language models of real sizes, made on the device."""

from typing import Any

import jax
import jax.numpy as jnp

import mcl_jax as mcl
from mcl_jax.models import Llama, LlamaConfig

SMOLLM2_135M = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
LLAMA_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def base(sizes: dict[str, Any], dtype: Any, *, remat: bool = False) -> tuple[Llama, Any]:
    """Makes a Llama with random weights of the dtype, leaf by leaf."""
    module = Llama(LlamaConfig(**sizes, dtype=dtype, param_dtype=dtype, remat=remat))
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    leaves, structure = jax.tree.flatten(shapes)
    normal = jax.jit(lambda key, shape: 0.02 * jax.random.normal(key, shape, dtype), static_argnums=1)
    made = [
        jnp.ones(leaf.shape, dtype)
        if leaf.ndim < 3 and leaf.shape[-1] == sizes["hidden_size"] and leaf.size < 2**20
        else normal(jax.random.key(i), leaf.shape)
        for i, leaf in enumerate(leaves)
    ]
    return module, jax.tree.unflatten(structure, made)


def hypotheses(module: Llama, params: Any, num_hypotheses: int, rank: int = 8) -> tuple[mcl.Hypotheses, Any]:
    """Makes K hypotheses with random A and B, so that all differ."""
    targets = mcl.models.lora_targets(module)
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=rank, alpha=2.0 * rank, targets=targets))
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), params, jnp.zeros((1, 2), jnp.int32), num_hypotheses=num_hypotheses)
    )
    leaves, structure = jax.tree.flatten(shapes)
    made = [0.02 * jax.random.normal(jax.random.key(i), leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)]
    return model, jax.tree.unflatten(structure, made)


def batch_of(sizes: dict[str, Any], size: int, length: int) -> dict[str, jax.Array]:
    """Makes random tokens [B, T+1], of which the last three quarters are targets."""
    tokens = jax.random.randint(jax.random.key(7), (size, length + 1), 0, sizes["vocab_size"])
    return {"tokens": tokens, "target_mask": jnp.broadcast_to(jnp.arange(length) >= length // 4, (size, length))}


def forward_flops(sizes: dict[str, Any], length: int) -> tuple[float, float]:
    """Counts FLOPs of a forward pass over one sequence of T tokens.

    Returns:
      Those of the layers, 2 per weight and token and 4 T D per layer and token for attention; and those of the output
      layer, over the targets alone.
    """
    D, F, L, H = (
        sizes[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    )
    kv = sizes.get("num_key_value_heads", H) * D // H
    weights = L * (2 * D * D + 2 * D * kv + 3 * D * F)
    return length * (2 * weights + 4 * L * length * D), 2 * D * sizes["vocab_size"] * (length - length // 4)
