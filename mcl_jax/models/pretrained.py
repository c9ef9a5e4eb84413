"""Pretrained weights: `from_pretrained` reads a Hugging Face folder or a GGUF file, `save_pretrained` writes a folder.

Every leaf of a model's parameters corresponds to one tensor of a checkpoint, or to one per layer if layers are scanned;
`hf_names` derives the names from the path of the leaf. Weights are read one tensor at a time, straight into the wanted
dtype and sharding, so memory never holds a second copy of the model.
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, PyTree

from mcl_jax.lora import LoraConfig
from mcl_jax.models import gguf_file, tokenizer_files
from mcl_jax.models.audio_processor import AudioProcessor
from mcl_jax.models.gpt2 import GPT2, GPT2Config
from mcl_jax.models.gpt_neo import GPTNeo, GPTNeoConfig
from mcl_jax.models.hf_config import errors_name, read_config
from mcl_jax.models.llama import Llama, LlamaConfig
from mcl_jax.models.llava_next import LlavaNext, LlavaNextConfig
from mcl_jax.models.llava_next_processor import LlavaNextProcessor
from mcl_jax.models.qwen2_audio import Qwen2Audio, Qwen2AudioConfig
from mcl_jax.models.tensors import FLOATS, Renamed, Safetensors, TensorSource, write_weights

Path_ = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Family:
    """Our implementation of a Hugging Face `model_type`, and its names in checkpoints.

    Attributes:
      module: the Linen module.
      config: its config class.
      transposed: whether linear layers are stored as [out, in] (torch's Linear), not [in, out] (GPT-2's Conv1D).
      ignored: pattern of the names of tensors that hold no weights, such as the causal masks of old checkpoints.
      renames: (regular expression, replacement) for the names of other versions of transformers and of models without a
        head; the first match counts.
      in_memory: the reverse, for layers with another name in transformers' memory, which PEFT writes into its files.
      tied: name of a tensor that may be stored although it equals another one, and the name of that other one.
      writes_tied: whether that tensor is always written, because Hugging Face does not tie it.
      processor: class that prepares images or audio clips, if the model takes any; its `from_pretrained` takes the
        folder and the model's config.
      targets: the result of `lora_targets`.
    """

    module: type[nn.Module]
    config: Any
    transposed: bool = True
    ignored: str = r"(?!)"
    renames: tuple[tuple[str, str], ...] = ()
    in_memory: tuple[tuple[str, str], ...] = ()
    tied: tuple[str, str] = ("lm_head.weight", "transformer.wte.weight")
    writes_tied: bool = False
    processor: Any = None
    targets: tuple[str, ...] = LoraConfig.targets


OTHER_HEADS = r"^(score|classifier|qa_outputs|multiple_choice_head)\."  # heads for other tasks on the same base
TO_GPT = ((r"(?=(wte|wpe|h|ln_f)\.)", "transformer."),)
LLAMA = Family(
    Llama,
    LlamaConfig,
    ignored=r"rotary_emb\.inv_freq$",
    renames=((r"(transformer\.)?(?=(embed_tokens|layers|norm)\.)", "model."),),  # "transformer" in question answering
    tied=("lm_head.weight", "model.embed_tokens.weight"),
)
# Published files use the names of the module tree; transformers from 4.52 on uses others in memory.
OF_TEXT_MODEL = (
    (r"(model\.)?language_model\.(?=(embed_tokens|layers|norm)\.)", "language_model.model."),
    (r"lm_head\b", "language_model.lm_head"),
)
IN_MEMORY = ((r"language_model\.model\.", "model.language_model."), (r"language_model\.lm_head\b", "lm_head"))
TIED_TEXT_MODEL = ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight")
LLAVA_NEXT = Family(
    LlavaNext,
    LlavaNextConfig,
    ignored=rf"{LLAMA.ignored}|embeddings\.position_ids$",
    renames=(  # transformers from 5 on writes the tower's names without "vision_model"
        (r"(model\.)?vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
        (r"model\.(?=vision_tower|multi_modal_projector|image_newline)", ""),
        *OF_TEXT_MODEL,
    ),
    in_memory=IN_MEMORY,
    tied=TIED_TEXT_MODEL,
    processor=LlavaNextProcessor,
)
QWEN2_AUDIO = Family(
    Qwen2Audio,
    Qwen2AudioConfig,
    ignored=LLAMA.ignored,
    renames=((r"model\.(?=audio_tower|multi_modal_projector)", ""), *OF_TEXT_MODEL),
    in_memory=IN_MEMORY,
    tied=TIED_TEXT_MODEL,
    writes_tied=True,
    processor=AudioProcessor,
)
FAMILIES = {
    "gpt2": Family(
        GPT2,
        GPT2Config,
        transposed=False,
        ignored=r"\.attn\.(bias|masked_bias)$",
        renames=TO_GPT,
        targets=("c_attn", "mlp/c_fc", "mlp/c_proj"),
    ),
    "gpt_neo": Family(
        GPTNeo,
        GPTNeoConfig,
        ignored=r"attn\.attention\.(bias|masked_bias)$",
        renames=TO_GPT,
        targets=("q_proj", "k_proj", "v_proj", "c_fc", "c_proj"),
    ),
    "llama": LLAMA,
    "llava_next": LLAVA_NEXT,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen2_audio": QWEN2_AUDIO,
}


def family_of(hf_config: Mapping[str, Any]) -> Family:
    """Returns the family of a `config.json`.

    Raises:
      ValueError: if the model_type is unknown; names the nearest known ones.
    """
    name = hf_config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        near = difflib.get_close_matches(str(name), FAMILIES, n=3, cutoff=0.3) or list(FAMILIES)
        raise ValueError(f"unknown model_type {name!r}; known are {sorted(FAMILIES)} (nearest: {', '.join(near)})")
    return FAMILIES[name]


def lora_targets(module: nn.Module) -> tuple[str, ...]:
    """Returns the layers that the paper adapts, under their names in this model: the `targets` of a `LoraConfig`.

    These are the projections of queries, keys and values, and those of the MLP except its gate.

    Args:
      module: a language model from `mcl_jax.models`.
    """
    return family_of(module.config.to_hf()).targets


def build(hf_config: Mapping[str, Any], **overrides: Any) -> tuple[Family, nn.Module]:
    """Builds the module of a `config.json`; overrides are fields of the model's config, such as dtype or scan."""
    family = family_of(hf_config)
    return family, family.module(family.config.from_hf(hf_config, **overrides))


def abstract_params(module: nn.Module) -> PyTree[jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of the `params` collection without computing anything."""
    return jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32))["params"]


# ------------------------------------------------------------------------------------------------------------- Names

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}  # other names are the same
# By number of axes: those of a torch tensor [out, in, *window] in the order of a Linen kernel [*window, in, out].
KERNEL_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (2, 3, 1, 0)}
STACKS = r"layers|h"


def hf_names(path: Path_, shape: tuple[int, ...]) -> str | list[str]:
    """Returns the Hugging Face name of the leaf at `path`, or the names of its L layers if they are stacked.

    model/layers_3/mlp/up_proj/kernel -> model.layers.3.mlp.up_proj.weight
    model/layers/mlp/up_proj/kernel   -> the same for each layer
    """
    *modules, leaf = path
    written = [re.sub(rf"^({STACKS})_(\d+)$", r"\1.\2", module) for module in modules]
    if not any(re.fullmatch(STACKS, module) for module in modules):
        return ".".join([*written, LEAVES.get(leaf, leaf)])

    def of_layer(i: int) -> list[str]:
        return [f"{module}.{i}" if re.fullmatch(STACKS, module) else module for module in written]

    return [".".join([*of_layer(i), LEAVES.get(leaf, leaf)]) for i in range(shape[0])]


@dataclasses.dataclass(frozen=True)
class Place:
    """The checkpoint tensors of one leaf.

    Attributes:
      names: name of the tensor, or one name per layer.
      shape: shape of each tensor in the checkpoint.
      axes: order of its axes in the leaf.
    """

    names: str | list[str]
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def all_names(self) -> list[str]:
        """The names, always as a list."""
        return [self.names] if isinstance(self.names, str) else self.names


def places(abstract: PyTree[jax.ShapeDtypeStruct], family: Family) -> dict[Path_, Place]:
    """Returns the place of each parameter leaf in a checkpoint of the family."""
    by_path = {}
    for path, leaf in flatten_dict(abstract).items():
        names = hf_names(path, leaf.shape)
        shape = leaf.shape if isinstance(names, str) else leaf.shape[1:]
        axes = KERNEL_AXES[len(shape)] if family.transposed and path[-1] == "kernel" else tuple(range(len(shape)))
        by_path[path] = Place(names, tuple(shape[axes.index(axis)] for axis in range(len(shape))), axes)
    return by_path


def check(wanted: Mapping[Path_, Place], shapes: Mapping[str, tuple[int, ...]], family: Family) -> None:
    """Raises a ValueError that names every tensor that is missing, unexpected or of the wrong shape."""
    needed = {name: place.shape for place in wanted.values() for name in place.all_names}
    given = {name for name in shapes if not re.search(f"{family.ignored}|{OTHER_HEADS}", name)}
    extra = given - set(needed) - ({family.tied[0]} if family.tied[0] not in needed else set())
    if (missing := sorted(set(needed) - given)) or extra:
        raise ValueError(
            f"the weights do not fit the config, which needs {len(needed)} tensors, got {len(given)}. "
            f"Missing: {_some(missing)}. Unexpected: {_some(sorted(extra))}."
        )
    wrong = [
        f"{name} must have shape {shape}, got {shapes[name]}" for name, shape in needed.items() if shape != shapes[name]
    ]
    if wrong:
        raise ValueError("; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""))


def check_dtypes(wanted: Mapping[Path_, Place], dtypes: Mapping[str, str]) -> None:
    """Raises a ValueError that names the tensors that are not stored as floating-point numbers."""
    names = [name for place in wanted.values() for name in place.all_names]
    if wrong := [f"{name} is stored as {dtypes[name]}" for name in names if dtypes[name] not in FLOATS]:
        raise ValueError(f"weights must be stored as one of {FLOATS} (not quantised), but {_some(wrong)}")


def _some(names: list[str]) -> str:
    return f"{names[:8]}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")


# ----------------------------------------------------------------------------------------------------------- Loading


def load_params(module: nn.Module, source: TensorSource, family: Family, *, sharding: Any = None) -> PyTree[Array]:
    """Loads the `params` collection of the module from a source of tensors, in the module's `param_dtype`.

    Args:
      module: the module.
      source: tensors by their Hugging Face names.
      family: the family of the module.
      sharding: sharding of all leaves, or a function (path, shape) -> sharding; the default device if None.
    Returns:
      The parameters.
    Raises:
      ValueError: if a tensor is missing, unexpected, quantised or of the wrong shape, a weight is NaN or infinite, or
        the output layer differs from the embeddings although the config ties them. The message names the tensors.
    """
    return _load_matched(*_match(module, source, family), family.tied, sharding)


def _match(module: nn.Module, source: TensorSource, family: Family) -> tuple[Any, TensorSource, dict[Path_, Place]]:
    """Matches the parameters with the tensors of the source, without reading weights.

    Returns:
      Shapes of the parameters, the source under our names, and the place of each parameter.
    Raises:
      ValueError: as `load_params`, for everything that names, shapes and dtypes tell.
    """
    abstract, source = abstract_params(module), Renamed(source, family.renames)
    wanted = places(abstract, family)
    check(wanted, source.shapes, family)
    check_dtypes(wanted, source.dtypes)
    return abstract, source, wanted


def _load_matched(abstract: Any, source: TensorSource, wanted: Mapping[Path_, Place], tied, sharding: Any) -> Any:
    head, embedding = tied
    tied_away = head in source.shapes and head not in {name for place in wanted.values() for name in place.all_names}
    if tied_away and not np.array_equal(source.read(head), source.read(embedding)):
        raise ValueError(f"{head} must equal {embedding}, since the config ties them, but it is another matrix")
    flat, loaded = flatten_dict(abstract), {}
    for path, place in wanted.items():
        # Wait for each leaf, else host copies pile up.
        loaded[path] = jax.block_until_ready(_load(source, place, path, flat[path], sharding))
    return unflatten_dict(loaded)


def _load(source: TensorSource, place: Place, path: Path_, leaf: jax.ShapeDtypeStruct, sharding: Any) -> Array:
    def part(name, index):
        tensor = source.read(name).transpose(place.axes)[index]
        if not np.isfinite(tensor).all():
            raise ValueError(f"{name} must hold finite numbers, got NaN or infinity; download the checkpoint again")
        return tensor.astype(leaf.dtype)

    def callback(index):
        if isinstance(place.names, str):
            return part(place.names, index)
        first, *rest = index
        names = place.names[first]
        shape = [len(range(*s.indices(n))) for s, n in zip(rest, leaf.shape[1:], strict=True)]
        stacked = np.empty((len(names), *shape), leaf.dtype)
        for row, name in zip(stacked, names, strict=True):
            row[...] = part(name, tuple(rest))
        return stacked

    where = sharding(path, leaf.shape) if callable(sharding) else sharding
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0]) if where is None else where
    return jax.make_array_from_callback(leaf.shape, where, callback)


def from_pretrained(
    path: str | Path, *, sharding: Any = None, **overrides: Any
) -> tuple[nn.Module, PyTree[Array], Any]:
    """Loads a pretrained language model, which may also take images or audio.

    Args:
      path: a Hugging Face folder (config.json; model.safetensors or its shards; tokenizer files), a GGUF file, or a
        folder with one GGUF file.
      sharding: sharding of all parameters, or a function (path, shape) -> sharding; the default device if None.
      **overrides: fields of the model's config: dtype and param_dtype (float32 by default), scan, remat.
    Returns:
      The module; the frozen parameters, in param_dtype; and the tokenizer, or None if there are no tokenizer files. A
      model that takes images or audio comes with its processor instead, if the folder has one.
    Raises:
      ValueError: if the architecture is unknown, a setting is not supported, the weights are quantised, a tensor is
        missing, unexpected, of the wrong shape or not finite, or a file is missing, damaged or truncated. The message
        names it. All checks but those of the values happen before any weights are read.
    """
    path = Path(path)
    if gguf := gguf_file.find(path):
        source = gguf_file.GGUF(gguf)
        family, module = _build(gguf, source.hf_config, overrides)
        read = lambda: (tokenizer_files.read_tokenizer(path) if path.is_dir() else None) or source.tokenizer()
    else:
        family, module = _build(path / "config.json", read_config(path), overrides)
        source = Safetensors(path)
        read = lambda: _processor(path, family, module) or tokenizer_files.read_tokenizer(path)
    with errors_name(path):
        matched = _match(module, source, family)
    tokenizer = read()  # before the weights, so that its errors come early
    return module, _load_matched(*matched, family.tied, sharding), tokenizer


def _build(file: Path, hf_config: Mapping[str, Any], overrides: Mapping[str, Any]) -> tuple[Family, nn.Module]:
    with errors_name(file):
        build(hf_config)  # without the overrides, whose errors are not due to the file
    return build(hf_config, **overrides)


def media_of(path: str | Path) -> str | None:
    """Returns the media that a pretrained model takes, "pictures" or "clips", or None; reads no weights.

    Args:
      path: as for `from_pretrained`.
    Raises:
      ValueError: if the config cannot be read, as in `from_pretrained`.
    """
    path = Path(path)
    if gguf_file.find(path):
        return None
    config = read_config(path)
    with errors_name(path / "config.json"):
        family = family_of(config)
    has = family.processor is not None and tokenizer_files.has_processor(path)
    return family.processor.media if has else None


def _processor(folder: Path, family: Family, module: nn.Module) -> Any:
    if family.processor is None or not tokenizer_files.has_processor(folder):
        return None
    return tokenizer_files.read(folder, lambda: family.processor.from_pretrained(folder, module.config))


# ------------------------------------------------------------------------------------------------------------ Saving

MAX_SHARD_BYTES = 5 * 2**30


def state_dict(params: PyTree[Array], family: Family) -> dict[str, np.ndarray]:
    """Returns the parameters on the host under their Hugging Face names."""
    flat, tensors = flatten_dict(params), {}
    for path, place in places(params, family).items():
        leaf = np.asarray(flat[path])
        for i, name in enumerate(place.all_names):
            tensor = leaf if isinstance(place.names, str) else leaf[i]
            tensors[name] = np.ascontiguousarray(tensor.transpose(np.argsort(place.axes)))
    head, embedding = family.tied
    return {head: tensors[embedding]} | tensors if family.writes_tied else tensors


def save_pretrained(folder: str | Path, module: nn.Module, params: PyTree[Array], tokenizer: Any = None) -> None:
    """Writes a Hugging Face folder: config.json, safetensors (in shards above 5 GiB) and the files of the tokenizer.

    Weights in the folder are replaced, however they were sharded. The disk needs room for the old and the new weights.

    Args:
      folder: the folder; created if it does not exist.
      module: a language model from `mcl_jax.models`.
      params: its parameters.
      tokenizer: tokenizer or processor, which replaces that of the folder; None keeps it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    hf_config = module.config.to_hf()
    tensors = state_dict(params, family_of(hf_config))
    write_weights(folder, tensors, json.dumps(hf_config, indent=2) + "\n", MAX_SHARD_BYTES)
    if tokenizer is not None:
        tokenizer_files.replace(folder, tokenizer)
