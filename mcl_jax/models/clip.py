"""CLIP's vision tower (Radford et al., arXiv 2103.00020): images to hidden states of their patches, at any layer.

It has only the parts that image models need: no pooling and no text tower. The module tree has Hugging Face's names:

    params, below vision_model                             Hugging Face
    embeddings/class_embedding               [D]           embeddings.class_embedding
    embeddings/patch_embedding/kernel        [p, p, C, D]  embeddings.patch_embedding.weight, [D, C, p, p]
    embeddings/position_embedding/embedding  [1 + n, D]    embeddings.position_embedding.weight
    pre_layrnorm/{scale,bias}                [D]           pre_layrnorm.{weight,bias} (their spelling)
    encoder/layers_0/self_attn/q_proj/...                  encoder.layers.0.self_attn.q_proj...
    encoder/layers_0/mlp/fc1/kernel          [D, F]        encoder.layers.0.mlp.fc1.weight, transposed
    post_layernorm/{scale,bias}              [D]           post_layernorm.{weight,bias}

Source: Hugging Face transformers 5.23, `models/clip/modeling_clip.py`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mcl_jax import options
from mcl_jax.models import decoder
from mcl_jax.models.hf_config import check_divides, check_sizes
from mcl_jax.models.layers import dense, layer_norm

ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
)


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """Sizes and numerics, under Hugging Face's names and with its defaults (ViT-B/32).

    Args:
      hidden_size: D.
      intermediate_size: F, width of the feed-forward layers.
      num_hidden_layers: L.
      num_attention_heads: H; must divide D.
      num_channels: C, channels of an image.
      image_size: height and width of an image, in pixels.
      patch_size: p, height and width of a patch, in pixels.
      hidden_act: one of `ACTIVATIONS`.
      layer_norm_eps: added to the variance in every layer norm.
      initializer_range: standard deviation of randomly initialised weights.
      dtype: dtype of the computation; attention scores are always float32.
      param_dtype: dtype of the parameters.
    Raises:
      ValueError: if a size is not a positive integer, two sizes do not fit together, or the activation is unknown.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    model_types: ClassVar[Mapping[str, Mapping[str, Any]]] = {"clip_vision_model": {}}  # with defaults of their own

    def __post_init__(self):
        check_sizes(self, SIZES)
        check_divides(self, "num_attention_heads", "hidden_size")
        if self.patch_size > self.image_size:
            raise ValueError(f"patch_size must be at most image_size={self.image_size}, got {self.patch_size}.")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act must be one of {sorted(ACTIVATIONS)}, got {self.hidden_act!r}.")

    @property
    def layer_norm_epsilon(self) -> float:
        """`layer_norm_eps`, under the name that the layers use."""
        return self.layer_norm_eps

    @property
    def num_patches(self) -> int:
        """n, the number of patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any], **overrides: Any) -> "CLIPVisionConfig":
        """Reads the dict of a `vision_config`; missing entries have their defaults, as in Hugging Face.

        Raises:
          ValueError: if the tower is of another kind, or a value is not supported.
        """
        hf_config, kinds = options.given(hf_config), list(cls.model_types)
        if (kind := hf_config.get("model_type", kinds[0])) not in kinds:
            raise ValueError(f"vision_config: model_type must be {' or '.join(map(repr, kinds))}, got {kind!r}.")
        given = {name: hf_config[name] for name in cls._hf_names() if name in hf_config}
        return cls(**dict(cls.model_types[kind]) | given | overrides)

    def to_hf(self) -> dict[str, Any]:
        """Returns the `vision_config` of a Hugging Face `config.json`."""
        return {"model_type": next(iter(self.model_types))} | {name: getattr(self, name) for name in self._hf_names()}

    @classmethod
    def _hf_names(cls) -> list[str]:
        return [field.name for field in dataclasses.fields(cls) if field.name not in ("dtype", "param_dtype")]


def embedded_patches(
    config: CLIPVisionConfig, pixels: Float[Array, "N S S C"], *, use_bias: bool
) -> Float[Array, "N n D"]:
    """Embeds the patches of images row by row, by a layer `patch_embedding` of the module that calls this."""
    size = (config.patch_size, config.patch_size)
    to_patches = nn.Conv(
        config.hidden_size,
        size,
        strides=size,
        padding="VALID",
        use_bias=use_bias,
        kernel_init=nn.initializers.normal(config.initializer_range),
        name="patch_embedding",
        dtype=config.dtype,
        param_dtype=config.param_dtype,
    )
    return to_patches(pixels.astype(config.dtype)).reshape(len(pixels), config.num_patches, config.hidden_size)


class Embeddings(nn.Module):
    """Embeds a class token and the patches of an image, and adds positions."""

    config: CLIPVisionConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "N S S C"]) -> Float[Array, "N 1+n D"]:
        config, init = self.config, nn.initializers.normal(self.config.initializer_range)
        dtypes = dict(dtype=config.dtype, param_dtype=config.param_dtype)
        patches = embedded_patches(config, pixels, use_bias=False)
        token = self.param("class_embedding", init, (config.hidden_size,), config.param_dtype).astype(config.dtype)
        tokens = jnp.broadcast_to(token[None, None], (len(pixels), 1, config.hidden_size))
        positions = nn.Embed(
            1 + config.num_patches, config.hidden_size, embedding_init=init, name="position_embedding", **dtypes
        )
        return jnp.concatenate([tokens, patches], axis=1) + positions(jnp.arange(1 + config.num_patches))[None]


class SelfAttention(nn.Module):
    """Computes softmax(Q Kᵀ / √d) V; every patch sees every other patch."""

    config: CLIPVisionConfig

    @nn.compact
    def __call__(self, x: Float[Array, "N T D"]) -> Float[Array, "N T D"]:
        N, T, D = x.shape
        H = self.config.num_attention_heads
        q, k, v = (dense(self.config, D, f"{name}_proj")(x).reshape(N, T, H, D // H) for name in "qkv")
        y = decoder.attend(q, (k, v, jnp.zeros((N, T, T), jnp.int32)), scale=(D // H) ** -0.5)
        return dense(self.config, D, "out_proj")(y.reshape(N, T, D))


class MLP(nn.Module):
    """Computes fc2(act(fc1(x)))."""

    config: CLIPVisionConfig

    @nn.compact
    def __call__(self, x: Float[Array, "N T D"]) -> Float[Array, "N T D"]:
        x = ACTIVATIONS[self.config.hidden_act](dense(self.config, self.config.intermediate_size, "fc1")(x))
        return dense(self.config, self.config.hidden_size, "fc2")(x)


class Layer(nn.Module):
    """x ← x + attention(norm(x)), then x ← x + mlp(norm(x))."""

    config: CLIPVisionConfig

    @nn.compact
    def __call__(self, x: Float[Array, "N T D"]) -> Float[Array, "N T D"]:
        x = x + SelfAttention(self.config, name="self_attn")(layer_norm(self.config, "layer_norm1")(x))
        return x + MLP(self.config, name="mlp")(layer_norm(self.config, "layer_norm2")(x))


class Encoder(nn.Module):
    """The layers, as a list instead of a scan, so that layers above the last one needed never run."""

    config: CLIPVisionConfig

    def setup(self):
        self.layers = [Layer(self.config) for _ in range(self.config.num_hidden_layers)]

    def __call__(self, x: Float[Array, "N T D"], last: int) -> list[Float[Array, "N T D"]]:
        """Returns the input of the first layer, and the output of each of the first `last` layers."""
        states = [x]
        for layer in self.layers if self.is_initializing() else self.layers[:last]:
            states.append(layer(states[-1]))
        return states


def check_pixels(config: CLIPVisionConfig, pixels: Float[Array, "N S S C"]) -> None:
    """Raises a ValueError if images have another size than the tower's, or are not normalised."""
    shape = (config.image_size, config.image_size, config.num_channels)
    if pixels.ndim != 4 or pixels.shape[1:] != shape:
        raise ValueError(f"the vision tower needs images [N, {', '.join(map(str, shape))}], got {pixels.shape}")
    if not jnp.issubdtype(pixels.dtype, jnp.floating):
        raise ValueError(
            f"the vision tower needs normalised float pixels, as the processor returns them, got {pixels.dtype}"
        )


class VisionTransformer(nn.Module):
    """Patches, L layers, and a last norm, which is in the checkpoints although no hidden state passes through it."""

    config: CLIPVisionConfig

    def setup(self):
        self.embeddings = Embeddings(self.config)
        self.pre_layrnorm = layer_norm(self.config)
        self.encoder = Encoder(self.config)
        self.post_layernorm = layer_norm(self.config)

    def __call__(self, pixels: Float[Array, "N S S C"], layers: Sequence[int]) -> Float[Array, "N 1+n D*"]:
        config = self.config
        check_pixels(config, pixels)
        chosen = [range(config.num_hidden_layers + 1)[layer] for layer in layers]
        states = self.encoder(self.pre_layrnorm(self.embeddings(pixels)), max(chosen))
        if self.is_initializing():
            self.post_layernorm(states[-1])
        return jnp.concatenate([states[layer] for layer in chosen], axis=-1)


class VisionTower(nn.Module):
    """Wraps a CLIP vision model under its name in checkpoints, `vision_model`."""

    config: CLIPVisionConfig

    def setup(self):
        self.vision_model = VisionTransformer(self.config)

    def __call__(self, pixels: Float[Array, "N S S C"], layers: Sequence[int]) -> Float[Array, "N 1+n D*"]:
        """Computes hidden states of the class token and the n patches; those of several layers are concatenated.

        Args:
          pixels: normalised images.
          layers: 0 for the input of the first layer, i for the output of layer i; negative numbers count from the end.
        Returns:
          The hidden states.
        Raises:
          ValueError: if the images have another size.
        """
        return self.vision_model(pixels, layers)
