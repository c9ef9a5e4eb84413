"""GGUF files (llama.cpp's format) of Llama, Qwen2 and 3, SmolLM3, Gemma 2 and 3: config, tokenizer, float32 tensors.

Tensors have their Hugging Face names and Hugging Face's order of rows: llama.cpp interleaves the halves of each head of
Llama and SmolLM3, which is undone here, and adds 1 to the norms of Gemma (`gguf_gemma`). A model may be split into
several files. Which layers of a SmolLM3 rotate is not in its file: all but every fourth, the default of its config.
"""

import math
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mcl_jax.extras import needed_for
from mcl_jax.models import gguf_gemma, gguf_header, gguf_tokenizer

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ARCHITECTURES = (*gguf_gemma.MODEL_TYPES, "llama", "qwen2", "qwen3", "smollm3")
INTERLEAVED = ("llama", "smollm3")
ROPE_FACTORS = "rope_freqs.weight"  # divisors of the frequencies, in Llama 3
MOST_PARTS = 99_999
PART = r"(.+)-(\d{5})-of-(\d{5})\.gguf"
# Metadata that we read or that have no effect. Any other entry must have a value without effect.
READ = {
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scaling.type",
    "vocab_size",
    "tensor_data_layout",
}
NEUTRAL = {"rope.scale_linear": 1.0, "rope.scaling.factor": 1.0, "attention.causal": True}


def find(path: Path) -> Path | None:
    """Returns the GGUF file at `path` or in it (the first part of a split file); None if there is none.

    Raises:
      ValueError: if `path` does not exist, or is a folder without config.json that holds several GGUF files.
    """
    if not path.exists():
        raise ValueError(f"{path} must be a Hugging Face folder or a GGUF file, but it does not exist")
    if path.is_file():
        return path
    files = sorted(path.glob("*.gguf"))
    if (path / "config.json").is_file() or not files:
        return None
    if len({re.sub(PART, r"\1 \3", file.name) for file in files}) > 1:
        raise ValueError(f"{path} holds several GGUF files; pass the path of one of {[file.name for file in files]}")
    return files[0]


def _reader() -> type:
    """Returns a reader of files that slices a plain view of them: slices of a `np.memmap` take four times as long."""
    with needed_for("reading a GGUF file", "text"):
        import gguf  # brings a dozen modules

    class Reader(gguf.GGUFReader):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, np.asarray(value) if name == "data" else value)

    return Reader


def _open(file: Path) -> tuple[Any, dict[str, Any]]:
    """(reader, metadata) of a file."""
    reader_of = _reader()
    if not file.is_file():
        raise ValueError(f"{file}, a part of a split GGUF file, does not exist")
    try:
        gguf_header.check(file)
        reader = reader_of(file)
        return reader, {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:
        raise ValueError(f"{file} is damaged or not a GGUF file: {error}") from error


def _open_all(file: Path) -> tuple[list[Any], dict[str, Any]]:
    """Opens the model of which `file` is the whole or any part; returns all readers and the first part's metadata."""
    reader, fields = _open(file)
    count = fields.get("split.count", 0)
    if type(count) is not int or not 0 <= count <= MOST_PARTS:
        raise ValueError(f"{file}: split.count must be an integer from 0 to {MOST_PARTS}, got {count!r}")
    if count <= 1:
        return [reader], fields
    match, number = re.fullmatch(PART, file.name), fields.get("split.no", 0)
    if type(number) is not int:
        raise ValueError(f"{file}: split.no must be an integer, got {number!r}")
    if match is None or int(match[3]) != count:
        raise ValueError(
            f"{file} is part {number + 1} of {count} of a split GGUF file; put all parts into one "
            f"folder under their original names, NAME-00001-of-{count:05}.gguf and so on"
        )
    parts = [file.with_name(f"{match[1]}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    opened = [_open(part) for part in parts]
    for i, (part, (_, of_part)) in enumerate(zip(parts, opened, strict=True)):
        if (of_part.get("split.no"), of_part.get("split.count")) != (i, count):
            raise ValueError(
                f"{part} must be part {i + 1} of {count}, but its metadata say otherwise; check that all parts belong "
                "to the same model"
            )
    readers, first = [reader for reader, _ in opened], opened[0][1]
    held, needed = sum(len(reader.tensors) for reader in readers), first.get("split.tensors.count")
    if needed is not None and held != needed:
        raise ValueError(f"{parts[0]} and its other parts must hold {needed} tensors, got {held}")
    return readers, first


class GGUF:
    """A GGUF file as a source of tensors, with its config and tokenizer.

    Args:
      file: the file, or any part of a split file.
    Raises:
      ValueError: if the file is truncated, not in this format or without its other parts, or if its architecture, a
        setting or its quantisation is not supported.
    """

    def __init__(self, file: Path):
        self.file = file
        readers, self.fields = _open_all(file)
        self.architecture = self.fields.get("general.architecture")
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"{file}: architecture {self.architecture!r} is not one of {ARCHITECTURES}")
        self.is_gemma = self.architecture in gguf_gemma.MODEL_TYPES
        self.settings = {
            name.removeprefix(f"{self.architecture}."): value
            for name, value in self.fields.items()
            if name.startswith(f"{self.architecture}.")
        }
        self._check_settings()
        tensors = [tensor for reader in readers for tensor in reader.tensors]
        self.rope_factors = [t.data.astype(float).tolist() for t in tensors if t.name == ROPE_FACTORS]
        self.tensors = {self._hf_name(t.name): t for t in tensors if t.name != ROPE_FACTORS}
        self._check_quantisation()
        self.shapes = {name: tuple(int(n) for n in tensor.shape[::-1]) for name, tensor in self.tensors.items()}
        self.dtypes = dict.fromkeys(self.shapes, "F32")  # as `read` gives them

    def _check_settings(self) -> None:
        read = READ | gguf_gemma.READ.get(self.architecture, set())

        def has_effect(name: str) -> bool:
            return self.settings[name] not in ([NEUTRAL[name]] if name in NEUTRAL else (0, "", "none", []))

        if unread := sorted(name for name in self.settings if name not in read and has_effect(name)):
            entries = ", ".join(f"{self.architecture}.{name} = {self.settings[name]}" for name in unread)
            raise ValueError(f"{self.file} has settings that are not supported: {entries}")

    def _check_quantisation(self) -> None:
        import gguf

        for name, tensor in self.tensors.items():
            _, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
            try:
                gguf.dequantize(np.zeros((1, size), np.uint8), tensor.tensor_type)
            except NotImplementedError as error:
                kind = tensor.tensor_type.name
                raise ValueError(
                    f"{self.file}: {name} is stored as {kind}, which the gguf package cannot dequantise"
                ) from error

    def _hf_name(self, name: str) -> str:
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
        names = NAMES | gguf_gemma.NAMES if self.is_gemma else NAMES
        if match is None or match[2] not in names:
            raise ValueError(f"{self.file}: unknown tensor {name!r}")
        layer = "" if match[1] is None else f"model.layers.{match[1]}."
        return f"{layer}{names[match[2]]}.{match[3]}"

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor and dequantises it to float32, with Hugging Face's order of rows and meaning of norms."""
        import gguf

        tensor = self.tensors[name]
        values = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(self.shapes[name])
        if self.is_gemma and name.endswith("norm.weight"):
            return values - 1.0
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        if heads is None or self.architecture not in INTERLEAVED:
            return values
        pairs = values.reshape(self.hf_config[heads], -1, 2, *values.shape[1:])  # [heads, d/2, 2, in]
        return pairs.swapaxes(1, 2).reshape(values.shape)

    def _number(self, name: str, default: Any = None) -> Any:
        """Returns an entry that must be a number above 0."""
        value = self.settings.get(name, default)
        if value is None:
            raise ValueError(f"{self.file} must have an entry {self.architecture}.{name}, but has none")
        if isinstance(value, (list, str, bool)) or not 0 < value < math.inf:
            raise ValueError(f"{self.file}: {self.architecture}.{name} must be one number above 0, got {value}")
        return value

    @cached_property
    def hf_config(self) -> Mapping[str, Any]:
        """The entries of a `config.json` of the same model.

        Raises:
          ValueError: if a field is missing or not a number, or the file uses rotary scaling or rotates part of a head.
        """
        scalings = ("none", "linear") if self.architecture == "gemma3" else ("none",)
        if self.settings.get("rope.scaling.type", "none") not in scalings:
            raise ValueError(f"{self.file} uses rotary scaling, which is not supported in GGUF files")
        if "model.embed_tokens.weight" not in self.shapes:
            raise ValueError(f"{self.file} must have a tensor token_embd.weight, but has none")
        number = self._number
        head_dim = number("attention.key_length", number("embedding_length") // number("attention.head_count"))
        for name in ("attention.value_length", "rope.dimension_count"):
            if (width := number(name, head_dim)) != head_dim:
                raise ValueError(
                    f"{self.file}: {self.architecture}.{name} must be the width of a head, {head_dim}, got {width}"
                )
        rope = {"rope_type": "default", "rope_theta": number("rope.freq_base", 10000.0)}
        for factors in self.rope_factors:
            rope |= dict(rope_type="longrope", short_factor=factors, long_factor=factors, attention_factor=1.0)
        entries = {
            "model_type": self.architecture,
            "vocab_size": self.shapes["model.embed_tokens.weight"][0],
            "hidden_size": number("embedding_length"),
            "intermediate_size": number("feed_forward_length"),
            "num_hidden_layers": number("block_count"),
            "num_attention_heads": number("attention.head_count"),
            "num_key_value_heads": number("attention.head_count_kv", number("attention.head_count")),
            "head_dim": head_dim,
            "max_position_embeddings": number("context_length"),
            "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
            "rope_parameters": rope,
            "tie_word_embeddings": "lm_head.weight" not in self.shapes,
        }
        own = gguf_gemma.hf_entries(self.architecture, number, self.settings, entries) if self.is_gemma else {}
        return entries | own

    def tokenizer(self) -> Any:
        """Builds the tokenizer of the file, see `gguf_tokenizer.build`."""
        return gguf_tokenizer.build(self.file, self.fields)
