"""Pretrained weights: `from_pretrained` reads a Hugging Face folder, a GGUF file or a CTranslate2 folder.

`save_pretrained` writes a Hugging Face folder.

`names` says which tensors of a checkpoint belong to a parameter. Weights are read one tensor at a time, directly into
their dtype and sharding, so memory never holds a second copy of the model.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, PyTree

from mcl_jax.models import ctranslate2_file, families, gguf_file, names, tokenizer_files
from mcl_jax.models.hf_config import errors_name, read_config
from mcl_jax.models.quantized import Quantization, is_quantized, quantized, quantizer
from mcl_jax.models.tensors import Renamed, Safetensors, TensorSource, Untied, write_weights
from mcl_jax.models.whisper_processor import WhisperProcessor

MAX_SHARD_BYTES = 5 * 2**30


def load_params(
    module: nn.Module, source: TensorSource, family: families.Family, *, sharding: Any = None
) -> PyTree[Array]:
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


def _match(
    module: nn.Module, source: TensorSource, family: families.Family, untied: bool = False
) -> tuple[Any, TensorSource, dict[names.Path, names.Place]]:
    """Matches the parameters with the tensors of the source, without reading weights.

    Returns:
      Shapes of the parameters, the source under our names, and the place of each parameter.
    Raises:
      ValueError: as `load_params`, for everything that names, shapes and dtypes tell.
    """
    names.check_depth(module.config, len(source.shapes))
    abstract, source = names.abstract_params(module), Renamed(source, family.renames)
    if untied:
        source = Untied(source, family.tied)
    places = names.places(abstract, family)
    names.check(places, source.shapes, family)
    names.check_dtypes(places, source.dtypes)
    return abstract, source, places


def _load_matched(
    abstract: Any,
    source: TensorSource,
    places: Mapping[names.Path, names.Place],
    tied: tuple[str, str],
    sharding: Any,
    quantize: Callable[[names.Path, Array], Any] = lambda path, leaf: leaf,
) -> Any:
    head, embedding = tied
    tied_away = head in source.shapes and head not in {name for place in places.values() for name in place.all_names}
    if tied_away and not np.array_equal(source.read(head), source.read(embedding)):
        raise ValueError(f"{head} must equal {embedding}, since the config ties them, but it is another matrix")
    flat, loaded = flatten_dict(abstract), {}
    for path, place in places.items():
        # Wait for each leaf, else host copies pile up.
        loaded[path] = jax.block_until_ready(quantize(path, _load(source, place, path, flat[path], sharding)))
    return unflatten_dict(loaded)


def _load(
    source: TensorSource, place: names.Place, path: names.Path, leaf: jax.ShapeDtypeStruct, sharding: Any
) -> Array:
    def part(name, index):
        tensor = source.read(name).transpose(place.axes)[index]
        if not np.isfinite(tensor).all():
            raise ValueError(f"{name} must hold finite numbers, got NaN or infinity; download the checkpoint again")
        return tensor.astype(leaf.dtype)

    def callback(index):
        if isinstance(place.names, str):
            return part(place.names, index)
        first, *rest = index
        layers = place.names[first]
        shape = [len(range(*s.indices(n))) for s, n in zip(rest, leaf.shape[1:], strict=True)]
        stacked = np.empty((len(layers), *shape), leaf.dtype)
        for row, name in zip(stacked, layers, strict=True):
            row[...] = part(name, tuple(rest))
        return stacked

    where = sharding(path, leaf.shape) if callable(sharding) else sharding
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0]) if where is None else where
    return jax.make_array_from_callback(leaf.shape, where, callback)


def from_pretrained(
    path: str | Path, *, sharding: Any = None, quantization: Quantization | None = None, **overrides: Any
) -> tuple[nn.Module, PyTree[Array], Any]:
    """Loads a pretrained language model, which may also take images or audio.

    Args:
      path: a Hugging Face folder (config.json; model.safetensors or its shards; tokenizer files), a GGUF file, a
        folder with one GGUF file, or a folder with a Whisper of CTranslate2 (model.bin or its parts; tokenizer.json).
      sharding: sharding of all parameters, or a function (path, shape) -> sharding; the default device if None.
      quantization: "int8" or "nf4" stores the kernels of the layers in 8 or 4 bits; see `mcl_jax.models.quantized`.
        They cannot be merged with adapters, or saved. None means param_dtype.
      **overrides: fields of the model's config: dtype and param_dtype (float32 by default), scan, remat. Where it has
        one, tie_word_embeddings=False gives the output layer a matrix of its own, which starts as the embeddings, so
        that adapters and copies of either leave the other alone.
    Returns:
      The module; the frozen parameters, in param_dtype; and the tokenizer, or None if there are no tokenizer files. A
      model that takes images or audio comes with its processor instead, if the folder has one.
    Raises:
      ValueError: if the architecture is unknown, a setting is not supported, the weights are quantised, a tensor is
        missing, unexpected, of the wrong shape or not finite, or a file is missing, damaged or truncated. The message
        names it. All checks but those of the values happen before any weights are read.
    """
    path = Path(path)
    if parts := ctranslate2_file.find(path):
        source = ctranslate2_file.CTranslate2(parts)
        family, module = _build(parts[0], source.hf_config, overrides)
        read = lambda: _ctranslate2_processor(parts[0].parent, module)
    elif gguf := gguf_file.find(path):
        source = gguf_file.GGUF(gguf)
        family, module = _build(gguf, source.hf_config, overrides)
        read = lambda: (tokenizer_files.read_tokenizer(path) if path.is_dir() else None) or source.tokenizer()
    else:
        family, module = _build(path / "config.json", read_config(path), overrides)
        source = Safetensors(path)
        read = lambda: _processor(path, family, module) or tokenizer_files.read_tokenizer(path)
    with errors_name(path):
        matched = _match(module, source, family, untied=overrides.get("tie_word_embeddings") is False)
    tokenizer = read()  # before the weights, so that its errors come early
    if quantization is None:
        return module, _load_matched(*matched, family.tied, sharding), tokenizer
    module = quantized(module, quantization)
    quantize = quantizer(names.abstract_params(module))
    return module, _load_matched(*matched, family.tied, sharding, quantize), tokenizer


def _build(file: Path, hf_config: Mapping[str, Any], overrides: Mapping[str, Any]) -> tuple[families.Family, nn.Module]:
    with errors_name(file):
        families.build(hf_config)  # without the overrides, whose errors are not due to the file
    return families.build(hf_config, **overrides)


def media_of(path: str | Path) -> str | None:
    """Returns the media that a pretrained model takes, "pictures" or "clips", or None; reads no weights.

    Args:
      path: as for `from_pretrained`.
    Raises:
      ValueError: if the config cannot be read, as in `from_pretrained`.
    """
    path = Path(path)
    if parts := ctranslate2_file.find(path):
        return WhisperProcessor.media if tokenizer_files.has_vocabulary(parts[0].parent) else None
    if gguf_file.find(path):
        return None
    config = read_config(path)
    with errors_name(path / "config.json"):
        family = families.of_config(config)
    has = family.processor is not None and tokenizer_files.has_processor(path)
    return family.processor.media if has else None


def _processor(folder: Path, family: families.Family, module: nn.Module) -> Any:
    if family.processor is None or not tokenizer_files.has_processor(folder):
        return None
    return tokenizer_files.read(folder, lambda: family.processor.from_pretrained(folder, module.config))


def _ctranslate2_processor(folder: Path, module: nn.Module) -> WhisperProcessor | None:
    if not tokenizer_files.has_vocabulary(folder):
        return None
    return tokenizer_files.read(folder, lambda: WhisperProcessor.from_pretrained(folder, module.config))


def state_dict(params: PyTree[Array], family: families.Family) -> dict[str, np.ndarray]:
    """Returns the parameters on the host under their Hugging Face names."""
    flat, tensors = flatten_dict(params), {}
    if any(map(is_quantized, flat.values())):
        raise ValueError("a quantized base cannot be saved; load it without quantization")
    for path, place in names.places(params, family).items():
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
    tensors = state_dict(params, families.of_module(module))
    write_weights(folder, tensors, json.dumps(module.config.to_hf(), indent=2) + "\n", MAX_SHARD_BYTES)
    if tokenizer is not None:
        tokenizer_files.replace(folder, tokenizer)
