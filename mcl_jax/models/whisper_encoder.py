"""Whisper's encoder: log-mel frames, 100 per second, to features, 50 per second, or 25 as Qwen2-Audio uses it.

    mel [B, M, T] → conv1 → conv2, stride 2 → + positions → L layers → norm → [B, N, D],  N = ⌊(T+1)/2⌋
    with the pooling of Qwen2-Audio:                … L layers → mean of pairs → norm,    N = ⌊(T+1)/4⌋

The module tree has the names of Hugging Face's `WhisperEncoder`; if scanned, the layers are one `layers`:

    params                                       Hugging Face, below model.encoder or audio_tower
    conv1/kernel                   [3, M, D]     conv1.weight [D, M, 3], axes reversed
    embed_positions/embedding      [P, D]        embed_positions.weight
    layers/self_attn/q_proj/kernel [L, D, D]     layers.{i}.self_attn.q_proj.weight, transposed; k_proj has no bias
    layers/fc1/kernel              [L, D, F]     layers.{i}.fc1.weight, transposed
    layer_norm/scale               [D]           layer_norm.weight

Source: Hugging Face transformers 5.23, `models/whisper` and `models/qwen2_audio`; Radford et al., arXiv 2212.04356.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
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
class WhisperEncoderConfig:
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
    def from_hf(cls, hf_config: Mapping[str, Any], **overrides: Any) -> "WhisperEncoderConfig":
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


class Attention(nn.Module):
    """Computes softmax(Q Kᵀ / √d) V with heads of width d = D / H; the projection to keys has no bias.

    Args:
      config: has `d_model`, dtypes and `initializer_range`.
      num_heads: H.
    """

    config: Any
    num_heads: int

    def setup(self):
        project = functools.partial(dense, self.config, self.config.d_model)
        self.q_proj, self.v_proj, self.out_proj = project(), project(), project()
        self.k_proj = project(use_bias=False)

    def keys_values(self, x: Float[Array, "B S D"]) -> tuple[Float[Array, "B S H d"], Float[Array, "B S H d"]]:
        """Returns keys and values of the positions of x."""
        return self._heads(self.k_proj(x)), self._heads(self.v_proj(x))

    def __call__(
        self, x: Float[Array, "B T D"], own: Any, past: Sequence[decoder.Past] = (), *, order: decoder.Order = "any"
    ) -> Float[Array, "B T D"]:
        """Attends from x; `own`, `past` and `order` are those of `decoder.attend`."""
        q = self._heads(self.q_proj(x))
        y = decoder.attend(q, own, past, scale=q.shape[-1] ** -0.5, order=order)
        return self.out_proj(y.reshape(x.shape))

    def _heads(self, x: Float[Array, "B T D"]) -> Float[Array, "B T H d"]:
        return x.reshape(*x.shape[:2], self.num_heads, -1)


class Layer(nn.Module):
    """x ← x + attention(norm(x)), then x ← x + fc2(gelu(fc1(norm(x)))), with the exact gelu."""

    config: WhisperEncoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], distances: Int[Array, "B T T"], _: Any):
        attention = Attention(self.config, self.config.encoder_attention_heads, name="self_attn")
        normed = layer_norm(self.config, "self_attn_layer_norm")(x)
        x = x + attention(normed, (*attention.keys_values(normed), distances))
        return feed_forward(self.config, self.config.encoder_ffn_dim, x), None


def feed_forward(config: Any, width: int, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Computes x + fc2(gelu(fc1(norm(x)))), with the exact gelu, in the module whose compact method calls it.

    Args:
      config: has `d_model`, dtypes, `initializer_range` and `layer_norm_epsilon`.
      width: F.
      x: the residual stream.
    """
    hidden = dense(config, width, "fc1")(layer_norm(config, "final_layer_norm")(x))
    return x + dense(config, config.d_model, "fc2")(jax.nn.gelu(hidden, approximate=False))


class Encoder(nn.Module):
    """The encoder of Whisper: log-mel frames to features. It hears silence like any sound, so nothing is padding."""

    config: WhisperEncoderConfig

    def setup(self):
        config = self.config
        dtypes = dict(dtype=config.dtype, param_dtype=config.param_dtype)
        self.conv1 = nn.Conv(config.d_model, kernel_size=(3,), strides=(1,), padding=1, **dtypes)
        self.conv2 = nn.Conv(config.d_model, kernel_size=(3,), strides=(2,), padding=1, **dtypes)
        self.embed_positions = nn.Embed(config.max_source_positions, config.d_model, **dtypes)
        self.layers = decoder.layer_stack(Layer, config, config.encoder_layers, scan=config.scan, remat=False)
        self.layer_norm = layer_norm(config)

    def __call__(self, mel: Float[Array, "B M T"]) -> Float[Array, "B N D"]:
        """Computes the features of clips, N = ⌊(T+1)/2⌋.

        Args:
          mel: log-mel frames of a whole window, or of a shorter one, which the published weights were not trained on.
        Returns:
          The features.
        Raises:
          ValueError: if the number of mel bins is wrong, or there are more frames than positions.
        """
        check_mel(self.config, mel)
        return self.layer_norm(self.states(mel, None))

    def states(self, mel: Float[Array, "B M T"], frames: Int[Array, " B"] | None) -> Float[Array, "B N D"]:
        """Returns the output of the last layer; positions after the frames of a clip, if given, are not attended to."""
        x = mel.swapaxes(1, 2).astype(self.config.dtype)
        for conv in (self.conv1, self.conv2):
            x = jax.nn.gelu(conv(x), approximate=False)
        B, T, _ = x.shape
        x = x + self.embed_positions(jnp.arange(T))[None]
        real = jnp.ones((B, T), bool) if frames is None else jnp.arange(T)[None] < (frames[:, None] + 1) // 2
        distances = jnp.broadcast_to(jnp.where(real, 0, -1)[:, None], (B, T, T))
        return decoder.run_layers(self.layers, x, distances, (None,) * self.config.encoder_layers, ())[0]


class PooledEncoder(Encoder):
    """The encoder of Qwen2-Audio, which pools pairs of positions and knows where a clip ends."""

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
        check_mel(self.config, mel, frames)
        x = self.states(mel, frames)
        B, T, D = x.shape
        return self.layer_norm(x[:, : T // 2 * 2].reshape(B, T // 2, 2, D).mean(axis=2))


def check_mel(config: WhisperEncoderConfig, mel: Float[Array, "B M T"], frames: Int[Array, " B"] | None = None) -> None:
    """Raises a ValueError if the mel frames do not fit the encoder, or a clip does not fit its window."""
    bins, rows = config.num_mel_bins, mel.shape[:1] if frames is None else frames.shape
    if mel.ndim != 3 or mel.shape[1] != bins or rows != mel.shape[:1]:
        needed, given = f"mel [B, {bins}, T]", f"{mel.shape}"
        if frames is not None:
            needed, given = f"{needed} with frames [B]", f"{given} with {frames.shape}"
        raise ValueError(f"clips must be {needed}, since num_mel_bins={bins}, got {given}")
    if not jnp.issubdtype(mel.dtype, jnp.floating):
        raise ValueError(f"mel must be floats, as the processor returns them, got {mel.dtype}")
    known = frames is not None and not isinstance(frames, jax.core.Tracer)
    check_clips(frames if known else np.zeros(0), mel.shape[2], config.window)
