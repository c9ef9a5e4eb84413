"""Prepares pictures for a tower, and makes a small LLaVA-NeXT."""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from transformers import LlavaNextProcessor as HuggingFaces
from transformers import PreTrainedTokenizerFast
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from experiments.common.perception import Inputs
from mcl_jax import augmentation, data
from mcl_jax.models.clip import CLIPVisionConfig
from mcl_jax.models.llama import LlamaConfig
from mcl_jax.models.llava_next import LlavaNext, LlavaNextConfig
from mcl_jax.models.llava_next_processor import LlavaNextProcessor

# Side of a tile and of a patch in pixels. The whole picture gives 16 tokens, and one tile with newlines gives 20.
SIZE, PATCH = 64, 16


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures; see `captioning.modality.Modality`.

    Attributes:
      padded: pad pictures to squares and show them as one tile, instead of several tiles.
    """

    padded: bool = dataclasses.field(default=False, repr=False)  # no small base is trained on padded ones
    media = "pictures"
    placeholder = "<image>"
    question = "Write a caption for the image."

    def read(self, record: data.Record) -> np.ndarray:
        """Returns the picture, uint8 [H, W, 3]."""
        return record.media.read()

    def prepared(self, processor: LlavaNextProcessor) -> LlavaNextProcessor:
        """Returns the processor, or the one that pads. Raises a ValueError if it cannot pad."""
        if not self.padded:
            return processor
        if not isinstance(processor, LlavaNextProcessor):
            raise ValueError(f"--picture padded needs a LLaVA-1.6 as --base, got one with a {type(processor).__name__}")
        return processor.padded_to_squares()

    def inputs(self, processor: LlavaNextProcessor, media: Sequence[np.ndarray | None]) -> Inputs:
        """Returns pixel_values and index."""
        return processor.inputs(media)

    def limits(self, processor: LlavaNextProcessor) -> dict[str, float]:
        """Returns whether pictures are padded, if they are; pictures of any size are taken."""
        return {"padded": True} if self.padded else {}

    def augment(self, processor: LlavaNextProcessor, key: Key[Array, ""], media: np.ndarray) -> Inputs:
        """Mirrors half of the pictures, crops to between a half and all of the area, and resizes to the old size."""
        changed = np.asarray(_changed(key, media[None].astype(np.float32)))[0]
        return processor.inputs([changed.round().clip(0, 255).astype(np.uint8)])

    def vary(self, key: Key[Array, ""], inputs: dict[str, Array]) -> dict[str, Array]:
        """Augments each tile like `augment`, in the same way for all tiles of a picture."""
        pixels = inputs["pixel_values"]  # [B, P, S, S, C]; below, tiles are treated as channels
        B, P, S, _, C = pixels.shape
        side_by_side = jnp.moveaxis(pixels, 1, 3).reshape(B, S, S, P * C)
        changed = _changed(key, side_by_side).reshape(B, S, S, P, C)
        return inputs | {"pixel_values": jnp.moveaxis(changed, 3, 1)}

    def small(self, tokenizer: PreTrainedTokenizerFast) -> tuple[nn.Module, LlavaNextProcessor]:
        """Makes 3 million parameters: a tower of 4 layers for 64 × 64 pixels, and a Llama of 4 layers."""
        config = LlavaNextConfig(
            text_config=LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=192,
                intermediate_size=512,
                num_hidden_layers=4,
                num_attention_heads=6,
            ),
            vision_config=CLIPVisionConfig(
                hidden_size=128,
                intermediate_size=512,
                num_hidden_layers=4,
                num_attention_heads=4,
                image_size=SIZE,
                patch_size=PATCH,
            ),
            image_token_index=tokenizer.convert_tokens_to_ids(self.placeholder),
            image_grid_pinpoints=((SIZE, SIZE),),
            vision_feature_layer=(-1,),
        )
        square = {"height": SIZE, "width": SIZE}
        pictures = LlavaNextImageProcessorPil(
            size={"shortest_edge": SIZE}, crop_size=square, image_grid_pinpoints=[[SIZE, SIZE]]
        )
        hf = HuggingFaces(
            pictures,
            tokenizer,
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            image_token=self.placeholder,
        )
        return LlavaNext(config), LlavaNextProcessor(config, hf)


@jax.jit
def _changed(key: Key[Array, ""], pictures: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    flip, crop = jax.random.split(key)
    return augmentation.random_resized_crop(crop, augmentation.horizontal_flip(flip, pictures))
