"""GPT-Neo as a plain Flax Linen module: causal attention, global or within a local window per layer, and a tied head.

The module tree has the names of Hugging Face's `GPTNeoForCausalLM`, so that a path becomes a checkpoint name by
joining it with dots and writing `h_0` as `h.0`; this is what adapters are targeted by and exported under:

    params                                            Hugging Face
    transformer/wte/embedding                         transformer.wte.weight          [V, D], also the output layer
    transformer/wpe/embedding                         transformer.wpe.weight          [max_position_embeddings, D]
    transformer/h_0/ln_1/{scale,bias}                 transformer.h.0.ln_1.{weight,bias}
    transformer/h_0/attn/attention/q_proj/kernel      transformer.h.0.attn.attention.q_proj.weight, transposed
    transformer/h_0/mlp/c_fc/{kernel,bias}            transformer.h.0.mlp.c_fc.{weight,bias}
    transformer/ln_f/{scale,bias}                     transformer.ln_f.{weight,bias}

The base model is frozen in this library, so there is no dropout in it. Adapters reach the `nn.Dense` layers from
outside, through an interceptor. Source: Hugging Face transformers 5.23, `models/gpt_neo/modeling_gpt_neo.py`.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

ATTENTION_KINDS = ("global", "local")
POSITIVE_FIELDS = ("vocab_size", "hidden_size", "num_layers", "num_heads", "max_position_embeddings", "window_size")
OWN_FIELDS = {"dtype", "param_dtype", "remat", "embedding_std", "position_std"}  # not those of a config.json


@dataclasses.dataclass(frozen=True)
class GPTNeoConfig:
    """Sizes and numerics of a GPT-Neo, under Hugging Face's names.

    Args:
        vocab_size: V, number of tokens.
        hidden_size: D, width of the residual stream; a multiple of `num_heads`.
        num_layers: L, number of blocks.
        num_heads: H, attention heads, each of width D / H.
        max_position_embeddings: longest input, in tokens, padding included.
        window_size: tokens that a query of a local layer sees, itself included.
        attention_layers: "global" or "local" for each of the L layers.
        intermediate_size: width of the feed-forward layer; 4 D if None.
        layer_norm_epsilon: added to the variance in every layer norm.
        initializer_range: std of freshly drawn weights (biases start at 0, layer norms at the identity).
        embedding_std: std of freshly drawn token embeddings; `initializer_range` if None. The head is tied, so in a
            frozen random base it also bounds how far apart two logits can get.
        position_std: std of freshly drawn position embeddings; `initializer_range` if None.
        dtype: dtype of the computation; attention scores and logits are float32 whatever it is.
        param_dtype: dtype of the parameters.
        remat: recompute each block in the backward pass instead of keeping its activations.

    Raises:
        ValueError: a size is not positive, or two of them do not fit together.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    max_position_embeddings: int
    window_size: int
    attention_layers: tuple[str, ...]
    intermediate_size: int | None = None
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    embedding_std: float | None = None
    position_std: float | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: bool = False

    def __post_init__(self):
        object.__setattr__(self, "attention_layers", tuple(self.attention_layers))  # a list would not be hashable
        for field in POSITIVE_FIELDS:
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}.")
        if self.intermediate_size is not None and self.intermediate_size < 1:
            raise ValueError(f"intermediate_size must be at least 1 (or None for 4 D), got {self.intermediate_size}.")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_heads, got hidden_size={self.hidden_size} "
                f"and num_heads={self.num_heads}."
            )
        if len(self.attention_layers) != self.num_layers:
            raise ValueError(
                f"attention_layers must name one kind for each of num_layers={self.num_layers} layers, "
                f"got {len(self.attention_layers)}: {self.attention_layers}."
            )
        for layer, kind in enumerate(self.attention_layers):
            if kind not in ATTENTION_KINDS:
                raise ValueError(f"attention_layers[{layer}] must be one of {ATTENTION_KINDS}, got {kind!r}.")

    @property
    def feed_forward_size(self) -> int:
        """Width of the feed-forward layer: `intermediate_size`, or 4 D."""
        return 4 * self.hidden_size if self.intermediate_size is None else self.intermediate_size

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any], **overrides: Any) -> "GPTNeoConfig":
        """Reads the dict of a Hugging Face `config.json`; its dropout rates are ignored, the base being frozen.

        Args:
            hf_config: the dict, e.g. `json.loads(path.read_text())`.
            **overrides: fields of this class that win over the dict's, e.g. `dtype=jnp.bfloat16`.

        Raises:
            ValueError: a needed entry is absent, or the dict describes something this model does not compute.
        """
        if hf_config.get("activation_function", "gelu_new") != "gelu_new":
            raise ValueError(f"activation_function must be 'gelu_new', got {hf_config['activation_function']!r}.")
        if not hf_config.get("tie_word_embeddings", True):
            raise ValueError("tie_word_embeddings must be true, got false: this model has no separate output layer.")
        entries = {**hf_config, "attention_layers": _attention_layers(hf_config)}
        names = {field.name for field in dataclasses.fields(cls)} - OWN_FIELDS
        fields = {name: entries[name] for name in names if name in entries} | overrides
        missing = [name for name in POSITIVE_FIELDS if name not in fields]
        if missing:
            raise ValueError(f"A GPT-Neo config.json must have {missing}, got only {sorted(hf_config)}.")
        return cls(**fields)


def _attention_layers(hf_config: Mapping[str, Any]) -> tuple[str, ...]:
    """Kind of each layer: `attention_types` [[kinds, repeats], ...] written out, or `attention_layers` as it stands."""
    if "attention_types" in hf_config:
        return tuple(kind for kinds, repeats in hf_config["attention_types"] for _ in range(repeats) for kind in kinds)
    if "attention_layers" in hf_config:
        return tuple(hf_config["attention_layers"])
    raise ValueError(f"A GPT-Neo config.json must have attention_types, got only {sorted(hf_config)}.")


# ---------------------------------------------------------------------------------------------------------- Modules


def _dense(config: GPTNeoConfig, features: int, name: str, use_bias: bool = True) -> nn.Dense:
    kernel_init = nn.initializers.normal(config.initializer_range)
    dtypes = dict(dtype=config.dtype, param_dtype=config.param_dtype)
    return nn.Dense(features, use_bias=use_bias, kernel_init=kernel_init, name=name, **dtypes)


class LayerNorm(nn.Module):
    """(x − E[x]) / √(Var[x] + ε) · scale + bias, in float32.

    `nn.LayerNorm` mixes dtypes implicitly below float32, which strict dtype promotion refuses.
    """

    config: GPTNeoConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.config.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], self.config.param_dtype)
        x, scale, bias = (a.astype(jnp.float32) for a in (x, scale[None, None], bias[None, None]))
        mean, variance = jnp.mean(x, axis=-1, keepdims=True), jnp.var(x, axis=-1, keepdims=True)
        normalised = (x - mean) * jax.lax.rsqrt(variance + self.config.layer_norm_epsilon)
        return (normalised * scale + bias).astype(self.config.dtype)


class SelfAttention(nn.Module):
    """Causal multi-head attention, softmax(Q Kᵀ) V: without the usual 1/√d, as GPT-Neo was trained."""

    config: GPTNeoConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], visible: Bool[Array, "#B T T"]) -> Float[Array, "B T D"]:
        """Takes the normalised residual stream and which keys (last axis) each query may see."""
        D, H = self.config.hidden_size, self.config.num_heads
        q, k, v = (_dense(self.config, D, name, use_bias=False)(x) for name in ("q_proj", "k_proj", "v_proj"))
        q, k, v = (y.reshape(*x.shape[:2], H, D // H) for y in (q, k, v))

        scores = jnp.einsum("bqhd,bkhd->bhqk", q.astype(jnp.float32), k.astype(jnp.float32))
        scores = jnp.where(visible[:, None], scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return _dense(self.config, D, "out_proj")(y.reshape(x.shape))


class Attention(nn.Module):
    """Holds `attention`, for the name: Hugging Face nests it as `attn.attention`."""

    config: GPTNeoConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], visible: Bool[Array, "#B T T"]) -> Float[Array, "B T D"]:
        return SelfAttention(self.config, name="attention")(x, visible)


class MLP(nn.Module):
    """c_proj(gelu(c_fc(x))), with the tanh form of gelu ("gelu_new")."""

    config: GPTNeoConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        x = _dense(self.config, self.config.feed_forward_size, "c_fc")(x)
        x = jax.nn.gelu(x, approximate=True)
        return _dense(self.config, self.config.hidden_size, "c_proj")(x)


class Block(nn.Module):
    """x ← x + attn(ln_1(x)), then x ← x + mlp(ln_2(x))."""

    config: GPTNeoConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], visible: Bool[Array, "#B T T"]) -> Float[Array, "B T D"]:
        x = x + Attention(self.config, name="attn")(LayerNorm(self.config, name="ln_1")(x), visible)
        return x + MLP(self.config, name="mlp")(LayerNorm(self.config, name="ln_2")(x))


class Transformer(nn.Module):
    """Token and position embeddings, L blocks and a last layer norm."""

    config: GPTNeoConfig

    def setup(self):
        config = self.config
        dtypes = dict(dtype=config.dtype, param_dtype=config.param_dtype)
        embed = lambda rows, std: nn.Embed(
            rows,
            config.hidden_size,
            embedding_init=nn.initializers.normal(config.initializer_range if std is None else std),
            **dtypes,
        )
        self.wte = embed(config.vocab_size, config.embedding_std)
        self.wpe = embed(config.max_position_embeddings, config.position_std)
        block = nn.remat(Block) if config.remat else Block
        self.h = [block(config) for _ in range(config.num_layers)]
        self.ln_f = LayerNorm(config)

    def __call__(self, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"] | None = None) -> Float[Array, "B T D"]:
        _check_inputs(self.config, tokens, mask)
        x = self.wte(tokens) + self.wpe(positions_of(tokens, mask))
        visible = {kind: visible_keys(tokens, mask, window) for kind, window in self._windows().items()}
        for block, kind in zip(self.h, self.config.attention_layers, strict=True):
            x = block(x, visible[kind])
        return self.ln_f(x)

    def _windows(self) -> dict[str, int | None]:
        return {"global": None, "local": self.config.window_size}


class GPTNeo(nn.Module):
    """GPT-Neo with its tied output layer.

        model = GPTNeo(GPTNeoConfig(...))
        params = model.init(key, tokens)["params"]
        logits = model.apply({"params": params}, tokens, mask)                       # [B, T, V]
        hidden = model.apply({"params": params}, tokens, mask, method="hidden")      # [B, T, D]
        logits = hidden @ GPTNeo.unembedding(params)                                 # the same (in float32)

    `mask` is True on tokens and False on padding, which may lie on either side and changes nothing: padding is never
    attended to, and positions count tokens only. Outputs at padding are finite and mean nothing.
    """

    config: GPTNeoConfig

    def setup(self):
        self.transformer = Transformer(self.config)

    def __call__(self, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"] | None = None) -> Float[Array, "B T V"]:
        """Next-token logits.

        Args:
            tokens: [B, T] token ids.
            mask: [B, T] True on tokens, False on padding; None if there is no padding.

        Returns:
            Logits [B, T, V] in float32, whatever `config.dtype` is.

        Raises:
            ValueError: T exceeds `max_position_embeddings`, or `mask` is not boolean or not [B, T].
        """
        hidden = self.hidden(tokens, mask)
        wte = self.transformer.wte.embedding.astype(hidden.dtype)
        return jnp.einsum("btd,vd->btv", hidden, wte, preferred_element_type=jnp.float32)

    def hidden(self, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"] | None = None) -> Float[Array, "B T D"]:
        """Hidden states [B, T, D] after the last layer norm, in `config.dtype`; arguments as in `__call__`."""
        return self.transformer(tokens, mask)

    @staticmethod
    def unembedding(params: Mapping[str, Any]) -> Float[Array, "D V"]:
        """Output matrix [D, V], the transposed token embeddings, from the `params` collection."""
        return params["transformer"]["wte"]["embedding"].T


# ------------------------------------------------------------------------------------------------ Positions, masks


def positions_of(tokens: Int[Array, "B T"], mask: Bool[Array, "B T"] | None) -> Int[Array, "#B T"]:
    """Position of each token among the unmasked ones of its row, from 0; masked ones before the first also get 0."""
    if mask is None:
        return jnp.arange(tokens.shape[1])[None]
    return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)


def visible_keys(
    tokens: Int[Array, "B T"], mask: Bool[Array, "B T"] | None, window: int | None
) -> Bool[Array, "#B T T"]:
    """Whether query i may see key j, [.., i, j]: i − window < j ≤ i (no lower end if None), and j is not padding."""
    i, j = jnp.arange(tokens.shape[1])[:, None], jnp.arange(tokens.shape[1])[None]
    visible = j <= i
    if window is not None:
        visible &= i - window < j
    return visible[None] if mask is None else visible[None] & mask[:, None]


def _check_inputs(config: GPTNeoConfig, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"] | None) -> None:
    if tokens.ndim != 2:
        raise ValueError(f"tokens must be [B, T], got shape {tokens.shape}.")
    if tokens.shape[1] > config.max_position_embeddings:
        raise ValueError(
            f"tokens must have at most max_position_embeddings={config.max_position_embeddings} positions, "
            f"got T={tokens.shape[1]}."
        )
    if mask is not None and (mask.shape != tokens.shape or mask.dtype != jnp.bool_):
        raise ValueError(f"mask must be bool{list(tokens.shape)} like tokens, got {mask.dtype}{list(mask.shape)}.")


# ---------------------------------------------------------------------------------------- Hugging Face checkpoints

HF_LEAF = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
HF_BUFFER = re.compile(r"attn\.attention\.(bias|masked_bias)$")  # causal masks that old checkpoints carry


def params_from_hf(state_dict: Mapping[str, np.ndarray], config: GPTNeoConfig) -> dict[str, Any]:
    """The `params` collection of `GPTNeo(config)` from a Hugging Face state dict.

    Args:
        state_dict: tensors of a `GPTNeoForCausalLM` as arrays, by name, e.g. from `safetensors.numpy.load_file`.
        config: the model's configuration; parameters are cast to its `param_dtype`.

    Raises:
        ValueError: names tensors that are missing, unexpected or of the wrong shape, or an output layer that is not
            tied to the token embeddings.
    """
    given = {name: np.asarray(tensor) for name, tensor in state_dict.items() if not HF_BUFFER.search(name)}
    lm_head = given.pop("lm_head.weight", None)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    spec = flatten_dict(jax.eval_shape(GPTNeo(config).init, jax.random.key(0), tokens)["params"])

    names = {path: _hf_name(path) for path in spec}
    _check_names(set(names.values()), set(given))
    params = {path: _from_hf(names[path], given[names[path]], path, spec[path]) for path in spec}
    if lm_head is not None and not np.array_equal(lm_head, given["transformer.wte.weight"]):
        raise ValueError("lm_head.weight must equal transformer.wte.weight (tied output layer), got another matrix.")
    return unflatten_dict(params)


def _hf_name(path: tuple[str, ...]) -> str:
    *modules, leaf = path
    return ".".join([re.sub(r"^h_(\d+)$", r"h.\1", module) for module in modules] + [HF_LEAF[leaf]])


def _check_names(needed: set[str], given: set[str]) -> None:
    if needed != given:
        raise ValueError(
            f"A state dict of this GPT-Neo must have exactly {len(needed)} tensors, got {len(given)}. "
            f"Missing: {sorted(needed - given)}. Unexpected: {sorted(given - needed)}."
        )


def _from_hf(name: str, tensor: np.ndarray, path: tuple[str, ...], spec: jax.ShapeDtypeStruct) -> Array:
    transposed = path[-1] == "kernel"  # torch's Linear keeps [out, in]
    needed = spec.shape[::-1] if transposed else spec.shape
    if tensor.shape != needed:
        raise ValueError(f"{name} must have shape {needed}, got {tensor.shape}.")
    return jnp.asarray(tensor.T if transposed else tensor, spec.dtype)
