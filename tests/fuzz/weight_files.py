"""Fuzz targets: files of weights. A file that is read must give what its bytes say, by a second, simple reader here."""

import functools
import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy
from hypothesis import strategies as st
from test_ctranslate2_file import arrays_of_tiny, packed
from test_gemma import gguf_of
from test_gguf import TOKENS, golden, write
from tower_files import file_bytes, tensor_opcodes

from mcl_jax import interop, selector
from mcl_jax.models import ctranslate2_file, families, pretrained
from mcl_jax.models.gguf_file import GGUF
from mcl_jax.models.tensors import INDEX, SINGLE, Safetensors
from mcl_jax.models.torch_file import TorchFile
from tests.fuzz import drawn
from tests.fuzz.targets import READ, Fault, Target, reads

GOLDEN = Path(__file__).parents[1] / "golden"
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
}


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays are equal in shape, dtype and bytes, NaN included."""
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


# ------------------------------------------------------------------------------------------------------- Safetensors

RNG = np.random.default_rng(0)
SMALL = {"a": RNG.normal(size=(3, 5)).astype(np.float32), "b": np.arange(7, dtype=np.int64), "c": np.float16([[2]])}
SAFETENSORS = [
    safetensors.numpy.save(SMALL),
    safetensors.numpy.save({}),
    safetensors.numpy.save({"x": np.zeros((0, 3), np.float32)}, {"format": "pt"}),
    safetensors.numpy.save(
        {f"model.layers.{i}.w": RNG.normal(size=(2, 3)).astype(ml_dtypes.bfloat16) for i in range(3)}
    ),
]


def by_hand(content: bytes) -> dict[str, np.ndarray]:
    """Reads safetensors: u64 length of the header, JSON header, data."""
    (length,) = struct.unpack_from("<Q", content)
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] in DTYPES:
            start, end = entry["data_offsets"]
            tensors[name] = np.frombuffer(data[start:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def check_safetensors(folder: Path, content: bytes) -> str:
    (folder / SINGLE).write_bytes(content)

    def read() -> dict[str, np.ndarray]:
        source = Safetensors(folder)
        return {name: source.read(name) for name in source.shapes if source.dtypes[name] in DTYPES}

    outcome, tensors = reads(read, SINGLE)
    if outcome == READ:
        expected = by_hand(content)
        if tensors.keys() != expected.keys() or not all(same(tensors[name], expected[name]) for name in expected):
            raise Fault(f"other tensors than those in the file: {tensors.keys()}, {expected.keys()}")
    return outcome


SHARD_NAMES = ["s-1.safetensors", "s-2.safetensors", "../out.safetensors", "/out.safetensors", "..", ".", "", "s-1"]


@st.composite
def indexes(draw: Any) -> tuple[bytes, bytes]:
    """An index, and the content of the second shard."""
    place = {"a": "s-2.safetensors", "b": "s-2.safetensors", "d": "s-1.safetensors", "e": "s-1.safetensors"}
    weight_map = {name: place[name] for name in draw(st.sets(st.sampled_from(sorted(place)), min_size=1))}
    if draw(st.booleans()):
        weight_map[draw(st.sampled_from(sorted(place)))] = draw(st.one_of(st.sampled_from(SHARD_NAMES), drawn.values()))
    whole = {"metadata": {"total_size": 7}, "weight_map": weight_map}
    index = draw(st.one_of(st.just(drawn.as_json(whole)), drawn.json_files([whole])))
    return index, draw(st.one_of(st.just(SAFETENSORS[0]), drawn.mutated(SAFETENSORS)))


def check_index(folder: Path, drawn_index: tuple[bytes, bytes]) -> str:
    index, shard = drawn_index
    inside = folder / "inside"
    inside.mkdir()
    (inside / INDEX).write_bytes(index)
    (inside / "s-1.safetensors").write_bytes(safetensors.numpy.save({"d": np.float32([9]), "e": np.float32([8])}))
    (inside / "s-2.safetensors").write_bytes(shard)
    (folder / "out.safetensors").write_bytes(SAFETENSORS[0])

    def read() -> Safetensors:
        source = Safetensors(inside)
        for name in source.shapes:
            if source.dtypes[name] in DTYPES:
                source.read(name)
        return source

    outcome, source = reads(read, INDEX, SINGLE, "s-1", "s-2", str(inside))
    if outcome == READ and any(file.parent.resolve() != inside for file in source.file_of.values()):
        raise Fault(f"files outside of the folder: {source.file_of}")
    return outcome


# -------------------------------------------------------------------------------------------------------------- GGUF


@functools.cache
def ggufs() -> list[bytes]:
    """Models as llama.cpp writes them: a Llama, a Qwen2, and a Llama with SentencePiece's tokenizer."""
    folder = Path(__file__).parent / "__pycache__" / "gguf"
    folder.mkdir(parents=True, exist_ok=True)
    files = [write(folder / f"{name}.gguf", *golden(name)) for name in ("llama", "qwen2")]
    files += [gguf_of(folder / f"{name}.gguf", *golden(name)) for name in ("gemma2", "gemma3")]
    pieces = dict(model="llama", token_scores=[-float(i) for i in range(len(TOKENS))], chat_template="{{ messages }}")
    files.append(write(folder / "pieces.gguf", *golden("llama"), **pieces, add_bos_token=True))
    contents = [file.read_bytes() for file in files]
    shutil.rmtree(folder)
    return contents


def check_gguf(folder: Path, content: bytes) -> str:
    file = folder / "m.gguf"
    file.write_bytes(content)

    def read() -> dict[str, np.ndarray]:
        source = GGUF(file)
        source.tokenizer()
        pretrained._build(file, source.hf_config, {})
        return {name: source.read(name) for name in source.shapes}

    outcome, tensors = reads(read, file.name)
    if outcome == READ and sum(tensor.nbytes for tensor in tensors.values()) > 8 * len(content):
        raise Fault("more numbers than the file holds")
    return outcome


# --------------------------------------------------------------------------------------------------------- Torch file

NUMBERS = np.arange(35, dtype="<f4") / 7
TORCH = [
    file_bytes(
        {
            "whole": tensor_opcodes("11", (5, 7), (7, 1)),
            "column": tensor_opcodes("11", (7, 3), (1, 7), offset=14, count=35),
            "counter": tensor_opcodes("12", (), (), kind=b"Long"),
        },
        {"12": np.array([3], "<i8"), "11": NUMBERS},
    ),
    file_bytes({"w": tensor_opcodes("1", (7,), (1,))}, {"1": NUMBERS[:7]}),
]


@st.composite
def torch_files(draw: Any) -> bytes:
    """A mutated file, one with odd views, or one with random opcodes in it."""
    sizes = st.one_of(st.integers(0, 7), st.sampled_from(drawn.NUMBERS))
    match draw(st.integers(0, 3)):
        case 0:
            shape = tuple(draw(st.lists(sizes, max_size=4)))
            strides = tuple(draw(st.lists(sizes, min_size=len(shape), max_size=len(shape))))
            view = tensor_opcodes("1", shape, strides, offset=draw(sizes), count=35)
            return file_bytes({"w": view}, {"1": NUMBERS})
        case 1:
            opcodes = st.sampled_from(
                [b"(", b")", b"]", b"}", b"K\x07", b"N", b"2", b"0", b"t", b"\x85", b"\x86", b"e", b"u", b"a"]
            )
            memo = st.sampled_from(
                [
                    b"q\x00",
                    b"h\x00",
                    b"r\xff\xff\xff\x7f",
                    b"j\xff\xff\xff\x7f",
                    b"X\xff\xff\xff\x7f",
                    b"\x8e" + b"\xff" * 7 + b"\x7f",
                ]
            )
            names = st.sampled_from(
                [b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nFloatStorage\n", b"R", b"Q", b"b", b"s", b"."]
            )
            body = b"\x80\x02" + b"".join(draw(st.lists(st.one_of(opcodes, memo, names), max_size=30))) + b"."
            return file_bytes({}, {}, body=body)
    return draw(drawn.mutated(TORCH))


def check_torch(folder: Path, content: bytes) -> str:
    file = folder / "w.pth"
    file.write_bytes(content)

    def read() -> dict[str, np.ndarray]:
        source = TorchFile(file)
        return {name: source.read(name) for name in source.shapes}

    outcome, tensors = reads(read, file.name)
    if outcome == READ and any(tensor.nbytes > len(content) for tensor in tensors.values()):
        raise Fault("a tensor has more numbers than the file")
    return outcome


# --------------------------------------------------------------------------------------------------------- CTranslate2

SOUNDS = {
    "encoder/conv1/weight": np.float32(RNG.normal(size=(5, 3, 3))),
    "decoder/embeddings/weight": np.float32([[1, 2]]),
}


@functools.cache
def ctranslate2_files() -> list[bytes]:
    """The tiny Whisper, and a file of two arrays."""
    return [packed(arrays_of_tiny()), packed(SOUNDS)]


@st.composite
def ctranslate2_like(draw: Any) -> bytes:
    """A mutated file, or one of arrays with other shapes, dtypes and names."""
    if draw(st.booleans()):
        return draw(drawn.mutated(ctranslate2_files()))
    arrays = dict(arrays_of_tiny())
    for name in draw(st.lists(st.sampled_from(sorted(arrays)), min_size=1, max_size=3)):
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        kind = draw(st.sampled_from([np.float32, np.float16, np.int8, np.int16]))
        made = np.full(
            shape, draw(st.sampled_from([0, 1, 5, np.nan, np.inf])) if kind in (np.float32, np.float16) else 3, kind
        )
        arrays[draw(st.one_of(st.just(name), st.just(name.replace("0", "00")), st.just("decoder/x")))] = made
        if draw(st.booleans()):
            arrays.pop(name, None)
    return packed(arrays)


def check_ctranslate2(folder: Path, content: bytes) -> str:
    file = folder / "model.bin"
    file.write_bytes(content)

    def read() -> dict[str, np.ndarray]:
        source = ctranslate2_file.CTranslate2([file])
        pretrained._build(file, source.hf_config, {})
        return {name: source.read(name) for name in source.shapes}

    outcome, tensors = reads(read, file.name)
    if outcome == READ and sum(tensor.nbytes for tensor in tensors.values()) > len(content):
        raise Fault("more numbers than the file holds")
    return outcome


# --------------------------------------------------------------------------------------------------- PEFT and selector

PEFT, FOLDERS = GOLDEN / "peft", ("llama", "authors", "dora", "prompts")
SETTINGS = [json.loads((PEFT / name / "lora0" / "adapter_config.json").read_text()) for name in FOLDERS]
ADAPTERS = [(PEFT / name / "lora0" / "adapter_model.safetensors").read_bytes() for name in FOLDERS]
OTHERS = [
    "rank_pattern",
    "alpha_pattern",
    "use_dora",
    "modules_to_save",
    "bias",
    "r",
    "lora_alpha",
    "use_rslora",
    "num_virtual_tokens",
]


@functools.cache
def base() -> Any:
    """The module of the golden Llama."""
    config = json.loads((GOLDEN / "models" / "llama" / "config.json").read_text())
    return families.build(config)[1]


@st.composite
def adapters(draw: Any) -> tuple[bytes, bytes, bytes]:
    """adapter_config.json, and the weights of two folders."""
    which = draw(st.sampled_from([0, 0, 0, 1, 2, 3]))
    config = drawn.as_json(SETTINGS[which])
    weights = ADAPTERS[which]
    if draw(st.booleans()):
        config = draw(drawn.json_files(SETTINGS, OTHERS))
    else:
        weights = draw(st.one_of(drawn.mutated([weights], 16384), changed_tensors(weights)))
    return config, weights, draw(st.sampled_from([ADAPTERS[which], weights]))


@st.composite
def changed_tensors(draw: Any, weights: bytes) -> bytes:
    """The tensors with some of another shape, dtype or name."""
    tensors = safetensors.numpy.load(weights)
    for name in draw(st.lists(st.sampled_from(sorted(tensors)), min_size=1, max_size=3, unique=True)):
        tensor = tensors.pop(name)
        match draw(st.integers(0, 4)):
            case 0:
                tensor = np.zeros(draw(st.lists(st.integers(0, 9), max_size=4)), np.float32)
            case 1:
                tensor = tensor.astype(
                    draw(
                        st.sampled_from([np.float16, np.float64, np.int32, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
                    )
                )
            case 2:
                tensor = np.full_like(tensor, draw(st.sampled_from([np.nan, np.inf, 3e38])))
            case 3:
                name = draw(
                    st.one_of(st.text(max_size=9), st.just(name.replace("lora_A", "lora_B")), st.just(name[17:]))
                )
            case _:
                continue
        tensors[name] = tensor
    return safetensors.numpy.save(tensors)


def check_peft(folder: Path, drawn_adapters: tuple[bytes, bytes, bytes]) -> str:
    config, *weights = drawn_adapters
    for k, content in enumerate(weights):
        (folder / f"lora{k}").mkdir()
        (folder / f"lora{k}" / "adapter_config.json").write_bytes(config)
        (folder / f"lora{k}" / "adapter_model.safetensors").write_bytes(content)
    folders = [folder / "lora0", folder / "lora1"]
    outcome, loaded = reads(
        lambda: interop.load_peft(folders, base()), "lora0", "lora1", "adapter", "layers", "hypotheses"
    )
    if outcome == READ:
        _check_loaded(loaded[1], [by_hand(content) for content in weights])
    return outcome


def _check_loaded(loaded: Any, files: list[dict[str, np.ndarray]]) -> None:
    """Raises a Fault unless the loaded numbers are those of the files, in any order."""
    held = sum(float(np.abs(np.asarray(leaf, np.float64)).sum()) for leaves in _leaves(loaded) for leaf in [leaves])
    given = sum(
        float(np.abs(np.asarray(tensor, np.float32).astype(np.float64)).sum())
        for file in files
        for tensor in file.values()
    )
    if not math.isclose(held, given, rel_tol=1e-9):
        raise Fault(f"the adapters sum up to {held}, the files to {given}")


def _leaves(tree: Any) -> list[Any]:
    return [leaf for value in tree.values() for leaf in _leaves(value)] if isinstance(tree, dict) else [tree]


SELECTORS = [safetensors.numpy.save({"kernel": np.ones((5, 3), np.float32), "bias": np.zeros(3, np.float32)})]


def check_selector(folder: Path, content: bytes) -> str:
    (folder / selector.FILE).write_bytes(content)
    outcome, found = reads(lambda: selector.Selector.load(folder), selector.FILE)
    if outcome == READ:
        log_gamma = np.exp(np.asarray(found.log_gamma(np.zeros((2, found.kernel.shape[0]), np.float32))))
        if found.kernel.dtype != np.float32 or not np.allclose(log_gamma.sum(0), 1, atol=1e-4):
            raise Fault(f"γ must be a distribution, got {log_gamma}")
    return outcome


TARGETS = [
    Target("safetensors", lambda: drawn.mutated(SAFETENSORS, 400), check_safetensors, 1.5),
    Target("safetensors index", indexes, check_index),
    Target("gguf", lambda: drawn.mutated(ggufs(), 6000), check_gguf, 1.5),
    Target("torch file", torch_files, check_torch, 1.5),
    Target("ctranslate2", ctranslate2_like, check_ctranslate2),
    Target("peft folders", adapters, check_peft, 0.7),
    Target("selector", lambda: drawn.mutated(SELECTORS), check_selector, 0.5),
]
