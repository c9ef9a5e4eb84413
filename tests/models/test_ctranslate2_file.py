"""Whisper in CTranslate2's format: the tiny model of tests/golden/whisper, written in it here, and what is refused."""

import shutil
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import mcl_jax as mcl
from mcl_jax.models import ctranslate2_file, pretrained

TINY = Path(__file__).parents[1] / "golden" / "whisper" / "tiny"
KINDS = {"float32": 0, "int8": 1, "int16": 2, "float16": 4}


def arrays_of_tiny():
    """Arrays under CTranslate2's names."""
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(TINY / "model.safetensors").items()}
    arrays = {"decoder/alignment_heads": np.ones((2, 2), np.int16), "decoder/scale_embeddings": np.int8(0)}
    for part, heads, layers in (("encoder", 5, 2), ("decoder", 4, 3)):
        arrays[f"{part}/num_heads"] = np.int16(heads)
        arrays[f"{part}/position_encodings/encodings"] = tensors[f"{part}.embed_positions.weight"]
        norms = {"layer_norm": "layer_norm"}
        for i in range(layers):
            ours, theirs = f"{part}/layer_{i}", f"{part}.layers.{i}"

            def take(array, *names, ours=ours, theirs=theirs):
                for leaf in ("weight", "bias"):
                    zeros = np.zeros(20, np.float32)  # of the keys, which have no bias
                    blocks = [tensors.get(f"{theirs}.{name}.{leaf}", zeros) for name in names]
                    arrays[f"{ours}/{array}/{leaf}"] = np.concatenate(blocks)

            take("self_attention/linear_0", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
            take("self_attention/linear_1", "self_attn.out_proj")
            if part == "decoder":
                take("attention/linear_0", "encoder_attn.q_proj")
                take("attention/linear_1", "encoder_attn.k_proj", "encoder_attn.v_proj")
                take("attention/linear_2", "encoder_attn.out_proj")
                norms[f"layer_{i}/attention/layer_norm"] = f"layers.{i}.encoder_attn_layer_norm"
            take("ffn/linear_0", "fc1")
            take("ffn/linear_1", "fc2")
            norms[f"layer_{i}/self_attention/layer_norm"] = f"layers.{i}.self_attn_layer_norm"
            norms[f"layer_{i}/ffn/layer_norm"] = f"layers.{i}.final_layer_norm"
        for ours, theirs in norms.items():
            arrays[f"{part}/{ours}/gamma"] = tensors[f"{part}.{theirs}.weight"]
            arrays[f"{part}/{ours}/beta"] = tensors[f"{part}.{theirs}.bias"]
    arrays["decoder/embeddings/weight"] = tensors["decoder.embed_tokens.weight"]
    of_convolutions = {f"encoder/conv{i}/{leaf}": tensors[f"encoder.conv{i}.{leaf}"] for i in "12" for leaf in LEAVES}
    return arrays | of_convolutions


LEAVES = ("weight", "bias")


def packed(arrays, version=6, specification="WhisperSpec"):
    """The bytes of a file."""
    string = lambda text: struct.pack("<H", len(text) + 1) + text.encode() + b"\0"
    pieces = [struct.pack("<I", version), string(specification), struct.pack("<II", 3, len(arrays))]
    for name, array in arrays.items():
        shape, data = np.shape(array), np.asarray(array).tobytes()
        sizes = struct.pack(f"<B{len(shape)}I", len(shape), *shape)
        pieces += [string(name), sizes, struct.pack("<BI", KINDS[array.dtype.name], len(data)), data]
    alias = string("decoder/projection/weight") + string("decoder/embeddings/weight")
    return b"".join([*pieces, struct.pack("<I", 1), alias])


@pytest.fixture(scope="module")
def tiny():
    return arrays_of_tiny()


def test_a_file_is_the_model_of_hugging_faces_folder(tmp_path, tiny):
    (tmp_path / "model.bin").write_bytes(packed(tiny))
    (tmp_path / "config.json").write_text("{}")
    module, params, processor = mcl.models.from_pretrained(tmp_path)
    theirs, theirs_params, _ = mcl.models.from_pretrained(TINY)
    jax.tree.map(np.testing.assert_array_equal, params, theirs_params)
    ids = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
    assert [getattr(module.config, name) for name in ids] == [50256, 50256, 50256, 50257]  # as V is below 51865
    assert {**vars(module.config), **dict.fromkeys(ids)} == {**vars(theirs.config), **dict.fromkeys(ids)}
    assert (processor, pretrained.media_of(tmp_path)) == (None, None)
    assert mcl.models.from_pretrained(tmp_path / "model.bin")[0] == module


def test_half_precision_is_read(tmp_path, tiny):
    halves = {name: array.astype(np.float16) if array.dtype == np.float32 else array for name, array in tiny.items()}
    (tmp_path / "model.bin").write_bytes(packed(halves))
    params = mcl.models.from_pretrained(tmp_path)[1]
    rounded = lambda x: np.asarray(x).astype(np.float16).astype(np.float32)
    theirs = mcl.models.from_pretrained(TINY)[1]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, rounded(b)), params, theirs)


@pytest.mark.parametrize("packages", [False, True], ids=["one folder", "packages"])
def test_parts_are_one_file(tmp_path, tiny, packages):
    data, cuts = packed(tiny), [0, 7001, 41999, None]
    folders = [tmp_path / (f"whisper_part{i}" if packages else "whisper") / "data" for i in (1, 2, 3)]
    for i, folder in enumerate(folders):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"model.bin.part{i + 1}").write_bytes(data[cuts[i] : cuts[i + 1]])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folders[0])
    assert pretrained.media_of(folders[0]) == "clips"
    files = ctranslate2_file.find(folders[0])
    assert [file.name for file in files] == ["model.bin.part1", "model.bin.part2", "model.bin.part3"]
    source, theirs = ctranslate2_file.CTranslate2(files), load_file(TINY / "model.safetensors")
    assert set(source.shapes) == set(theirs)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(source.read(name), tensor)
    files[2].unlink()
    with pytest.raises(ValueError, match=r"part1, .*part2 must have at least \d+ bytes, got 41999: .* is missing"):
        mcl.models.from_pretrained(folders[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"encoder/conv1/weight": np.zeros((20, 7), np.float32)},
            r"conv1/weight must have 3 axes, got the shape \(20, 7\)",
        ),
        ({"decoder/embeddings/weight": np.zeros((), np.float32)}, r"embeddings/weight must have 2 axes, got .* \(\)"),
        ({"encoder/position_encodings/encodings": np.float32(3)}, "encodings must have 2 axes"),
        ({"encoder/num_heads": np.float32(np.nan)}, "encoder/num_heads must be an integer, got nan"),
        (
            {"decoder/scale_embeddings": np.zeros((0,), np.int16)},
            r"decoder/scale_embeddings must be one number, got the shape \(0,\)",
        ),
    ],
)
def test_arrays_of_another_shape_are_named(tmp_path, tiny, changed, message):
    (tmp_path / "model.bin").write_bytes(packed(tiny | changed))
    with pytest.raises(ValueError, match=rf"model\.bin: .*{message}"):
        _ = ctranslate2_file.CTranslate2([tmp_path / "model.bin"]).hf_config


def test_sizes_whose_product_overflows_are_refused(tmp_path):
    head = struct.pack("<I", 6) + b"\x0c\0WhisperSpec\0" + struct.pack("<II", 3, 1) + b"\x02\0a\0"
    (tmp_path / "model.bin").write_bytes(head + struct.pack("<B4IBI", 4, *[2**16] * 4, 0, 0) + bytes(4))
    with pytest.raises(ValueError, match=r"model\.bin is damaged: a has 0 bytes for shape \(65536"):
        ctranslate2_file.CTranslate2([tmp_path / "model.bin"])


def test_an_array_comes_once(tmp_path, tiny):
    twice = packed({"decoder/num_headz": np.int16(3)} | tiny).replace(b"num_headz", b"num_heads", 1)
    (tmp_path / "model.bin").write_bytes(twice)
    with pytest.raises(ValueError, match=r"model\.bin is damaged: it has two arrays decoder/num_heads"):
        ctranslate2_file.CTranslate2([tmp_path / "model.bin"])


def without(arrays, name):
    return {key: array for key, array in arrays.items() if key != name}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda tiny: packed(tiny)[:-500], "must have at least .* the file was cut short, or a part of it is missing"),
        (lambda tiny: packed(tiny)[:2], "must have at least 4 bytes, got 2"),
        (lambda tiny: packed(tiny, version=5), "must be a Whisper of CTranslate2 .*, got version 5"),
        (lambda tiny: packed(tiny, specification="TransformerSpec"), "got TransformerSpec"),
        (lambda tiny: struct.pack("<I", 6) + b"\x05\x00words", "byte 6 of .*model.bin must begin a name"),
        (lambda tiny: packed(tiny | {"x/weight": np.zeros((2, 3), np.float32)}), "unknown array 'x/weight'"),
        (
            lambda tiny: packed(tiny | {"encoder/conv1/weight": np.zeros((20, 7, 3), np.int8)}),
            "encoder/conv1/weight is stored as int8; convert the model with quantization='float16'",
        ),
        (
            lambda tiny: packed(tiny | {"decoder/scale_embeddings": np.int8(1)}),
            "decoder/scale_embeddings must be 0, since nothing else is supported, got 1",
        ),
        (
            lambda tiny: packed(without(tiny, "decoder/layer_norm/beta")),
            r"the weights do not fit .* Missing: \['model.decoder.layer_norm.bias'\]",
        ),
        (lambda tiny: packed(without(tiny, "encoder/num_heads")), "must hold an array encoder/num_heads, but has none"),
        (
            lambda tiny: packed(tiny | {"decoder/layer_0/attention/linear_1/bias": np.zeros(41, np.float32)}),
            "linear_1/bias must have a multiple of 2 rows, got 41",
        ),
        (
            lambda tiny: packed(tiny).replace(struct.pack("<BI", 0, 20 * 7 * 3 * 4), struct.pack("<BI", 0, 77)),
            r"is damaged: encoder/conv1/weight has 77 bytes for shape \(20, 7, 3\)",
        ),
    ],
    ids=["short", "empty", "version", "kind", "foreign", "array", "int8", "scale", "missing", "heads", "rows", "size"],
)
def test_files_that_cannot_be_read_are_named(tmp_path, tiny, write, message):
    (tmp_path / "model.bin").write_bytes(write(tiny))
    with pytest.raises(ValueError, match=message):
        mcl.models.from_pretrained(tmp_path)
