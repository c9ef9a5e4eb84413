"""SigLIP's vision tower (Zhai et al., arXiv 2303.15343): images to the states of their patches after all layers.

Its layers are those of `clip`. There is no class token and no norm before them, the patches have a bias, and the last
norm is applied. `smolvlm` and `paligemma` see with it. The module tree has Hugging Face's names:

    params                                                 Hugging Face
    embeddings/patch_embedding/kernel        [p, p, C, D]  embeddings.patch_embedding.weight, [D, C, p, p]; and its bias
    embeddings/position_embedding/embedding  [n, D]        embeddings.position_embedding.weight
    encoder/layers_0/...                                   encoder.layers.0...
    post_layernorm/{scale,bias}              [D]           post_layernorm.{weight,bias}

Source: Hugging Face transformers 5.24, `models/siglip/modeling_siglip.py` and `models/idefics3/modeling_idefics3.py`.
For Idefics3 and SmolVLM, transformers computes the position of a patch by floating-point division, which gives some
patches the position of a neighbour where a row has 19, 25 or more odd numbers of them. In the published sizes (26, 27
and 32) every patch has its own position, as here in all sizes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mcl_jax.models.clip import CLIPVisionConfig, Encoder, check_pixels, embedded_patches
from mcl_jax.models.layers import layer_norm

OF_IDEFICS3 = dict(hidden_size=1152, num_attention_heads=16, patch_size=32)


@dataclasses.dataclass(frozen=True)
class SiglipVisionConfig(CLIPVisionConfig):
    """Sizes and numerics: those of `CLIPVisionConfig`, with SigLIP's defaults (base, patches of 16 pixels)."""

    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    model_types: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "siglip_vision_model": {},
        "idefics3_vision": OF_IDEFICS3,
        "idefics3": OF_IDEFICS3,  # in files of before transformers had a name for the tower
        "smolvlm_vision": OF_IDEFICS3,
    }


class Embeddings(nn.Module):
    """Embeds the patches of an image, and adds positions."""

    config: SiglipVisionConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "N S S C"]) -> Float[Array, "N n D"]:
        config = self.config
        patches = embedded_patches(config, pixels, use_bias=True)
        init = nn.initializers.normal(config.initializer_range)
        dtypes = dict(dtype=config.dtype, param_dtype=config.param_dtype)
        positions = nn.Embed(
            config.num_patches, config.hidden_size, embedding_init=init, name="position_embedding", **dtypes
        )
        return patches + positions(jnp.arange(config.num_patches))[None]


class VisionTransformer(nn.Module):
    """Patches, L layers, and a last norm."""

    config: SiglipVisionConfig

    def setup(self):
        self.embeddings = Embeddings(self.config)
        self.encoder = Encoder(self.config)
        self.post_layernorm = layer_norm(self.config)

    def __call__(self, pixels: Float[Array, "N S S C"]) -> Float[Array, "N n D"]:
        """Computes the states of the n patches, row by row.

        Args:
          pixels: normalised images.
        Raises:
          ValueError: if the images have another size, or are not floats.
        """
        check_pixels(self.config, pixels)
        states = self.encoder(self.embeddings(pixels), self.config.num_hidden_layers)
        return self.post_layernorm(states[-1])


class VisionTower(nn.Module):
    """Wraps a SigLIP vision model under its name in checkpoints, `vision_model`."""

    config: SiglipVisionConfig

    def setup(self):
        self.vision_model = VisionTransformer(self.config)

    def __call__(self, pixels: Float[Array, "N S S C"]) -> Float[Array, "N n D"]:
        """Computes the states of the n patches, as `VisionTransformer` does."""
        return self.vision_model(pixels)
