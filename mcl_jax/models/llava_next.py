"""LLaVA-1.6, or LLaVA-NeXT (Liu et al., 2024): CLIP's tower, a projector, and then a Llama, Mistral or Qwen2.

    inputs = processor(prompts, pictures)                       # NumPy: tokens, mask, pixel_values, index
    features = module.apply({"params": params}, inputs["pixel_values"], inputs["index"], method="encode")
    logits = module.apply({"params": params}, inputs["tokens"], inputs["mask"], features)

`encode` is called once per example, outside the hypotheses: it has no adapters, and all K hypotheses share its result,
the embeddings of the placeholder tokens of the prompt (`tiling` explains their order). The module tree:

    params                            Hugging Face (the names of the published files)
    vision_tower/vision_model/...     vision_tower.vision_model...       see `clip`
    multi_modal_projector/linear_1    multi_modal_projector.linear_1
    image_newline              [D]    image_newline
    language_model/model/...          language_model.model...            see `llama`
    language_model/lm_head            language_model.lm_head

Source: Hugging Face transformers 5.23, `models/llava_next/modeling_llava_next.py`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mcl_jax import options
from mcl_jax.models.clip import ACTIVATIONS, CLIPVisionConfig, VisionTower
from mcl_jax.models.layers import dense
from mcl_jax.models.llama import Llama, LlamaConfig
from mcl_jax.models.multimodal import Multimodal
from mcl_jax.models.tiling import NEWLINE, PADDING, Tiling

PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
DTYPES = ("dtype", "param_dtype")


@dataclasses.dataclass(frozen=True)
class LlavaNextConfig:
    """Sizes, under Hugging Face's names and with its defaults.

    Args:
      text_config: config of the language model.
      vision_config: config of the tower.
      image_token_index: id of the placeholder token.
      image_grid_pinpoints: resolutions for tiling images, (height, width) in pixels.
      vision_feature_layer: layers of the tower whose states are concatenated for the projector, see `VisionTower`.
      projector_hidden_act: one of `clip.ACTIVATIONS`.
      multimodal_projector_bias: whether the projector's layers have biases.
    Raises:
      ValueError: if two fields do not fit together, or the activation is unknown.
    """

    text_config: LlamaConfig
    vision_config: CLIPVisionConfig
    image_token_index: int = 32000
    image_grid_pinpoints: tuple[tuple[int, int], ...] = PINPOINTS
    vision_feature_layer: tuple[int, ...] = (-2,)
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = True

    def __post_init__(self):
        options.settle(self)
        options.check_integers(0, image_token_index=self.image_token_index)
        states = self.vision_config.num_hidden_layers + 1
        if not self.vision_feature_layer or any(not -states <= i < states for i in self.vision_feature_layer):
            raise ValueError(
                f"vision_feature_layer must be in [{-states}, {states}) for a tower of {states - 1} layers, got "
                f"{self.vision_feature_layer}."
            )
        if self.projector_hidden_act not in ACTIVATIONS:
            known = sorted(ACTIVATIONS)
            raise ValueError(f"projector_hidden_act must be one of {known}, got {self.projector_hidden_act!r}.")
        if not 0 <= self.image_token_index < self.text_config.vocab_size:
            raise ValueError(
                f"image_token_index must be below vocab_size={self.text_config.vocab_size}, got "
                f"{self.image_token_index}."
            )
        _ = self.tiling  # raises if the resolutions do not fit the tower

    @property
    def tiling(self) -> Tiling:
        """The tiling of images."""
        return Tiling(self.image_grid_pinpoints, self.vision_config.image_size, self.vision_config.patch_size)

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any], **overrides: Any) -> "LlavaNextConfig":
        """Reads the dict of a Hugging Face `config.json`.

        Args:
          hf_config: the dict.
          **overrides: fields of the language model's config; dtypes also apply to the tower.
        Raises:
          ValueError: if a part is missing, or the model cannot compute what the dict describes.
        """
        hf_config = options.given(hf_config)
        if missing := [name for name in ("text_config", "vision_config") if not hf_config.get(name)]:
            raise ValueError(f"a llava_next config.json must have {missing}, got only {sorted(hf_config)}.")
        strategy = hf_config.get("vision_feature_select_strategy", "default")
        if strategy != "default":  # Hugging Face's own packing fails on class tokens among the patches
            raise ValueError(f"vision_feature_select_strategy must be 'default' for a CLIP tower, got {strategy!r}.")
        tied = bool(hf_config.get("tie_word_embeddings", False))
        of_tower = {name: value for name, value in overrides.items() if name in DTYPES}
        hf_config = options.given({"image_token_index": hf_config.get("image_token_id")}) | hf_config  # transformers 5
        fields = {f.name: hf_config[f.name] for f in dataclasses.fields(cls) if f.name in hf_config}
        layers = options.plain(fields.get("vision_feature_layer", (-2,)))
        fields |= {
            "text_config": LlamaConfig.from_text_config(
                hf_config["text_config"], tie_word_embeddings=tied, **overrides
            ),
            "vision_config": CLIPVisionConfig.from_hf(hf_config["vision_config"], **of_tower),
            "vision_feature_layer": (layers,) if isinstance(layers, int) else tuple(layers),
            "image_grid_pinpoints": tuple(map(tuple, fields.get("image_grid_pinpoints", PINPOINTS))),
        }
        return cls(**fields)

    def to_hf(self) -> dict[str, Any]:
        """Returns the dict of a Hugging Face `config.json` of this model."""
        layers = self.vision_feature_layer
        known = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return known | {
            "model_type": "llava_next",
            "architectures": ["LlavaNextForConditionalGeneration"],
            "text_config": self.text_config.to_hf(),
            "vision_config": self.vision_config.to_hf(),
            "vision_feature_layer": layers[0] if len(layers) == 1 else layers,
            "vision_feature_select_strategy": "default",
            "tie_word_embeddings": self.text_config.tie_word_embeddings,
        }


class Projector(nn.Module):
    """Computes linear_2(act(linear_1(x))), from the tower's width to the language model's."""

    config: LlavaNextConfig

    @nn.compact
    def __call__(self, x: Float[Array, "N n Dv"]) -> Float[Array, "N n D"]:
        text, activation = self.config.text_config, ACTIVATIONS[self.config.projector_hidden_act]
        project = functools.partial(dense, text, text.hidden_size, use_bias=self.config.multimodal_projector_bias)
        return project("linear_2")(activation(project("linear_1")(x)))


class LlavaNext(Multimodal):
    """A language model with images as input."""

    config: LlavaNextConfig

    def setup(self):
        text = self.config.text_config
        self.vision_tower = VisionTower(self.config.vision_config)
        self.multi_modal_projector = Projector(self.config)
        newline_init = nn.initializers.normal(text.hidden_size**-0.5)
        self.image_newline = self.param("image_newline", newline_init, (text.hidden_size,), text.param_dtype)
        self.language_model = Llama(text)

    @property
    def placeholder(self) -> int:
        """Id of the token that features replace."""
        return self.config.image_token_index

    def encode(self, pixel_values: Float[Array, "B P S S C"], index: Int[Array, "B N"]) -> Float[Array, "B N D"]:
        """Computes features of images: the projected patches and newlines that `index` selects; zeros at PADDING.

        Args:
          pixel_values: normalised tiles of each image; tile 0 is the whole image, and padding tiles may have any value.
          index: see `Tiling.index`, padded with PADDING.
        Returns:
          Features, one per placeholder token.
        Raises:
          ValueError: if the tiles have another size, or the batch sizes differ.
        """
        if pixel_values.ndim != 5 or len(pixel_values) != len(index):
            raise ValueError(
                f"encode needs pixel_values [B, P, S, S, C] and index [B, N], got {pixel_values.shape}, {index.shape}"
            )
        B, P = pixel_values.shape[:2]
        states = self.vision_tower(
            pixel_values.reshape(B * P, *pixel_values.shape[2:]), self.config.vision_feature_layer
        )
        patches = self.multi_modal_projector(states[:, 1:])  # without the class token
        patches = patches.reshape(B, -1, patches.shape[-1])
        newline = self.image_newline.astype(patches.dtype)[None, None]
        index = index[..., None]
        features = jnp.where(index == NEWLINE, newline, jnp.take_along_axis(patches, jnp.maximum(index, 0), axis=1))
        return jnp.where(index == PADDING, 0.0, features)

    def encode_empty(self) -> None:
        """Calls `encode` on one black tile."""
        vision = self.config.vision_config
        tile = jnp.zeros((1, 1, vision.image_size, vision.image_size, vision.num_channels), vision.dtype)
        self.encode(tile, jnp.zeros((1, 1), jnp.int32))
