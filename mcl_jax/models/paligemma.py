"""PaliGemma 1 and 2 (Steiner et al., arXiv 2412.03555): SigLIP's tower, a linear layer, and then a Gemma 1 or 2.

    inputs = processor(prompts, pictures)                       # NumPy: tokens, mask, pixel_values
    features = module.apply({"params": params}, inputs["pixel_values"], method="encode")
    logits = module.apply({"params": params}, inputs["tokens"], inputs["mask"], features)

The tokens of the picture and of the prompt see one another, also later ones and beyond the windows of Gemma 2; those of
the answer see what is before them. `takes_prefix` tells the likelihood to say which are which, and a generation extends
the whole prompt first. The module tree:

    params                            Hugging Face (the names of the published files)
    vision_tower/vision_model/...     vision_tower.vision_model...      see `siglip`
    multi_modal_projector/linear      multi_modal_projector.linear
    language_model/model/...          language_model.model...           see `gemma`; its embeddings are the output layer

Source: Hugging Face transformers 5.24, `models/paligemma/modeling_paligemma.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mcl_jax import options
from mcl_jax.models import decoder
from mcl_jax.models.gemma import Gemma
from mcl_jax.models.gemma_config import MEANT_NULL, GemmaConfig
from mcl_jax.models.layers import dense
from mcl_jax.models.multimodal import Multimodal
from mcl_jax.models.siglip import SiglipVisionConfig, VisionTower

DTYPES = ("dtype", "param_dtype")


@dataclasses.dataclass(frozen=True)
class PaliGemmaConfig:
    """Configs of the parts, under Hugging Face's names.

    Args:
      text_config: config of the language model.
      vision_config: config of the tower.
      image_token_index: id of the placeholder token.
    Raises:
      ValueError: if the placeholder token is outside the vocabulary.
    """

    text_config: GemmaConfig
    vision_config: SiglipVisionConfig
    image_token_index: int = 256000

    def __post_init__(self):
        options.settle(self)
        options.check_integers(0, image_token_index=self.image_token_index)
        if self.image_token_index >= self.text_config.vocab_size:
            raise ValueError(
                f"image_token_index must be below vocab_size={self.text_config.vocab_size}, got "
                f"{self.image_token_index}."
            )

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any], **overrides: Any) -> "PaliGemmaConfig":
        """Reads the dict of a Hugging Face `config.json`.

        Args:
          hf_config: the dict.
          **overrides: fields of the language model's config; dtypes also apply to the tower.
        Raises:
          ValueError: if a part is missing, two do not fit together, or the model cannot compute what the dict
            describes.
        """
        hf_config = options.given(hf_config)
        if missing := [name for name in ("text_config", "vision_config") if not hf_config.get(name)]:
            raise ValueError(f"a paligemma config.json must have {missing}, got only {sorted(hf_config)}.")
        hf_config = options.given({"image_token_index": hf_config.get("image_token_id")}) | hf_config
        text = {"model_type": "gemma"} | options.given(hf_config["text_config"], meaning=MEANT_NULL)
        text.pop("use_bidirectional_attention", None)  # the prompt is read in both directions whatever it says
        tied = bool(hf_config.get("tie_word_embeddings", True))
        of_tower = {name: value for name, value in overrides.items() if name in DTYPES}
        text_config = GemmaConfig.from_hf(text, tie_word_embeddings=tied, **overrides)
        if (width := hf_config.get("projection_dim", 2048)) != text_config.hidden_size:
            raise ValueError(f"projection_dim must be hidden_size={text_config.hidden_size} of the text, got {width}.")
        return cls(
            text_config,
            SiglipVisionConfig.from_hf(hf_config["vision_config"], **of_tower),
            **{name: hf_config[name] for name in ("image_token_index",) if name in hf_config},
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns the dict of a Hugging Face `config.json` of this model."""
        return {
            "model_type": "paligemma",
            "architectures": ["PaliGemmaForConditionalGeneration"],
            "text_config": self.text_config.to_hf(),
            "vision_config": self.vision_config.to_hf() | {"vision_use_head": False},
            "image_token_index": self.image_token_index,
            "projection_dim": self.text_config.hidden_size,
            "hidden_size": self.text_config.hidden_size,
            "tie_word_embeddings": self.text_config.tie_word_embeddings,
        }


class Projector(nn.Module):
    """A linear layer from the tower's width to the language model's."""

    config: PaliGemmaConfig

    @nn.compact
    def __call__(self, x: Float[Array, "N n Dv"]) -> Float[Array, "N n D"]:
        text = self.config.text_config
        return dense(text, text.hidden_size, "linear")(x)


class PaliGemma(Multimodal):
    """A language model with an image as input, which reads its prompt in both directions."""

    config: PaliGemmaConfig
    takes_prefix = True

    def setup(self):
        self.vision_tower = VisionTower(self.config.vision_config)
        self.multi_modal_projector = Projector(self.config)
        self.language_model = Gemma(self.config.text_config)

    @property
    def placeholder(self) -> int:
        """Id of the token that features replace."""
        return self.config.image_token_index

    @property
    def logit_cap(self) -> float | None:
        """Soft-cap of the logits, as in `Gemma`."""
        return self.config.text_config.final_logit_softcapping

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"] | None = None,
        features: Float[Array, "B N D"] | None = None,
        prefix: Bool[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Returns next-token logits in float32, see `hidden`."""
        return self.logits(self.hidden(tokens, mask, features, prefix))

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"] | None = None,
        features: Float[Array, "B N D"] | None = None,
        prefix: Bool[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Returns the hidden states after the last norm; feature i of a row replaces its i-th placeholder token.

        Args:
          tokens: token ids.
          mask: False on padding; None means that there is none.
          features: result of `encode`; None if no row has a picture.
          prefix: True on the prompt, whose tokens see one another, False on the answer; None means that there is no
            prompt, and every token sees what is before it.
        Raises:
          ValueError: if `mask` or `prefix` is not boolean or not [B, T].
        """
        if prefix is not None:
            decoder.check_inputs(tokens, prefix, self.vocab_size)
        return self.language_model.hidden_embedded(*self.embedded(tokens, mask, features), mask, prefix)

    def extend(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        positions: Int[Array, "B T"],
        past: tuple[decoder.Segment, ...] = (),
        features: Float[Array, "B N D"] | None = None,
    ) -> tuple[Float[Array, "B T D"], decoder.Segment]:
        """Returns the hidden states of tokens at `positions` that follow the segments `past`, and their own segment.

        Without a past, the tokens are a whole prompt; else they are part of an answer.
        """
        prefix = None if past else mask
        return self.language_model.extend_embedded(self.embed(tokens, features), mask, positions, past, prefix)

    def encode(self, pixel_values: Float[Array, "B S S C"]) -> Float[Array, "B n D"]:
        """Computes features of images: the projected states of their patches.

        Args:
          pixel_values: normalised images.
        Returns:
          Features, one per placeholder token.
        Raises:
          ValueError: if the images have another size, or are not floats.
        """
        return self.multi_modal_projector(self.vision_tower(pixel_values))

    def encode_empty(self) -> None:
        """Calls `encode` on a black image."""
        vision = self.config.vision_config
        self.encode(jnp.zeros((1, vision.image_size, vision.image_size, vision.num_channels), vision.dtype))
