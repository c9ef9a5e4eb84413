"""Soft prompts as PEFT stores those of prompt tuning: vectors [P, D] before the embedded tokens.

PEFT's vectors are the inputs of the first layer. Ours are rows of the table of embeddings, which some models multiply
by a factor first (Gemma by √D).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PyTree

from mcl_jax import peft_files
from mcl_jax.json_io import read_json_object
from mcl_jax.models.families import Family, of_module
from mcl_jax.models.names import abstract_params
from mcl_jax.soft_prompts import LEAF, SoftPrompts

KIND, TENSOR = "PROMPT_TUNING", "prompt_embeddings"
READ = {"peft_type", "num_virtual_tokens", "token_dim", "num_transformer_submodules"}
OF_TRAINING = {
    "num_attention_heads",
    "num_layers",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
}


def are_in(folder: Path) -> bool:
    """Whether a folder of PEFT holds a soft prompt."""
    file = folder / peft_files.CONFIG
    return file.is_file() and read_json_object(file).get("peft_type") == KIND


def contents(module: Any, adapters: PyTree[Array], base: str) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Returns the entries of adapter_config.json and the tensor of each of K soft prompts.

    Raises:
      ValueError: if the model is none of text, for which PEFT has no soft prompts.
    """
    family = _text_family(module)
    (vectors,) = flatten_dict(adapters).values()
    vectors = np.asarray(vectors, np.float32) * np.float32(_factor(module))
    settings = {
        "peft_type": KIND,
        "task_type": family.task,
        "base_model_name_or_path": base,
        "num_virtual_tokens": vectors.shape[1],
        "token_dim": vectors.shape[2],
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
        "inference_mode": True,
    }
    return [(settings, {TENSOR: one}) for one in vectors]


def load(folders: Sequence[Path], module: Any) -> tuple[SoftPrompts, PyTree[Array]]:
    """Reads K soft prompts.

    Raises:
      ValueError: if a folder is broken, a setting is not supported, the prompts differ in length, or do not fit the
        module; names it.
    """
    _text_family(module)
    vectors = [_read(folder) for folder in folders]
    abstract, tokens = abstract_params(module), jax.ShapeDtypeStruct((1, 2), jnp.int32)
    model = SoftPrompts(module, len(vectors[0]))
    (path,) = model.reached(abstract, tokens)
    width = flatten_dict(abstract, sep="/")[f"{path}/embedding"].shape[-1]
    for folder, one in zip(folders, vectors, strict=True):
        if one.shape != (model.length, width):
            raise ValueError(
                f"{folder} must hold {model.length} vectors of {width} numbers, as {folders[0]} and the base, got "
                f"{one.shape[0]} of {one.shape[1]}"
            )
    stacked = np.stack(vectors) / np.float32(_factor(module))
    return model, unflatten_dict({(*path.split("/"), LEAF): jnp.asarray(stacked, jnp.float32)})


def _factor(module: Any) -> float:
    return getattr(module, "embedding_factor", 1.0)


def _text_family(module: Any) -> Family:
    """Returns the family of a language model of text, or raises a ValueError."""
    family = of_module(module)
    if family.task != "CAUSAL_LM" or family.processor is not None:
        raise ValueError(f"PEFT has soft prompts for models of text, but {type(module).__name__} takes more than that")
    return family


def _read(folder: Path) -> Float[np.ndarray, "P D"]:
    config, tensors = peft_files.read(folder, _check_settings)
    file = folder / peft_files.WEIGHTS
    if set(tensors) != {TENSOR}:
        raise ValueError(f"{file} must hold the tensor {TENSOR} alone, got {sorted(tensors)[:8]}")
    vectors = tensors[TENSOR]
    peft_files.check_numbers(f"{file}: {TENSOR}", vectors)
    if vectors.ndim != 2 or vectors.shape[0] != config["num_virtual_tokens"] or vectors.shape[0] < 1:
        raise ValueError(
            f"{file}: {TENSOR} must hold {config['num_virtual_tokens']} vectors, as in {peft_files.CONFIG}, got "
            f"{list(vectors.shape)}"
        )
    return vectors.astype(np.float32)


def _check_settings(config: Mapping[str, Any], file: Path) -> None:
    """Raises a ValueError that names the first setting of a soft prompt that is not supported."""
    if config.get("peft_type") != KIND:
        raise ValueError(f"{file}: peft_type must be {KIND}, as in the first folder, got {config.get('peft_type')!r}")
    if not isinstance(config.get("num_virtual_tokens"), int):
        raise ValueError(f"{file}: num_virtual_tokens must be an integer, got {config.get('num_virtual_tokens')!r}")
    if config.get("num_transformer_submodules", 1) != 1:
        raise ValueError(f"{file}: num_transformer_submodules must be 1, got {config['num_transformer_submodules']!r}")
    known = READ | OF_TRAINING | peft_files.HARMLESS | set(peft_files.DEFAULTS)
    if unread := sorted(name for name, value in config.items() if name not in known and value):
        raise ValueError(f"{file} has settings of a soft prompt that are not supported: {', '.join(unread)}")
