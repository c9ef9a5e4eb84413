"""Pretrained weights: `from_pretrained` reads a Hugging Face folder or a GGUF file, `save_pretrained` writes a folder.

Every leaf of a model's parameters has one tensor in a checkpoint, or one for each layer where layers are scanned; which
one follows from its path (`hf_names`). Weights are read one tensor at a time, straight into the wanted dtype and
sharding, so that no second copy of the model is ever in memory.
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
    """How a `model_type` of Hugging Face is built here.

    Attributes:
      module, config: the Linen module and its config class.
      transposed: whether linear layers are stored as [out, in] (torch's Linear), not [in, out] (GPT-2's Conv1D).
      ignored: names of tensors that hold no weights, such as the causal masks of old checkpoints.
      renames: (regular expression, replacement) for names of other versions of transformers and of models without a
        head; the first counts.
      in_memory: the same the other way round, for what transformers names otherwise in memory, and so PEFT in files.
      tied: name of a tensor that may be there though it equals another, and that other.
      writes_tied: whether that tensor is always written, for Hugging Face does not tie it.
      processor: of pictures or clips beside text; its `from_pretrained` takes the folder and the model's config.
      targets: what `lora_targets` gives.
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


OTHER_HEADS = r"^(score|classifier|qa_outputs|multiple_choice_head)\."  # of models of other tasks on the same base
TO_GPT = ((r"(?=(wte|wpe|h|ln_f)\.)", "transformer."),)
LLAMA = Family(
    Llama,
    LlamaConfig,
    ignored=r"rotary_emb\.inv_freq$",
    renames=((r"(transformer\.)?(?=(embed_tokens|layers|norm)\.)", "model."),),  # "transformer" of question answering
    tied=("lm_head.weight", "model.embed_tokens.weight"),
)
# Published files have the names of the module tree; transformers from 4.52 on has others in memory.
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
    renames=(  # from 5 on transformers writes the tower's without "vision_model"
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
    """The family of a `config.json`.

    Raises:
      ValueError: names the unknown model_type and the nearest known ones.
    """
    name = hf_config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        near = difflib.get_close_matches(str(name), FAMILIES, n=3, cutoff=0.3) or list(FAMILIES)
        raise ValueError(f"unknown model_type {name!r}; known are {sorted(FAMILIES)} (nearest: {', '.join(near)})")
    return FAMILIES[name]


def lora_targets(module: nn.Module) -> tuple[str, ...]:
    """Names of the layers that the paper adapts (projections of queries, keys and values, and of the MLP but its gate),
    as the family of a language model of `mcl_jax.models` calls them: the `targets` of a `LoraConfig`."""
    return family_of(module.config.to_hf()).targets


def build(hf_config: Mapping[str, Any], **overrides: Any) -> tuple[Family, nn.Module]:
    """Family and module of a `config.json`; overrides are fields of the model's config, such as dtype or scan."""
    family = family_of(hf_config)
    return family, family.module(family.config.from_hf(hf_config, **overrides))


def abstract_params(module: nn.Module) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the `params` collection; nothing is computed."""
    return jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32))["params"]


# ------------------------------------------------------------------------------------------------------------- Names

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}  # others are named alike
# Axes of a torch tensor [out, in, *window] in the order of a Linen kernel [*window, in, out], by their number.
KERNEL_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (2, 3, 1, 0)}
STACKS = r"layers|h"


def hf_names(path: Path_, shape: tuple[int, ...]) -> str | list[str]:
    """The tensor of the leaf at `path`, or the tensors of its L layers if they are stacked.

    model/layers_3/mlp/up_proj/kernel -> model.layers.3.mlp.up_proj.weight
    model/layers/mlp/up_proj/kernel   -> the same for each i
    """
    *modules, leaf = path
    written = [re.sub(rf"^({STACKS})_(\d+)$", r"\1.\2", module) for module in modules]
    if not any(re.fullmatch(STACKS, module) for module in modules):
        return ".".join([*written, LEAVES.get(leaf, leaf)])
    of_layer = lambda i: [f"{module}.{i}" if re.fullmatch(STACKS, module) else module for module in written]
    return [".".join([*of_layer(i), LEAVES.get(leaf, leaf)]) for i in range(shape[0])]


@dataclasses.dataclass(frozen=True)
class Place:
    """The tensor(s) of one leaf: `names` (one, or one a layer) of shape `shape`, whose `axes` are put in this order."""

    names: str | list[str]
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def all_names(self) -> list[str]:
        return [self.names] if isinstance(self.names, str) else self.names


def places(abstract: PyTree[jax.ShapeDtypeStruct], family: Family) -> dict[Path_, Place]:
    """Where each leaf of the parameters is found in a checkpoint of the family."""
    found = {}
    for path, leaf in flatten_dict(abstract).items():
        names = hf_names(path, leaf.shape)
        shape = leaf.shape if isinstance(names, str) else leaf.shape[1:]
        axes = KERNEL_AXES[len(shape)] if family.transposed and path[-1] == "kernel" else tuple(range(len(shape)))
        found[path] = Place(names, tuple(shape[axes.index(axis)] for axis in range(len(shape))), axes)
    return found


def check(wanted: Mapping[Path_, Place], shapes: Mapping[str, tuple[int, ...]], family: Family) -> None:
    """Raises a ValueError that names every tensor that is missing, unexpected or of the wrong shape."""
    needed = {name: place.shape for place in wanted.values() for name in place.all_names}
    given = {name for name in shapes if not re.search(f"{family.ignored}|{OTHER_HEADS}", name)}
    extra = given - set(needed) - ({family.tied[0]} if family.tied[0] not in needed else set())
    if (missing := sorted(set(needed) - given)) or extra:
        raise ValueError(
            f"weights do not fit the config, which needs {len(needed)} tensors and finds {len(given)}. "
            f"Missing: {_some(missing)}. Unexpected: {_some(sorted(extra))}."
        )
    wrong = [
        f"{name} must have shape {shape}, got {shapes[name]}" for name, shape in needed.items() if shape != shapes[name]
    ]
    if wrong:
        raise ValueError("; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""))


def check_dtypes(wanted: Mapping[Path_, Place], dtypes: Mapping[str, str]) -> None:
    """Raises a ValueError that names tensors that are stored as something else than floating-point numbers."""
    names = [name for place in wanted.values() for name in place.all_names]
    if wrong := [f"{name} is stored as {dtypes[name]}" for name in names if dtypes[name] not in FLOATS]:
        raise ValueError(f"weights must be stored as one of {FLOATS}, but {_some(wrong)}: are they quantised?")


def _some(names: list[str]) -> str:
    return f"{names[:8]}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")


# ----------------------------------------------------------------------------------------------------------- Loading


def load_params(module: nn.Module, source: TensorSource, family: Family, *, sharding: Any = None) -> PyTree[Array]:
    """The `params` collection of the module from a source of tensors, in the module's `param_dtype`.

    Args:
      sharding: of all leaves, or a function (path, shape) -> sharding; the default device if None.
    Raises:
      ValueError: names tensors that are missing, unexpected, of the wrong shape or quantised, a weight that is NaN or
        infinite, or an output layer that differs from the embeddings though the config ties them.
    """
    return _load_matched(*_match(module, source, family), family.tied, sharding)


def _match(module: nn.Module, source: TensorSource, family: Family) -> tuple[Any, TensorSource, dict[Path_, Place]]:
    """(shapes of the parameters, the source under their names, where each is found); reads no weights.

    Raises:
      ValueError: as `load_params`, of what can be known from names, shapes and dtypes.
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
        raise ValueError(f"{head} must equal {embedding} (the config ties them), got another matrix")
    flat, loaded = flatten_dict(abstract), {}
    for path, place in wanted.items():
        loaded[path] = jax.block_until_ready(_load(source, place, path, flat[path], sharding))  # or host copies pile up
    return unflatten_dict(loaded)


def _load(source: TensorSource, place: Place, path: Path_, leaf: jax.ShapeDtypeStruct, sharding: Any) -> Array:
    def part(name, index):
        tensor = source.read(name).transpose(place.axes)[index]
        if not np.isfinite(tensor).all():
            raise ValueError(f"{name} must hold finite numbers, got NaN or infinity: is the checkpoint damaged?")
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
    """(module, params, tokenizer or processor) of a pretrained language model, which may see or hear.

    Args:
      path: a Hugging Face folder (config.json; model.safetensors or its shards; tokenizer files), a GGUF file, or a
        folder that holds one.
      sharding: of all parameters, or a function (path, shape) -> sharding; the default device if None.
      **overrides: fields of the model's config: dtype and param_dtype (float32 by default), scan, remat.
    Returns:
      The module; the frozen parameters, in param_dtype; and the tokenizer, or None if there are no tokenizer files. For
      a model that sees or hears, its processor, if there are the files of one.
    Raises:
      ValueError: an unknown architecture; settings that are not computed here; quantised weights; tensors missing,
        unexpected, of the wrong shape or not finite; files missing, damaged or cut short. The message names them, and
        all but the last comes before any weights are read.
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
    tokenizer = read()  # refused, if it must be, before any weights are read
    return module, _load_matched(*matched, family.tied, sharding), tokenizer


def _build(file: Path, hf_config: Mapping[str, Any], overrides: Mapping[str, Any]) -> tuple[Family, nn.Module]:
    with errors_name(file):
        build(hf_config)  # without the overrides, whose errors are not the file's
    return build(hf_config, **overrides)


def media_of(path: str | Path) -> str | None:
    """What a pretrained model takes beside text, "pictures" or "clips", None if nothing; reads no weights.

    Args:
      path: as of `from_pretrained`.
    Raises:
      ValueError: as `from_pretrained`, of the config.
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
    """The parameters as Hugging Face names them, on the host."""
    flat, tensors = flatten_dict(params), {}
    for path, place in places(params, family).items():
        leaf = np.asarray(flat[path])
        for i, name in enumerate(place.all_names):
            tensor = leaf if isinstance(place.names, str) else leaf[i]
            tensors[name] = np.ascontiguousarray(tensor.transpose(np.argsort(place.axes)))
    head, embedding = family.tied
    return {head: tensors[embedding]} | tensors if family.writes_tied else tensors


def save_pretrained(folder: str | Path, module: nn.Module, params: PyTree[Array], tokenizer: Any = None) -> None:
    """Writes a Hugging Face folder: config.json, safetensors (in shards above 5 GiB), files of the tokenizer given.

    A processor is given and written in the place of a tokenizer. Weights that the folder holds are replaced, however
    they were cut, and so is its tokenizer if one is given. The disk needs room for both the old and the new weights.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    hf_config = module.config.to_hf()
    tensors = state_dict(params, family_of(hf_config))
    write_weights(folder, tensors, json.dumps(hf_config, indent=2) + "\n", MAX_SHARD_BYTES)
    if tokenizer is not None:
        tokenizer_files.replace(folder, tokenizer)
