"""Gemma 1, 2 and the text models of Gemma 3: a Llama with parts of its own, under the same names.

    params                                               Hugging Face
    model/embed_tokens/embedding                 [V, D]  model.embed_tokens.weight, also the output layer if tied
    model/layers/input_layernorm/scale           [L, D]  model.layers.{i}.input_layernorm.weight
    model/layers/post_attention_layernorm/scale  [L, D]  …
    model/layers/pre_feedforward_layernorm/scale
    model/layers/post_feedforward_layernorm/scale
    model/layers/self_attn/q_norm/scale          [L, d]  Gemma 3 alone

Embeddings are multiplied by √D, norms by 1 + w. Each layer has four norms, in Gemma 1 two. Local layers see a window
of tokens, and in Gemma 3 rotate with a base of their own. Gemma 2 caps its attention scores and its logits. The rest is
in `llama`.

Gemma 3 from 4B on sees (`gemma3`); the language model in it is read, and its tower is passed over.

Source: Hugging Face transformers 5.23, `models/gemma`, `models/gemma2` and `models/gemma3`.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mcl_jax.likelihood import soft_cap
from mcl_jax.models import decoder, llama
from mcl_jax.models.gemma_config import GemmaConfig
from mcl_jax.models.rotary import frequencies_of, turn


class RMSNorm(nn.Module):
    """Computes x / √(E[x²] + ε) · (1 + w), all in float32."""

    config: GemmaConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        w = self.param("scale", nn.initializers.zeros, x.shape[-1:], self.config.param_dtype)
        wide = x.astype(jnp.float32)
        normalised = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.config.rms_norm_eps)
        return (normalised * (1.0 + w.astype(jnp.float32))[(None,) * (x.ndim - 1)]).astype(x.dtype)


class SelfAttention(llama.SelfAttention):
    """Causal attention, softmax(cap(s · Q Kᵀ)) V with s = 1 / √query_pre_attn_scalar."""

    config: GemmaConfig
    norm = RMSNorm

    def turned(
        self, y: Float[Array, "B T H d"], positions: Int[Array, "B T"], is_global: Any
    ) -> Float[Array, "B T H d"]:
        """Rotates queries or keys by their positions, as global or as local layers do."""
        if is_global is None:
            return super().turned(y, positions, None)
        ropes = (frequencies_of(rope, y.shape[-1], positions) for rope in (self.config.rope, self.config.local_rope))
        return turn(y, positions, *(jnp.where(is_global, far, near) for far, near in zip(*ropes, strict=True)))


class MLP(llama.MLP):
    """Computes down(gelu(gate(x)) · up(x)), with the tanh form of gelu."""

    activation = staticmethod(functools.partial(jax.nn.gelu, approximate=True))


class Layer(nn.Module):
    """x ← x + norm(attention(norm(x))), then x ← x + norm(mlp(norm(x))); in Gemma 1 without the outer norms."""

    config: GemmaConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], context: decoder.Context, of_layer: Any):
        window, (is_global, past) = of_layer
        norm = functools.partial(RMSNorm, self.config)
        attention = SelfAttention(self.config, name="self_attn")
        y, kept = attention(norm(name="input_layernorm")(x), context, window, is_global, past)
        if not self.config.four_norms:
            x = x + y
            return x + MLP(self.config, name="mlp")(norm(name="post_attention_layernorm")(x)), kept
        x = x + norm(name="post_attention_layernorm")(y)
        y = MLP(self.config, name="mlp")(norm(name="pre_feedforward_layernorm")(x))
        return x + norm(name="post_feedforward_layernorm")(y), kept


class Decoder(llama.Decoder):
    """Token embeddings, L layers and a last norm."""

    layer, last_norm = Layer, RMSNorm


class Gemma(llama.Llama):
    """A causal language model Gemma 1, 2 or 3; see `mcl_jax.models.decoder` for its methods.

    module = Gemma(GemmaConfig(...))
    params = module.init(key, tokens)["params"]
    logits = module.apply({"params": params}, tokens, mask)
    """

    config: GemmaConfig
    stack = Decoder

    @property
    def logit_cap(self) -> float | None:
        """Soft-cap of the logits: they are capped by `logits`, and must be after a product with `unembedding`."""
        return self.config.final_logit_softcapping

    @property
    def embedding_factor(self) -> float:
        """√D, by which token embeddings are multiplied."""
        return self.config.hidden_size**0.5

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Returns token embeddings times √D."""
        x = super().embed(tokens)
        return x * jnp.asarray(self.embedding_factor, x.dtype)

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Applies the output layer and its cap, in float32."""
        return soft_cap(super().logits(hidden), self.logit_cap)
