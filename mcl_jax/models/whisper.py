"""Whisper's encoder as used by Qwen2-Audio: log-mel frames, 100 per second, to features, 25 per second.

    mel [B, M, T] → conv1 → conv2, stride 2 → + positions → L layers → mean of pairs → norm → [B, N, D],  N = ⌊(T+1)/4⌋

The module tree has the names of Hugging Face's `Qwen2AudioEncoder`; if scanned, the layers are one `layers`:

    params                                       Hugging Face, below audio_tower
    conv1/kernel                   [3, M, D]     conv1.weight [D, M, 3], axes reversed
    embed_positions/embedding      [P, D]        embed_positions.weight
    layers/self_attn/q_proj/kernel [L, D, D]     layers.{i}.self_attn.q_proj.weight, transposed; k_proj has no bias
    layers/fc1/kernel              [L, D, F]     layers.{i}.fc1.weight, transposed
    layer_norm/scale               [D]           layer_norm.weight

Source: Hugging Face transformers 5.23, `models/qwen2_audio`; Radford et al., arXiv 2212.04356.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from mcl_jax import options
from mcl_jax.models import decoder
from mcl_jax.models.hf_config import check_divides, check_sizes
from mcl_jax.models.layers import dense, layer_norm

MODEL_TYPE = "qwen2_audio_encoder"
SIZES = (
    "num_mel_bins",
    "d_model",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "max_source_positions",
)


@dataclasses.dataclass(frozen=True)
class WhisperConfig:
    """Sizes and numerics, under Hugging Face's names and with its defaults.

    Args:
      num_mel_bins: M.
      d_model: D, width of the residual stream.
      encoder_layers: L.
      encoder_attention_heads: H; must divide D.
      encoder_ffn_dim: F, width of the feed-forward layers.
      max_source_positions: P, positions after the convolutions: half the frames of a whole window.
      initializer_range: standard deviation of randomly initialised weights.
      layer_norm_epsilon: added to the variance in every layer norm.
      dtype: dtype of the computation.
      param_dtype: dtype of the parameters.
      scan: use one scanned layer instead of L layers.
    Raises:
      ValueError: if a size is not positive, or two sizes do not fit together.
    """

    num_mel_bins: int = 128
    d_model: int = 1280
    encoder_layers: int = 32
    encoder_attention_heads: int = 20
    encoder_ffn_dim: int = 5120
    max_source_positions: int = 1500
    initializer_range: float = 0.02
    layer_norm_epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    scan: bool = True

    def __post_init__(self):
        check_sizes(self, SIZES)
        check_divides(self, "encoder_attention_heads", "d_model")

    @property
    def window(self) -> int:
        """Number of frames of a whole window."""
        return 2 * self.max_source_positions

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any], **overrides: Any) -> "WhisperConfig":
        """Reads the `audio_config` of a Hugging Face `config.json`.

        Raises:
          ValueError: if the model_type is another one, or the activation is not "gelu".
        """
        hf_config = options.given(hf_config)
        for name, needed in [("model_type", MODEL_TYPE), ("activation_function", "gelu")]:
            if (given := hf_config.get(name, needed)) != needed:
                raise ValueError(f"audio_config: {name} must be {needed!r}, got {given!r}.")
        plain = {name: hf_config[name] for name in (*SIZES, "initializer_range") if name in hf_config}
        return cls(**plain | overrides)

    def to_hf(self) -> dict[str, Any]:
        """Returns the `audio_config` of a Hugging Face `config.json` of this model."""
        plain = {name: getattr(self, name) for name in (*SIZES, "initializer_range")}
        return plain | {"model_type": MODEL_TYPE, "activation_function": "gelu"}


def num_features(frames: Int[Any, "*B"]) -> Int[Any, "*B"]:
    """Returns the number of features of a clip: the stride halves the frames (rounded up), then the pooling (down)."""
    return (frames + 1) // 4


def check_clips(frames: Int[Any, " B"], given: int, window: int) -> None:
    """Checks that clips have the same features in a shorter window as in the encoder's whole window.

    The convolutions see two frames after the end of a clip, so a shorter window must contain them.

    Args:
      frames: frames of each clip.
      given: frames of the window.
      window: frames of the encoder's whole window.
    Raises:
      ValueError: if the window is too long for the encoder or too short for a clip; names the rows.
    """
    if given > window:
        raise ValueError(f"mel must have at most {window} frames, since the encoder has no more positions, got {given}")
    limit = window if given == window else given - 2
    if (long := np.flatnonzero(np.asarray(frames) > limit)).size:
        raise ValueError(
            f"clips in {given} mel frames must end by frame {limit} (a window shorter than {window} needs two frames "
            f"after each clip), got {np.asarray(frames)[long].tolist()} frames in rows {long.tolist()}"
        )


class SelfAttention(nn.Module):
    """Computes softmax(Q Kᵀ / √d) V over all real positions."""

    config: WhisperConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], distances: Int[Array, "B T T"]) -> Float[Array, "B T D"]:
        config = self.config
        shape = (*x.shape[:2], config.encoder_attention_heads, -1)

        def project(name: str) -> Array:
            return dense(config, config.d_model, name, use_bias=name != "k_proj")(x).reshape(shape)

        q, k, v = (project(name) for name in ("q_proj", "k_proj", "v_proj"))
        y = decoder.attend(q, [(k, v, distances)], scale=q.shape[-1] ** -0.5)
        return dense(config, config.d_model, "out_proj")(y.reshape(x.shape))


class Layer(nn.Module):
    """x ← x + attention(norm(x)), then x ← x + fc2(gelu(fc1(norm(x)))), with the exact gelu."""

    config: WhisperConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], distances: Int[Array, "B T T"], _: Any):
        config = self.config
        normed = layer_norm(config, "self_attn_layer_norm")(x)
        x = x + SelfAttention(config, name="self_attn")(normed, distances)
        hidden = dense(config, config.encoder_ffn_dim, "fc1")(layer_norm(config, "final_layer_norm")(x))
        return x + dense(config, config.d_model, "fc2")(jax.nn.gelu(hidden, approximate=False)), None


class Encoder(nn.Module):
    """The encoder: log-mel frames to features."""

    config: WhisperConfig

    def setup(self):
        config = self.config
        dtypes = dict(dtype=config.dtype, param_dtype=config.param_dtype)
        self.conv1 = nn.Conv(config.d_model, kernel_size=(3,), strides=(1,), padding=1, **dtypes)
        self.conv2 = nn.Conv(config.d_model, kernel_size=(3,), strides=(2,), padding=1, **dtypes)
        self.embed_positions = nn.Embed(config.max_source_positions, config.d_model, **dtypes)
        self.layers = decoder.layer_stack(Layer, config, config.encoder_layers, scan=config.scan, remat=False)
        self.layer_norm = layer_norm(config)

    def __call__(self, mel: Float[Array, "B M T"], frames: Int[Array, " B"]) -> Float[Array, "B N D"]:
        """Computes features of clips; those after a row's `num_features(frames)` are padding.

        Args:
          mel: log-mel frames; T is the whole window, or less if all clips end early enough (see `check_clips`, which
            cannot check traced frame counts).
          frames: number of frames of each clip.
        Returns:
          The features.
        Raises:
          ValueError: if the number of mel bins is wrong, there are more frames than positions, or the window cuts off a
            clip.
        """
        self._check(mel, frames)
        x = mel.swapaxes(1, 2).astype(self.config.dtype)
        for conv in (self.conv1, self.conv2):
            x = jax.nn.gelu(conv(x), approximate=False)
        B, T, D = x.shape
        x = x + self.embed_positions(jnp.arange(T))[None]
        real = jnp.arange(T)[None] < (frames[:, None] + 1) // 2
        distances = jnp.broadcast_to(jnp.where(real, 0, -1)[:, None], (B, T, T))
        x, _ = decoder.run_layers(self.layers, x, distances, (None,) * self.config.encoder_layers, ())
        return self.layer_norm(x[:, : T // 2 * 2].reshape(B, T // 2, 2, D).mean(axis=2))

    def _check(self, mel, frames):
        bins = self.config.num_mel_bins
        if mel.ndim != 3 or mel.shape[1] != bins or frames.shape != mel.shape[:1]:
            raise ValueError(
                f"clips must be mel [B, {bins}, T] with frames [B], since num_mel_bins={bins}, got {mel.shape} with "
                f"{frames.shape}"
            )
        if not jnp.issubdtype(mel.dtype, jnp.floating):
            raise ValueError(f"mel must be floats, as the processor returns them, got {mel.dtype}")
        known = not isinstance(frames, jax.core.Tracer)
        check_clips(frames if known else np.zeros(0), mel.shape[2], self.config.window)
