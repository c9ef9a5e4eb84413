"""Llama and related models as one plain Flax Linen module: Llama 1 to 3, ALMA, Vicuna, Mistral, SmolLM2 and 3, Qwen2
and 3, and the distillations of DeepSeek-R1.

They differ in sizes, grouped queries, biases, norms of queries and keys, tied embeddings, rotary scaling, layers
without rotation and sliding windows, which are all fields of the config. The module tree has the names of Hugging
Face's `LlamaForCausalLM`; if scanned, the L layers are one `layers` with a leading axis L, else `layers_0`, `layers_1`,
…:

    params                                             Hugging Face
    model/embed_tokens/embedding          [V, D]       model.embed_tokens.weight
    model/layers/self_attn/q_proj/kernel  [L, D, H·d]  model.layers.{i}.self_attn.q_proj.weight, transposed
    model/layers/self_attn/q_norm/scale   [L, d]       model.layers.{i}.self_attn.q_norm.weight; only if qk_norm
    model/layers/mlp/down_proj/kernel     [L, F, D]    model.layers.{i}.mlp.down_proj.weight, transposed
    model/layers/input_layernorm/scale    [L, D]       model.layers.{i}.input_layernorm.weight
    model/norm/scale                      [D]          model.norm.weight
    lm_head/kernel                        [D, V]       lm_head.weight, transposed; absent if tied

Source: Hugging Face transformers 5.23, `models/llama`, `models/mistral`, `models/qwen2`, `models/qwen3` and
`models/smollm3`. `gemma` and `phi` replace parts of this model by their own.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mcl_jax.models import decoder
from mcl_jax.models.layers import dense, embedding
from mcl_jax.models.llama_config import LlamaConfig
from mcl_jax.models.rotary import rotate


class RMSNorm(nn.Module):
    """Computes x / √(E[x²] + ε) · scale, with the quotient in float32."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.config.param_dtype)
        wide = x.astype(jnp.float32)
        normalised = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.config.rms_norm_eps)
        return scale.astype(x.dtype)[(None,) * (x.ndim - 1)] * normalised.astype(x.dtype)


class SelfAttention(nn.Module):
    """Causal attention with rotary positions, softmax(Q Kᵀ / √d) V, in Hkv groups of heads."""

    config: LlamaConfig
    norm = RMSNorm

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], context: decoder.Context, window: Any, rotates: Any, past: Any):
        """Returns the output [B, T, D], and its keys and values as `decoder.stored` if the context keeps them."""
        config = self.config
        q, k, v = self.projected(x)
        if config.qk_norm:
            q, k = self.norm(config, name="q_norm")(q), self.norm(config, name="k_norm")(k)
        q, k = (self.turned(y, context.positions, rotates) for y in (q, k))
        own = k, v, context.own
        options = dict(scale=config.attention_scale, cap=config.attention_cap, order=context.order)
        y = decoder.attend(q, own, context.seen(past), window=window, **options)
        y = y.reshape(*x.shape[:2], -1)
        y = dense(config, config.hidden_size, "o_proj", use_bias=config.o_bias)(y)
        return y, context.kept(k, v)

    def projected(self, x: Float[Array, "B T D"]) -> Sequence[Float[Array, "B T _ d"]]:
        """Returns the queries of H heads, and the keys and values of Hkv."""
        config = self.config

        def heads(name: str, number: int) -> Array:
            y = dense(config, number * config.head_dim, name, use_bias=config.qkv_bias)(x)
            return y.reshape(*x.shape[:2], number, config.head_dim)

        q = heads("q_proj", config.num_attention_heads)
        return q, *(heads(name, config.num_key_value_heads) for name in ("k_proj", "v_proj"))

    def turned(self, y: Float[Array, "B T H d"], positions: Int[Array, "B T"], rotates: Any) -> Float[Array, "B T H d"]:
        """Rotates queries or keys by their positions, in a layer that does."""
        rotated = rotate(y, positions, self.config.rope)
        return rotated if rotates is None else jnp.where(rotates, rotated, y)


class MLP(nn.Module):
    """Computes down(silu(gate(x)) · up(x))."""

    config: LlamaConfig
    activation = staticmethod(jax.nn.silu)

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate, up = self.gate_and_up(x)
        config = self.config
        return dense(config, config.hidden_size, "down_proj", use_bias=config.mlp_bias)(self.activation(gate) * up)

    def gate_and_up(self, x: Float[Array, "B T D"]) -> Sequence[Float[Array, "B T F"]]:
        """Returns the two factors, the first of them before the activation."""
        wide = functools.partial(dense, self.config, self.config.intermediate_size, use_bias=self.config.mlp_bias)
        return [wide(name)(x) for name in ("gate_proj", "up_proj")]


class Layer(nn.Module):
    """x ← x + attention(norm(x)), then x ← x + mlp(norm(x))."""

    config: LlamaConfig
    attention, mlp = SelfAttention, MLP

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], context: decoder.Context, of_layer: Any):
        window, (rotates, past) = of_layer
        attention = self.attention(self.config, name="self_attn")
        y, kept = attention(RMSNorm(self.config, name="input_layernorm")(x), context, window, rotates, past)
        x = x + y
        return x + self.mlp(self.config, name="mlp")(RMSNorm(self.config, name="post_attention_layernorm")(x)), kept


class Decoder(nn.Module):
    """Token embeddings, L layers and a last norm."""

    config: LlamaConfig
    layer, last_norm = Layer, RMSNorm

    def setup(self):
        config = self.config
        self.embed_tokens = embedding(config, config.vocab_size, config.hidden_size)
        stacked = dict(scan=config.scan, remat=config.remat)
        self.layers = decoder.layer_stack(self.layer, config, config.num_hidden_layers, **stacked)
        self.norm = self.last_norm(config)

    def __call__(self, x: Float[Array, "B T D"], context: decoder.Context, past: Any):
        rotates = None if self.config.rope_layers is None else jnp.array(self.config.rope_layers)
        x, kept = decoder.run_layers(self.layers, x, context, self.config.windows, (rotates, past))
        return self.norm(x), kept


class Llama(nn.Module):
    """A Llama-like causal language model; see `mcl_jax.models.decoder` for its methods.

    module = Llama(LlamaConfig(...))
    params = module.init(key, tokens)["params"]
    logits = module.apply({"params": params}, tokens, mask)
    """

    config: LlamaConfig
    stack = Decoder
    takes_texts = True

    @property
    def vocab_size(self) -> int:
        """V, number of tokens."""
        return self.config.vocab_size

    def setup(self):
        self.model = self.stack(self.config)
        if not self.config.tie_word_embeddings:
            self.lm_head = dense(self.config, self.config.vocab_size, use_bias=False)

    def __call__(self, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"] | None = None) -> Float[Array, "B T V"]:
        """Returns next-token logits in float32."""
        return self.logits(self.hidden(tokens, mask))

    def hidden(self, tokens: Int[Array, "B T"], mask: decoder.Mask | None = None) -> Float[Array, "B T D"]:
        """Returns the hidden states after the last norm, in `config.dtype`.

        Raises:
          ValueError: if `mask` is neither boolean nor of integers, or not [B, T], or if it has texts in rows so long
            that one of them could change the rotation of the others.
        """
        decoder.check_inputs(tokens, mask, self.vocab_size, takes_texts=True)
        texts, rope = mask is not None and mask.dtype != jnp.bool_, self.config.rope
        if texts and tokens.shape[1] > rope.exact_length:
            raise ValueError(
                f"rows of several texts must have at most {rope.exact_length} positions, since longer ones change the "
                f"rotation (rope_type {rope.rope_type!r}); got T={tokens.shape[1]}"
            )
        return self.hidden_embedded(self.embed(tokens), decoder.positions_of(tokens, mask), mask)

    def hidden_embedded(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        mask: decoder.Mask | None = None,
        prefix: Bool[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Computes `hidden` from embeddings, for inputs that are not all tokens; `prefix` as in `context_of`."""
        context = decoder.context_of(positions, mask, (), keep=False, prefix=prefix)
        return self.model(decoder.blank(x, mask), context, ())[0]

    def extend(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        positions: Int[Array, "B T"],
        past: tuple[decoder.Segment, ...] = (),
    ) -> tuple[Float[Array, "B T D"], decoder.Segment]:
        """Returns the hidden states of tokens at `positions` that follow the segments `past`, and their own segment."""
        return self.extend_embedded(self.embed(tokens), mask, positions, past)

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Returns token embeddings."""
        return decoder.embed(self.model.embed_tokens, tokens)

    def extend_embedded(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"],
        positions: Int[Array, "B T"],
        past: tuple[decoder.Segment, ...] = (),
        prefix: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], decoder.Segment]:
        """Computes `extend` from embeddings, for inputs that are not all tokens; `prefix` as in `context_of`."""
        context = decoder.context_of(positions, mask, past, keep=True, prefix=prefix)
        past = tuple((s.keys, s.values) for s in past)
        hidden, (keys, values) = self.model(decoder.blank(x, mask), context, past)
        return hidden, decoder.Segment(keys, values, positions, mask)

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Applies the output layer, in float32."""
        if self.config.tie_word_embeddings:
            return decoder.tied_logits(self.model.embed_tokens, hidden)
        return self.lm_head(hidden).astype(jnp.float32)

    @staticmethod
    def unembedding(params: Mapping[str, Any]) -> Float[Array, "D V"]:
        """Returns the output matrix from the `params` collection."""
        if "lm_head" in params:
            return params["lm_head"]["kernel"]
        return params["model"]["embed_tokens"]["embedding"].T
