"""A small model that sees, in LLaVA's shape: EfficientNet-Lite, a projector, and then a Llama such as SmolLM2-135M.

    module, params, processor = from_pretrained(folder)                       # see `assembly` for making such a folder
    inputs = processor(["<image>A photo of"], [picture])                      # NumPy: tokens, mask, pixel_values
    features = module.apply({"params": params}, inputs["pixel_values"], method="encode")        # once, whatever K
    logits = module.apply({"params": params}, inputs["tokens"], inputs["mask"], features)

The projector averages the tower's grid over g x g cells and turns each cell x into m visual tokens by

    linear(x) + linear_2(gelu(linear_1(x))).

The linear part can start from a regression. With `spelled_classes`, the tokens of a cell also spell what the tower's
classifier takes it for, in the language model's own embeddings: + names[softmax(classes(x))], where a row of `names`
has the embeddings of the m tokens of a class's name. So the model can name what no caption of its training named. The
module tree:

    params
    vision_tower/...                                    see `efficientnet_lite`; without its classifier
    multi_modal_projector/linear/kernel    [F, m D]
    multi_modal_projector/linear_1/kernel  [F, hidden]
    multi_modal_projector/linear_2/kernel  [hidden, m D]
    multi_modal_projector/classes/kernel   [F, C]       with spelled_classes; and its bias
    multi_modal_projector/names/kernel     [C, m D]     with spelled_classes
    language_model/model/...                            see `llama`
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mcl_jax import options
from mcl_jax.models.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from mcl_jax.models.hf_config import check_sizes
from mcl_jax.models.layers import dense
from mcl_jax.models.llama import Llama, LlamaConfig
from mcl_jax.models.multimodal import Multimodal

MODEL_TYPE = "efficient_llava"
DTYPES = ("dtype", "param_dtype")
SIZES = ("cells", "tokens_per_cell", "projector_size")


@dataclasses.dataclass(frozen=True)
class EfficientLlavaConfig:
    """Configs of the language model and of the tower, and the sizes of the projector.

    Args:
      text_config: config of the language model.
      vision_config: config of the tower.
      image_token_index: id of the placeholder token, which features replace.
      cells: g; the grid of features is averaged over g x g cells, and 1 is the mean of the picture.
      tokens_per_cell: m, visual tokens of each cell; a picture takes g² m.
      projector_size: width of the hidden layer of the projector.
      spelled_classes: C, number of classes whose names the visual tokens spell; 0 leaves this part out.
    Raises:
      ValueError: if a size is not positive, spelled_classes is negative, the grid has fewer rows than cells, or the
        placeholder token is outside the vocabulary.
    """

    text_config: LlamaConfig
    vision_config: EfficientNetLiteConfig
    image_token_index: int
    cells: int = 1
    tokens_per_cell: int = 4
    projector_size: int = 512
    spelled_classes: int = 0

    def __post_init__(self):
        check_sizes(self, SIZES)
        options.check_integers(0, image_token_index=self.image_token_index, spelled_classes=self.spelled_classes)
        if self.cells > self.vision_config.grid_size:
            raise ValueError(
                f"cells must be at most {self.vision_config.grid_size}, the grid's size, got {self.cells}."
            )
        if self.image_token_index >= self.text_config.vocab_size:
            raise ValueError(
                f"image_token_index must be below vocab_size={self.text_config.vocab_size}, got "
                f"{self.image_token_index}."
            )

    @property
    def num_features(self) -> int:
        """N, number of visual tokens of a picture."""
        return self.cells**2 * self.tokens_per_cell

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any], **overrides: Any) -> "EfficientLlavaConfig":
        """Reads the dict of a `config.json` that `to_hf` made.

        Args:
          hf_config: the dict.
          **overrides: fields of the language model's config; dtypes also apply to the tower.
        Raises:
          ValueError: if an entry is missing, or the model cannot compute what the dict describes.
        """
        hf_config = options.given(hf_config)
        needed = ("text_config", "vision_config", "image_token_index")
        if missing := [name for name in needed if name not in hf_config]:
            raise ValueError(f"an {MODEL_TYPE} config.json must have {missing}, got only {sorted(hf_config)}.")
        of_tower = {name: value for name, value in overrides.items() if name in DTYPES}
        return cls(
            LlamaConfig.from_text_config(hf_config["text_config"], **overrides),
            EfficientNetLiteConfig.from_hf(hf_config["vision_config"], **of_tower),
            hf_config["image_token_index"],
            **{name: hf_config[name] for name in (*SIZES, "spelled_classes") if name in hf_config},
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns the dict of the `config.json` of this model."""
        return {
            "model_type": MODEL_TYPE,
            "architectures": ["EfficientLlava"],
            "text_config": self.text_config.to_hf(),
            "vision_config": self.vision_config.to_hf(),
            "image_token_index": self.image_token_index,
        } | {name: getattr(self, name) for name in (*SIZES, "spelled_classes")}


class Projector(nn.Module):
    """Turns the grid of features into visual tokens of the language model's width."""

    config: EfficientLlavaConfig

    @nn.compact
    def __call__(self, grid: Float[Array, "B h w F"]) -> Float[Array, "B N D"]:
        config, text = self.config, self.config.text_config
        x = averaged(grid.astype(text.dtype), config.cells)
        width = config.tokens_per_cell * text.hidden_size
        wide = jax.nn.gelu(dense(text, config.projector_size, "linear_1")(x))
        tokens = dense(text, width, "linear", use_bias=False)(x) + dense(text, width, "linear_2")(wide)
        if config.spelled_classes:
            logits = dense(text, config.spelled_classes, "classes")(x)
            shares = jax.nn.softmax(logits.astype(jnp.float32)).astype(text.dtype)
            tokens += dense(text, width, "names", use_bias=False)(shares)
        return tokens.reshape(len(grid), config.num_features, text.hidden_size)


def averaged(grid: Float[Array, "B h w F"], cells: int) -> Float[Array, "B cells*cells F"]:
    """Averages a grid over g x g cells, row by row; neighbouring cells share a row where g does not divide it."""

    def along(x: Array, axis: int) -> Array:
        size = x.shape[axis]
        spans = [(i * size // cells, -(-(i + 1) * size // cells)) for i in range(cells)]
        return jnp.stack([jax.lax.slice_in_dim(x, *span, axis=axis).mean(axis) for span in spans], axis)

    x = along(along(grid, 1), 2)
    return x.reshape(len(grid), cells**2, grid.shape[-1])


class EfficientLlava(Multimodal):
    """A language model with pictures as input. `encode` runs outside the adapters."""

    config: EfficientLlavaConfig

    def setup(self):
        self.vision_tower = EfficientNetLite(self.config.vision_config)
        self.multi_modal_projector = Projector(self.config)
        self.language_model = Llama(self.config.text_config)

    @property
    def placeholder(self) -> int:
        """Id of the token that features replace."""
        return self.config.image_token_index

    def encode(self, pixel_values: Float[Array, "B S S C"]) -> Float[Array, "B N D"]:
        """Computes the visual tokens of one picture per row.

        Args:
          pixel_values: pictures, normalised by (x − 127) / 128.
        Returns:
          Features, one per placeholder token.
        Raises:
          ValueError: if the pictures have another size than the config says.
        """
        return self.project(self.see(pixel_values))

    def see(self, pixel_values: Float[Array, "B S S C"]) -> Float[Array, "B h w F"]:
        """Computes the tower's grid of features, which training of the projector can reuse. Raises as `encode` does."""
        return self.vision_tower.grid(pixel_values)

    def project(self, grid: Float[Array, "B h w F"]) -> Float[Array, "B N D"]:
        """Computes the visual tokens from the tower's grid."""
        return self.multi_modal_projector(grid)

    def encode_empty(self) -> None:
        """Calls `encode` on one grey picture."""
        vision = self.config.vision_config
        self.encode(jnp.zeros((1, vision.image_size, vision.image_size, vision.num_channels), vision.dtype))
