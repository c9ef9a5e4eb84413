"""Whisper: a frozen encoder of speech, and a decoder whose tokens attend to its features.

    module, params, processor = from_pretrained(folder)          # Hugging Face's, or CTranslate2's
    batch = processor([processor.transcribe("en")], [clip])
    features = module.apply({"params": params}, batch["mel"], method="encode")                      # once, whatever K
    logits = module.apply({"params": params}, batch["tokens"], batch["mask"], features)

Cross-attention needs keys and values of the features. `extend` computes them with the first tokens of a row and keeps
them in the segment that it returns (`decoder.Segment.memory`), so decoding computes them once for each clip. The frozen
projections run once for all hypotheses, and adapters add to their results. Without adapters on `encoder_attn/k_proj`
and `v_proj`, all hypotheses of a training batch share this memory; otherwise each has its own.

The module tree has Hugging Face's names; if scanned, the layers are one `layers`:

    params, below model                        Hugging Face, below model
    encoder/...                                encoder..., see `whisper_encoder`
    decoder/embed_tokens/embedding             [V, D]     decoder.embed_tokens.weight, also the output layer
    decoder/embed_positions/embedding          [P, D]     decoder.embed_positions.weight
    decoder/layers/self_attn/q_proj/kernel     [L, D, D]  decoder.layers.{i}.self_attn.q_proj.weight, transposed
    decoder/layers/encoder_attn/q_proj/kernel  [L, D, D]  decoder.layers.{i}.encoder_attn.q_proj.weight, transposed
    decoder/layers/fc1/kernel                  [L, D, F]  decoder.layers.{i}.fc1.weight, transposed

Source: Hugging Face transformers 5.23, `models/whisper`; Radford et al., arXiv 2212.04356.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mcl_jax import options
from mcl_jax.models import decoder, whisper_encoder
from mcl_jax.models.hf_config import check_divides, check_sizes
from mcl_jax.models.layers import embedding, layer_norm
from mcl_jax.models.whisper_encoder import Attention, Encoder, WhisperEncoderConfig, feed_forward

ARCHITECTURE = "WhisperForConditionalGeneration"
OF_DECODER = ("vocab_size", "decoder_layers", "decoder_attention_heads", "decoder_ffn_dim", "max_target_positions")
SIZES = (*whisper_encoder.SIZES, *OF_DECODER)
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
UNSUPPORTED = {"activation_function": "gelu", "scale_embedding": False, "tie_word_embeddings": True}


@dataclasses.dataclass(frozen=True)
class WhisperConfig:
    """Sizes and numerics, under Hugging Face's names and with its defaults.

    Args:
      vocab_size: V, number of tokens.
      num_mel_bins: M.
      d_model: D, width of the residual streams of encoder and decoder.
      encoder_layers: layers of the encoder.
      encoder_attention_heads: heads of the encoder; must divide D.
      encoder_ffn_dim: width of the encoder's feed-forward layers.
      max_source_positions: positions of the encoder: half the mel frames of a whole window.
      decoder_layers: L.
      decoder_attention_heads: H; must divide D.
      decoder_ffn_dim: F, width of the decoder's feed-forward layers.
      max_target_positions: P, length of the longest prompt and answer in tokens, including padding.
      init_std: standard deviation of randomly initialised weights.
      layer_norm_epsilon: added to the variance in every layer norm.
      pad_token_id, bos_token_id, eos_token_id, decoder_start_token_id: ids that only `to_hf` uses, since Hugging Face's
        defaults lie outside small vocabularies. A model of several languages has other ids than these defaults.
      dtype: dtype of the computation; attention scores and logits are always float32.
      param_dtype: dtype of the parameters.
      remat: what the backward pass computes again instead of storing it: "none", "full" or "dots", see
        `decoder.check_remat`; True is "full".
      scan: use one scanned layer instead of a list of layers.
    Raises:
      ValueError: if a size is not positive, or two sizes do not fit together.
    """

    vocab_size: int = 51865
    num_mel_bins: int = 80
    d_model: int = 384
    encoder_layers: int = 4
    encoder_attention_heads: int = 6
    encoder_ffn_dim: int = 1536
    max_source_positions: int = 1500
    decoder_layers: int = 4
    decoder_attention_heads: int = 6
    decoder_ffn_dim: int = 1536
    max_target_positions: int = 448
    init_std: float = 0.02
    layer_norm_epsilon: float = 1e-5
    pad_token_id: int = 50256
    bos_token_id: int = 50256
    eos_token_id: int = 50256
    decoder_start_token_id: int = 50257
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: bool | decoder.Remat = False
    scan: bool = True

    def __post_init__(self):
        check_sizes(self, SIZES)
        decoder.check_remat(self.remat)
        for heads in ("encoder_attention_heads", "decoder_attention_heads"):
            check_divides(self, heads, "d_model")

    @property
    def initializer_range(self) -> float:
        """`init_std`, under the name that the layers use."""
        return self.init_std

    @property
    def encoder(self) -> WhisperEncoderConfig:
        """Config of the encoder."""
        same = (*whisper_encoder.SIZES, "initializer_range", "layer_norm_epsilon", "dtype", "param_dtype", "scan")
        return WhisperEncoderConfig(**{name: getattr(self, name) for name in same})

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any], **overrides: Any) -> "WhisperConfig":
        """Reads the dict of a Hugging Face `config.json`; missing entries have their defaults, as in Hugging Face.

        Raises:
          ValueError: if the model cannot compute what the dict describes.
        """
        hf_config = options.given(hf_config)
        for name, needed in UNSUPPORTED.items():
            if (given := hf_config.get(name, needed)) != needed:
                raise ValueError(f"{name} must be {needed!r}, since nothing else is supported, got {given!r}.")
        plain = {name: hf_config[name] for name in (*SIZES, "init_std", *TOKENS) if name in hf_config}
        return cls(**plain | overrides)

    def to_hf(self) -> dict[str, Any]:
        """Returns the dict of a Hugging Face `config.json` of this model."""
        plain = {name: getattr(self, name) for name in (*SIZES, "init_std", *TOKENS)}
        return plain | UNSUPPORTED | {"model_type": "whisper", "architectures": [ARCHITECTURE]}


class Layer(nn.Module):
    """x ← x + self_attn(norm(x)), then x ← x + encoder_attn(norm(x), features), then x ← x + fc2(gelu(fc1(norm(x)))).

    The memory is the stored keys and values of the features, or None to compute them.
    """

    config: WhisperConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], shared: Any, of_layer: Any):
        """Returns x, and if the context keeps them, what is stored of the tokens, and the memory if it is new."""
        config, (context, features), (_, (past, memory)) = self.config, shared, of_layer
        attention = Attention(config, config.decoder_attention_heads, name="self_attn")
        normed = layer_norm(config, "self_attn_layer_norm")(x)
        own = attention.keys_values(normed)
        x = x + attention(normed, (*own, context.own), context.seen(past), order=context.order)

        attention = Attention(config, config.decoder_attention_heads, name="encoder_attn")
        normed = layer_norm(config, "encoder_attn_layer_norm")(x)
        everywhere = lambda N: jnp.zeros((*x.shape[:2], N), jnp.int32)
        if memory is None:
            new = attention.keys_values(features)
            x, new = x + attention(normed, (*new, everywhere(features.shape[1]))), context.kept(*new)
        else:
            x, new = x + attention(normed, None, [decoder.Past(*memory, everywhere(memory[0].shape[-1]))]), None
        return feed_forward(config, config.decoder_ffn_dim, x), ((context.kept(*own), new) if context.keep else None)


class Decoder(nn.Module):
    """Token and position embeddings, L layers and a last layer norm."""

    config: WhisperConfig

    def setup(self):
        config = self.config
        self.embed_tokens = embedding(config, config.vocab_size, config.d_model)
        self.embed_positions = embedding(config, config.max_target_positions, config.d_model)
        self.layers = decoder.layer_stack(Layer, config, config.decoder_layers, scan=config.scan, remat=config.remat)
        self.layer_norm = layer_norm(config)

    def __call__(
        self, tokens: Int[Array, "B T"], mask: Any, context: decoder.Context, features: Any, past: Any
    ) -> tuple[Float[Array, "B T D"], Any]:
        x = decoder.blank(decoder.embed(self.embed_tokens, tokens), mask) + self.embed_positions(context.positions)
        windows = (None,) * self.config.decoder_layers
        x, kept = decoder.run_layers(self.layers, x, (context, features), windows, past)
        return self.layer_norm(x), kept


class Model(nn.Module):
    """Encoder and decoder, under their name in checkpoints, `model`."""

    config: WhisperConfig

    def setup(self):
        self.encoder = Encoder(self.config.encoder)
        self.decoder = Decoder(self.config)


class Whisper(nn.Module):
    """Whisper with its tied output layer; see `mcl_jax.models.decoder` for its methods.

    Every row needs features; `encode` runs outside the adapters.
    """

    config: WhisperConfig

    def setup(self):
        self.model = Model(self.config)

    @property
    def max_positions(self) -> int:
        """Largest number of tokens of a prompt and its continuation together."""
        return self.config.max_target_positions

    @property
    def vocab_size(self) -> int:
        """V, number of tokens."""
        return self.config.vocab_size

    @property
    def feature_size(self) -> int:
        """D, width of the features."""
        return self.config.d_model

    def encode(self, mel: Float[Array, "B M T"]) -> Float[Array, "B N D"]:
        """Computes the features of one clip per row; see `whisper_encoder.Encoder`."""
        return self.model.encoder(mel)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"] | None = None,
        features: Float[Array, "B N D"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Returns next-token logits in float32; arguments as in `hidden`."""
        return self.logits(self.hidden(tokens, mask, features))

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"] | None = None,
        features: Float[Array, "B N D"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Returns the hidden states after the last layer norm.

        Args:
          tokens: token ids.
          mask: True on tokens, False on padding; None if there is no padding.
          features: output of `encode`.
        Raises:
          ValueError: if there are no features, or they, the tokens or the mask have a wrong shape.
        """
        decoder.check_inputs(tokens, mask, self.vocab_size, self.config.max_target_positions)
        features = self._checked(tokens, features)
        context = decoder.context_of(decoder.positions_of(tokens, mask), mask, (), keep=False)
        return self.model.decoder(tokens, mask, context, features, ((), None))[0]

    def extend(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        positions: Int[Array, "B T"],
        past: tuple[decoder.Segment, ...] = (),
        features: Float[Array, "B N D"] | None = None,
    ) -> tuple[Float[Array, "B T D"], decoder.Segment]:
        """Returns the hidden states of tokens at `positions` that follow the segments `past`, and their own segment.

        The first tokens of a row need `features`; later ones find them in the first segment.
        """
        memory = past[0].memory if past else None
        features = self._checked(tokens, features) if memory is None else None
        context = decoder.context_of(positions, mask, past, keep=True)
        kept = tuple((s.keys, s.values) for s in past), memory
        hidden, ((keys, values), new) = self.model.decoder(tokens, mask, context, features, kept)
        return hidden, decoder.Segment(keys, values, positions, mask, new)

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Applies the output layer, in float32."""
        return decoder.tied_logits(self.model.decoder.embed_tokens, hidden)

    @staticmethod
    def unembedding(params: Mapping[str, Any]) -> Float[Array, "D V"]:
        """Returns the output matrix, the transposed token embeddings, from the `params` collection."""
        return params["model"]["decoder"]["embed_tokens"]["embedding"].T

    def _checked(self, tokens: Int[Array, "B T"], features: Float[Array, "B N D"] | None) -> Float[Array, "B N D"]:
        """Returns the features in the dtype of the computation; while parameters are made, those of two silent frames.

        Raises:
          ValueError: if there are none, or they do not fit the tokens.
        """
        B, D = tokens.shape[0], self.config.d_model
        if self.is_initializing():  # tokens alone never reach the encoder
            silence = self.encode(jnp.zeros((B, self.config.num_mel_bins, 2)))
            features = silence if features is None else features
        if features is None or features.ndim != 3 or (features.shape[0], features.shape[2]) != (B, D):
            given = "none" if features is None else features.shape
            raise ValueError(f"features must be [B, N, D] with B={B} and D={D}, as 'encode' returns them, got {given}")
        return features.astype(self.config.dtype)
