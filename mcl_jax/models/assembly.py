"""Makes a model that sees from two pretrained parts: a language model, and the tower of an EfficientNet-Lite.

    module, params, processor = assemble("SmolLM2-135M-Instruct.Q4_1.gguf", "lite0", key=jax.random.key(0))
    params["multi_modal_projector"] = ...                               # trained, see experiments/image_captioning
    save_pretrained(folder, module, params, processor)
    module, params, processor = from_pretrained(folder)

The projector between the two is random, so the model sees nothing until it is trained.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from mcl_jax.extras import needed_for
from mcl_jax.models import efficientnet_lite_weights as weights
from mcl_jax.models.efficient_llava import EfficientLlava, EfficientLlavaConfig, Projector
from mcl_jax.models.efficient_llava_processor import EfficientLlavaProcessor
from mcl_jax.models.efficientnet_lite import VARIANTS
from mcl_jax.models.families import LLAMA, of_module
from mcl_jax.models.pretrained import from_pretrained
from mcl_jax.models.torch_file import TorchFile

UNUSED = "<empty_output>"  # a special token of SmolLM2 that stands only in its training data from notebooks


def assemble(
    language_model: Path | str,
    tower: str = "lite0",
    *,
    key: Key[Array, ""],
    weight_file: Path | str | None = None,
    image_token: str = "<image>",
    replaced: str = UNUSED,
    sizes: Mapping[str, int] | None = None,
    **overrides: Any,
) -> tuple[EfficientLlava, dict[str, PyTree[Array]], EfficientLlavaProcessor]:
    """Joins a Llama and a tower.

    Args:
      language_model: a Hugging Face folder or GGUF file of a Llama with its tokenizer.
      tower: a variant of EfficientNet-Lite, see `efficientnet_lite.VARIANTS`.
      key: random key for the projector.
      weight_file: the published weights of the tower; None takes those of the installed package.
      image_token: text of the placeholder for a picture.
      replaced: special token whose text the placeholder takes over, so that the embeddings keep their number.
      sizes: fields of `EfficientLlavaConfig` for the projector: cells, tokens_per_cell, projector_size,
        spelled_classes.
      **overrides: fields of the language model's config; dtype and param_dtype also apply to the tower.
    Returns:
      The module, its parameters and its processor.
    Raises:
      ValueError: if a part cannot be read or is of another kind, or the tokenizer has no special token `replaced`.
    """
    weight_file = weights.find(tower) if weight_file is None else weight_file
    source = TorchFile(weight_file)
    llama, of_text, tokenizer = from_pretrained(language_model, **overrides)
    if of_module(llama) is not LLAMA or tokenizer is None:
        raise ValueError(f"{language_model} must hold a Llama and its tokenizer, got a {type(llama).__name__}")
    tokenizer = with_placeholder(tokenizer, replaced, image_token)
    text = llama.config
    vision = dataclasses.replace(VARIANTS[tower], dtype=text.dtype, param_dtype=text.param_dtype)
    config = EfficientLlavaConfig(text, vision, tokenizer.convert_tokens_to_ids(image_token), **(sizes or {}))
    of_tower = weights.params_of(source, vision, weight_file)
    of_tower.pop("classifier")
    params = {"vision_tower": of_tower, "multi_modal_projector": _projector(config, key), "language_model": of_text}
    return EfficientLlava(config), params, EfficientLlavaProcessor(config, tokenizer, image_token)


def _projector(config: EfficientLlavaConfig, key: Key[Array, ""]) -> PyTree[Float[Array, "..."]]:
    """Returns random parameters of the projector."""
    vision = config.vision_config
    grid = jnp.zeros((1, vision.grid_size, vision.grid_size, vision.head_size), vision.dtype)
    return Projector(config).init(key, grid)["params"]


def with_placeholder(tokenizer: Any, replaced: str, image_token: str) -> Any:
    """Returns the tokenizer with another text for one of its special tokens, under the same id; it keeps its template.

    Args:
      tokenizer: a fast tokenizer of transformers.
      replaced: text of the special token, which no prompt needs.
      image_token: its new text.
    Raises:
      ValueError: if the tokenizer has no such special token, or has a token with the new text.
    """
    with needed_for("a tokenizer with a placeholder", "text"):
        import tokenizers as tk
        from transformers import PreTrainedTokenizerFast
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    special = [token for token in content["added_tokens"] if token["content"] == replaced and token["special"]]
    vocabulary = content["model"]["vocab"]
    if not special or image_token in tokenizer.get_vocab():
        raise ValueError(
            f"the tokenizer must have a special token {replaced!r} that becomes {image_token!r}, and no token "
            f"{image_token!r} yet; its special tokens are {sorted(tokenizer.all_special_tokens)}"
        )
    special[0]["content"] = image_token
    if replaced in vocabulary:
        vocabulary[image_token] = vocabulary.pop(replaced)
    named = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    made = tk.Tokenizer.from_str(json.dumps(content))
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=tokenizer.chat_template, **named)
