"""Common architecture of GPT-2 and GPT-Neo: learned positions, layer norms, a GELU feed-forward layer, a tied head.

They differ in attention (`gpt2`, `gpt_neo`). The module tree has Hugging Face's names, scanned or not:

    params                                          Hugging Face
    transformer/wte/embedding            [V, D]     transformer.wte.weight, also the output layer
    transformer/wpe/embedding            [P, D]     transformer.wpe.weight, P = max_position_embeddings
    transformer/h_0/ln_1/{scale,bias}    [D]        transformer.h.0.ln_1.{weight,bias}
    transformer/h_0/attn/...
    transformer/h_0/mlp/c_fc/kernel      [D, F]     transformer.h.0.mlp.c_fc.weight (transposed in GPT-Neo)
    transformer/ln_f/{scale,bias}        [D]        transformer.ln_f.{weight,bias}

The base is frozen in this library, so there is no dropout in it. Adapters reach the `nn.Dense` layers from outside.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mcl_jax import options
from mcl_jax.models import decoder
from mcl_jax.models.hf_config import check_divides, check_sizes
from mcl_jax.models.layers import dense, embedding, layer_norm

SIZES = ("vocab_size", "hidden_size", "num_layers", "num_heads", "max_position_embeddings")
OWN_FIELDS = {"dtype", "param_dtype", "remat", "scan", "embedding_std", "position_std"}  # not in a config.json


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Sizes and numerics, under GPT-Neo's names.

    Args:
      vocab_size: V, number of tokens.
      hidden_size: D, width of the residual stream; must be a multiple of `num_heads`.
      num_layers: L, number of blocks.
      num_heads: H, attention heads, each of width D / H.
      max_position_embeddings: length of the longest input in tokens, including padding.
      intermediate_size: width of the feed-forward layer; None means 4 D.
      layer_norm_epsilon: added to the variance in every layer norm.
      initializer_range: standard deviation of random weights (biases start at 0, layer norms at the identity).
      embedding_std: standard deviation of random token embeddings; None means `initializer_range`. Since the head is
        tied, it also limits the difference between two logits of a frozen random base.
      position_std: standard deviation of random position embeddings; None means `initializer_range`.
      dtype: dtype of the computation; attention scores and logits are always float32.
      param_dtype: dtype of the parameters.
      remat: what the backward pass computes again instead of storing it: "none", "full" or "dots", see
        `decoder.check_remat`; True is "full".
      scan: use one scanned block instead of L blocks.
    Raises:
      ValueError: if a size is not positive, or two sizes do not fit together.
    """

    attention: ClassVar[type[nn.Module]]

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    max_position_embeddings: int
    intermediate_size: int | None = None
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    embedding_std: float | None = None
    position_std: float | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: bool | decoder.Remat = False
    scan: bool = False

    def __post_init__(self):
        check_sizes(self, SIZES)
        decoder.check_remat(self.remat)
        if self.intermediate_size is not None and self.intermediate_size < 1:
            raise ValueError(f"intermediate_size must be at least 1 (or None for 4 D), got {self.intermediate_size}.")
        check_divides(self, "num_heads", "hidden_size")

    @property
    def feed_forward_size(self) -> int:
        """Width of the feed-forward layer: `intermediate_size`, or 4 D."""
        return 4 * self.hidden_size if self.intermediate_size is None else self.intermediate_size

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Number of tokens that a query sees in each layer, including itself; None sees everything."""
        return (None,) * self.num_layers

    @classmethod
    def _from_entries(cls, entries: Mapping[str, Any], overrides: Mapping[str, Any]) -> Any:
        entries = options.given(entries)
        if not entries.get("tie_word_embeddings", True):
            raise ValueError(
                "tie_word_embeddings must be true, since the model has no output layer of its own, got false."
            )
        names = {field.name for field in dataclasses.fields(cls)} - OWN_FIELDS
        fields = {name: entries[name] for name in names if name in entries} | dict(overrides)
        needed = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        if missing := [name for name in needed if name not in fields]:
            raise ValueError(f"a config.json for {cls.__name__} must have {missing}, got only {sorted(entries)}.")
        return cls(**fields)


class MLP(nn.Module):
    """Computes c_proj(gelu(c_fc(x))), with the tanh form of gelu ("gelu_new")."""

    config: GPTConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        x = dense(self.config, self.config.feed_forward_size, "c_fc")(x)
        x = jax.nn.gelu(x, approximate=True)
        return dense(self.config, self.config.hidden_size, "c_proj")(x)


class Block(nn.Module):
    """x ← x + attn(ln_1(x)), then x ← x + mlp(ln_2(x))."""

    config: GPTConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], context: decoder.Context, of_layer: Any):
        window, past = of_layer
        attention = self.config.attention(self.config, name="attn")
        y, kept = attention(layer_norm(self.config, "ln_1")(x), context, window, past)
        x = x + y
        return x + MLP(self.config, name="mlp")(layer_norm(self.config, "ln_2")(x)), kept


class Transformer(nn.Module):
    """Token and position embeddings, L blocks and a last layer norm."""

    config: GPTConfig

    def setup(self):
        config = self.config
        self.wte = embedding(config, config.vocab_size, config.hidden_size, config.embedding_std)
        self.wpe = embedding(config, config.max_position_embeddings, config.hidden_size, config.position_std)
        self.h = decoder.layer_stack(Block, config, config.num_layers, scan=config.scan, remat=config.remat)
        self.ln_f = layer_norm(config)

    def __call__(self, x: Float[Array, "B T D"], context: decoder.Context, past: Any):
        x = x + self.wpe(context.positions)
        x, kept = decoder.run_layers(self.h, x, context, self.config.windows, past)
        return self.ln_f(x), kept


class GPT(nn.Module):
    """A GPT-2 or GPT-Neo, by its config, with a tied output layer; see `mcl_jax.models.decoder` for its methods."""

    config: GPTConfig
    takes_texts = True

    @property
    def max_positions(self) -> int:
        """Largest number of tokens of a prompt and its continuation together, as there are no more positions."""
        return self.config.max_position_embeddings

    @property
    def vocab_size(self) -> int:
        """V, number of tokens."""
        return self.config.vocab_size

    def setup(self):
        self.transformer = Transformer(self.config)

    def __call__(self, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"] | None = None) -> Float[Array, "B T V"]:
        """Computes next-token logits.

        Args:
          tokens: token ids.
          mask: True on tokens, False on padding; None if there is no padding.
        Returns:
          Logits [B, T, V] in float32, whatever `config.dtype` is.
        Raises:
          ValueError: if T exceeds `max_position_embeddings`, or `mask` is neither boolean nor of integers, or not
            [B, T].
        """
        return self.logits(self.hidden(tokens, mask))

    def hidden(self, tokens: Int[Array, "B T"], mask: decoder.Mask | None = None) -> Float[Array, "B T D"]:
        """Returns the hidden states after the last layer norm, in `config.dtype`; arguments as in `__call__`."""
        most = self.config.max_position_embeddings
        decoder.check_inputs(tokens, mask, self.vocab_size, most, takes_texts=True)
        context = decoder.context_of(decoder.positions_of(tokens, mask), mask, (), keep=False)
        return self.transformer(decoder.blank(self.embed(tokens), mask), context, ())[0]

    def extend(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        positions: Int[Array, "B T"],
        past: tuple[decoder.Segment, ...] = (),
    ) -> tuple[Float[Array, "B T D"], decoder.Segment]:
        """Returns the hidden states of tokens at `positions` that follow the segments `past`, and their own segment."""
        context = decoder.context_of(positions, mask, past, keep=True)
        kv = tuple((s.keys, s.values) for s in past)
        hidden, (keys, values) = self.transformer(decoder.blank(self.embed(tokens), mask), context, kv)
        return hidden, decoder.Segment(keys, values, positions, mask)

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Returns token embeddings, without position embeddings."""
        return decoder.embed(self.transformer.wte, tokens)

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Applies the output layer, in float32."""
        return decoder.tied_logits(self.transformer.wte, hidden)

    @staticmethod
    def unembedding(params: Mapping[str, Any]) -> Float[Array, "D V"]:
        """Returns the output matrix, the transposed token embeddings, from the `params` collection."""
        return params["transformer"]["wte"]["embedding"].T
