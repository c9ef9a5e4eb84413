"""BERT as a plain Flax Linen module: a bidirectional post-norm transformer, for the sentence encoder of the metrics.

Names of the parameters here, and in Hugging Face's `BertModel`:

    words/embedding, positions/embedding, types/embedding      embeddings.{word,position,token_type}_embeddings.weight
    norm/{scale,bias}                                          embeddings.LayerNorm.{weight,bias}
    layer_0/{query,key,value}/{kernel,bias}                    encoder.layer.0.attention.self.{query,key,value}
    layer_0/attention_out, layer_0/attention_norm              encoder.layer.0.attention.output.{dense,LayerNorm}
    layer_0/up                                                 encoder.layer.0.intermediate.dense
    layer_0/down, layer_0/norm                                 encoder.layer.0.output.{dense,LayerNorm}

It is for inference only, without dropout and pooler. Source: Devlin et al. (2019); transformers 5.23, `models/bert`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Float, Int

from mcl_jax.models.hf_config import check_divides, check_types

HF_MODULE = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
}
HF_LAYER_MODULE = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "output.LayerNorm",
}
COMPUTED = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
HF_LEAF = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT, under Hugging Face's names.

    Raises:
      ValueError: if a value has the wrong type, or two sizes do not fit together.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12

    def __post_init__(self):
        check_types(self)
        check_divides(self, "num_attention_heads", "hidden_size")

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any]) -> "BertConfig":
        """Reads the dict of a `config.json`.

        Raises:
          ValueError: if a required entry is missing, or the model cannot compute what the dict describes.
        """
        for name, needed in COMPUTED.items():
            if hf_config.get(name, needed) != needed:
                raise ValueError(f"{name} must be {needed!r}, got {hf_config[name]!r}")
        fields = {f.name: hf_config[f.name] for f in dataclasses.fields(cls) if f.name in hf_config}
        missing = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.name not in fields]
        if missing:
            raise ValueError(f"a BERT config.json must have {missing}, got only {sorted(hf_config)}")
        return cls(**fields)


class Layer(nn.Module):
    """x ← norm(x + attention(x)), then x ← norm(x + down(gelu(up(x))))."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        c = self.config

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(epsilon=c.layer_norm_eps, use_fast_variance=False, name=name)

        heads = (*x.shape[:2], c.num_attention_heads, c.hidden_size // c.num_attention_heads)

        q, k, v = (nn.Dense(c.hidden_size, name=name)(x).reshape(heads) for name in ("query", "key", "value"))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / heads[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, jnp.finfo(scores.dtype).min), axis=-1)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        x = norm("attention_norm")(x + nn.Dense(c.hidden_size, name="attention_out")(y))

        y = jax.nn.gelu(nn.Dense(c.intermediate_size, name="up")(x), approximate=False)
        return norm("norm")(x + nn.Dense(c.hidden_size, name="down")(y))


class Bert(nn.Module):
    """Computes hidden states of one sequence per row; `mask` is True on tokens and False on padding, on the right."""

    config: BertConfig

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        c = self.config

        def embed(name: str, rows: int, ids: Array) -> Array:
            return nn.Embed(rows, c.hidden_size, name=name)(ids)

        x = embed("words", c.vocab_size, tokens)
        x = x + embed("positions", c.max_position_embeddings, jnp.arange(tokens.shape[1])[None])
        x = x + embed("types", c.type_vocab_size, jnp.zeros_like(tokens))
        x = nn.LayerNorm(epsilon=c.layer_norm_eps, use_fast_variance=False, name="norm")(x)
        for i in range(c.num_hidden_layers):
            x = Layer(c, name=f"layer_{i}")(x, mask)
        return x


def params_from_hf(state_dict: Mapping[str, np.ndarray], config: BertConfig) -> dict[str, Any]:
    """Makes the `params` collection of `Bert(config)`, in float32, from a Hugging Face state dict of a `BertModel`.

    Args:
      state_dict: arrays by name, from a `BertModel` or a model with a head; tensors that the model does not use
        (pooler, position ids, heads) are ignored.
      config: config of the model.
    Raises:
      ValueError: if a tensor is missing, of the wrong shape, not floating-point or not finite; names it.
    """
    state_dict = {name.removeprefix("bert."): tensor for name, tensor in state_dict.items()}
    inputs = jax.ShapeDtypeStruct((1, 1), jnp.int32), jax.ShapeDtypeStruct((1, 1), jnp.bool_)
    spec = flatten_dict(jax.eval_shape(Bert(config).init, jax.random.key(0), *inputs)["params"])
    missing = [name for name in map(_hf_name, spec) if name not in state_dict]
    if missing:
        raise ValueError(f"the state dict of this BERT must have {missing}, got {sorted(state_dict)}")
    return unflatten_dict({path: _from_hf(state_dict, path, shape.shape) for path, shape in spec.items()})


def _hf_name(path: tuple[str, ...]) -> str:
    *modules, leaf = path
    if len(modules) == 1:
        return f"{HF_MODULE[modules[0]]}.{HF_LEAF[leaf]}"
    layer, module = modules
    return f"encoder.layer.{layer.removeprefix('layer_')}.{HF_LAYER_MODULE[module]}.{HF_LEAF[leaf]}"


def _from_hf(state_dict: Mapping[str, np.ndarray], path: tuple[str, ...], shape: tuple[int, ...]) -> Array:
    name = _hf_name(path)
    if not jnp.issubdtype(state_dict[name].dtype, jnp.floating):
        raise ValueError(f"{name} must hold floating-point numbers (not quantised), got {state_dict[name].dtype}")
    tensor = np.asarray(state_dict[name], np.float32)
    if not np.isfinite(tensor).all():
        raise ValueError(f"{name} must hold finite numbers, got NaN or infinity; download the file again")
    tensor = tensor.T if path[-1] == "kernel" else tensor  # torch's Linear stores [out, in]
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {shape} (after transposing a kernel), got {tensor.shape}")
    return jnp.asarray(tensor)
