"""SmolVLM (Marafioti et al., arXiv 2504.05299), an Idefics3: SigLIP's tower, a connector, and then a Llama as SmolLM2.

    inputs = processor(prompts, pictures)                       # NumPy: tokens, mask, pixel_values, tiles
    features = module.apply({"params": params}, inputs["pixel_values"], inputs["tiles"], method="encode")
    logits = module.apply({"params": params}, inputs["tokens"], inputs["mask"], features)

The processor cuts a picture into tiles; the whole picture, squeezed into one tile, comes last. The connector joins each
square of s x s patches of a tile to one token: their states side by side, times a matrix. The module tree:

    params                                     Hugging Face
    vision_model/...                           model.vision_model...         see `siglip`
    connector/modality_projection/proj/kernel  model.connector.modality_projection.proj.weight, transposed
    language_model/model/...                   model.text_model...           see `llama`
    language_model/lm_head                     lm_head

Source: Hugging Face transformers 5.24, `models/smolvlm/modeling_smolvlm.py` and `models/idefics3`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mcl_jax import options
from mcl_jax.models.layers import dense
from mcl_jax.models.llama import Llama, LlamaConfig
from mcl_jax.models.multimodal import Multimodal
from mcl_jax.models.siglip import SiglipVisionConfig, VisionTransformer

ARCHITECTURES = {"smolvlm": "SmolVLMForConditionalGeneration", "idefics3": "Idefics3ForConditionalGeneration"}
DTYPES = ("dtype", "param_dtype")


@dataclasses.dataclass(frozen=True)
class SmolVLMConfig:
    """Sizes, under Hugging Face's names and with its defaults.

    Args:
      text_config: config of the language model.
      vision_config: config of the tower.
      image_token_id: id of the placeholder token.
      scale_factor: s; the connector joins s x s patches to one token.
      model_type: "smolvlm" or "idefics3", which compute the same.
    Raises:
      ValueError: if two fields do not fit together, or the model_type is another one.
    """

    text_config: LlamaConfig
    vision_config: SiglipVisionConfig
    image_token_id: int = 128257
    scale_factor: int = 2
    model_type: str = "smolvlm"

    def __post_init__(self):
        options.settle(self)
        options.check_integers(0, image_token_id=self.image_token_id)
        options.check_integers(1, scale_factor=self.scale_factor)
        if self.model_type not in ARCHITECTURES:
            raise ValueError(f"model_type must be one of {tuple(ARCHITECTURES)}, got {self.model_type!r}.")
        if self.image_token_id >= self.text_config.vocab_size:
            raise ValueError(
                f"image_token_id must be below vocab_size={self.text_config.vocab_size}, got {self.image_token_id}."
            )
        vision = self.vision_config
        if (side := vision.image_size // vision.patch_size) % self.scale_factor:
            raise ValueError(
                f"scale_factor must divide the {side} patches in a row of a tile, got {self.scale_factor}."
            )

    @property
    def tile_tokens(self) -> int:
        """Number of placeholder tokens of a tile."""
        return self.vision_config.num_patches // self.scale_factor**2

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any], **overrides: Any) -> "SmolVLMConfig":
        """Reads the dict of a Hugging Face `config.json`.

        Args:
          hf_config: the dict.
          **overrides: fields of the language model's config; dtypes also apply to the tower.
        Raises:
          ValueError: if a part is missing, or the model cannot compute what the dict describes.
        """
        hf_config = options.given(hf_config)
        if missing := [name for name in ("text_config", "vision_config") if not hf_config.get(name)]:
            raise ValueError(f"a SmolVLM's config.json must have {missing}, got only {sorted(hf_config)}.")
        tied = bool(hf_config.get("tie_word_embeddings", False))
        of_tower = {name: value for name, value in overrides.items() if name in DTYPES}
        fields = {
            name: hf_config[name] for name in ("image_token_id", "scale_factor", "model_type") if name in hf_config
        }
        vision = {"model_type": "smolvlm_vision"} | options.given(hf_config["vision_config"])
        return cls(
            LlamaConfig.from_text_config(hf_config["text_config"], tie_word_embeddings=tied, **overrides),
            SiglipVisionConfig.from_hf(vision, **of_tower),
            **fields,
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns the dict of a Hugging Face `config.json` of this model."""
        return {
            "model_type": self.model_type,
            "architectures": [ARCHITECTURES[self.model_type]],
            "text_config": self.text_config.to_hf(),
            "vision_config": self.vision_config.to_hf() | {"model_type": f"{self.model_type}_vision"},
            "image_token_id": self.image_token_id,
            "scale_factor": self.scale_factor,
            "tie_word_embeddings": self.text_config.tie_word_embeddings,
        }


class Projection(nn.Module):
    """A linear layer to the width of the language model."""

    config: SmolVLMConfig

    @nn.compact
    def __call__(self, x: Float[Array, "N m F"]) -> Float[Array, "N m D"]:
        text = self.config.text_config
        return dense(text, text.hidden_size, "proj", use_bias=False)(x)


class Connector(nn.Module):
    """Joins s x s patches to one token, of the width of the language model."""

    config: SmolVLMConfig

    @nn.compact
    def __call__(self, x: Float[Array, "N n Dv"]) -> Float[Array, "N m D"]:
        return Projection(self.config, name="modality_projection")(joined(x, self.config.scale_factor))


def joined(x: Float[Array, "N n Dv"], s: int) -> Float[Array, "N m F"]:
    """Puts the states of s x s neighbouring patches side by side, row by row; F = s² Dv and m = n / s²."""
    N, n, D = x.shape
    side = round(n**0.5) // s
    squares = x.reshape(N, side, s, side, s, D).transpose(0, 1, 3, 2, 4, 5)
    return squares.reshape(N, side**2, s * s * D)


class SmolVLM(Multimodal):
    """A language model with images as input."""

    config: SmolVLMConfig

    def setup(self):
        self.vision_model = VisionTransformer(self.config.vision_config)
        self.connector = Connector(self.config)
        self.language_model = Llama(self.config.text_config)

    @property
    def placeholder(self) -> int:
        """Id of the token that features replace."""
        return self.config.image_token_id

    def encode(self, pixel_values: Float[Array, "B P S S C"], tiles: Int[Array, " B"]) -> Float[Array, "B N D"]:
        """Computes features of images, tile by tile; zeros behind the last tile of an image.

        Args:
          pixel_values: normalised tiles of each image; tiles that pad may have any value.
          tiles: number of tiles of each image.
        Returns:
          Features, one per placeholder token.
        Raises:
          ValueError: if the tiles have another size, or the batch sizes differ.
        """
        if pixel_values.ndim != 5 or tiles.shape != pixel_values.shape[:1]:
            raise ValueError(
                f"encode needs pixel_values [B, P, S, S, C] and tiles [B], got {pixel_values.shape}, {tiles.shape}"
            )
        B, P = pixel_values.shape[:2]
        states = self.vision_model(pixel_values.reshape(B * P, *pixel_values.shape[2:]))
        features = self.connector(states).reshape(B, P * self.config.tile_tokens, -1)
        tile = jnp.arange(features.shape[1]) // self.config.tile_tokens
        return jnp.where((tile[None] < tiles[:, None])[..., None], features, jnp.zeros((), features.dtype))

    def encode_empty(self) -> None:
        """Calls `encode` on one black tile."""
        vision = self.config.vision_config
        tile = jnp.zeros((1, 1, vision.image_size, vision.image_size, vision.num_channels), vision.dtype)
        self.encode(tile, jnp.ones(1, jnp.int32))
