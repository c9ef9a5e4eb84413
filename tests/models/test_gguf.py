"""GGUF files as llama.cpp writes them: the logits of what they were made from, their tokenizer, and what is refused.

Written with llama.cpp's own `gguf` package. Its converter's interleaving of the rows of queries and keys, and its
factors of Llama 3's frequencies, are written here once more.
"""

import json
import math
import re
import struct
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from toys import randomized
from transformers import Qwen2Tokenizer

import mcl_jax as mcl
from mcl_jax.models import Llama, LlamaConfig, families, gguf_tokenizer, names, pretrained
from mcl_jax.models.gguf_file import GGUF

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
Q8_0 = gguf.GGMLQuantizationType.Q8_0
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = ["<s>", "</s>", "Ġ", "1", "2", *LETTERS, "ca", "cat", "Ġcat", "12"]
MERGES = ["c a", "ca t", "Ġ cat", "1 2"]


def write(file, config, tensors, kind=None, model="gpt2", pre="gpt-2", extra=(), split=0, said=None, **fields):
    """Writes Hugging Face's tensors and config as a GGUF file; matrices quantised if `kind` says how.

    With `split`, as files of so many tensors. `said` are further metadata of the architecture, as they are.
    """
    family = config["model_type"]
    writer = gguf.GGUFWriter(file, family, split_max_tensors=split)
    for name, value in (said or {}).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
        add[type(value)](f"{family}.{name}", value)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, family.upper()), config["num_hidden_layers"])
    sizes = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "head_count": config["num_attention_heads"],
        "head_count_kv": config["num_key_value_heads"],
        "layer_norm_rms_eps": config["rms_norm_eps"],
        "rope_freq_base": config["rope_parameters"]["rope_theta"],
    }
    if config["head_dim"] * config["num_attention_heads"] != config["hidden_size"]:
        sizes["key_length"] = config["head_dim"]
    for name, value in (sizes | fields).items():
        if value is not None:
            getattr(writer, f"add_{name}")(value)
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_merges(MERGES)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(TOKENS) - 2))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, tensor in tensors.items():
        if family in ("llama", "smollm3"):
            tensor = interleaved(name, tensor, config)
        quantised = kind is not None and tensor.ndim == 2
        data = gguf.quantize(tensor, kind) if quantised else tensor
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), data, raw_dtype=kind if quantised else None)
    if config["rope_parameters"]["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(config))
    for name, data in extra:
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def interleaved(name, tensor, config):
    """Rows of queries and keys as llama.cpp's converter puts them: the halves of a head by turns."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    split = tensor.reshape(config[heads], 2, tensor.shape[0] // config[heads] // 2, *tensor.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(tensor.shape))


def llama3_factors(config):
    """By what llama.cpp divides each frequency [d/2]: 1 for short wave lengths, `factor` for long ones."""
    rope, dim = config["rope_parameters"], config["head_dim"]
    original, low, high = (
        rope[f"{k}"] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    factors = []
    for i in range(0, dim, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (i / dim)
        smooth = (original / wave - low) / (high - low)
        between = 1 / ((1 - smooth) / rope["factor"] + smooth)
        factors.append(1.0 if wave < original / high else rope["factor"] if wave > original / low else between)
    return np.array(factors, np.float32)


def golden(name):
    """Config and tensors of a golden model."""
    return json.loads((GOLDEN / name / "config.json").read_text()), load_file(GOLDEN / name / "model.safetensors")


def logits(loaded, tokens):
    module, params, _ = loaded
    return np.asarray(module.apply({"params": params}, jnp.asarray(tokens)))


@pytest.fixture(scope="module")
def llama():
    """Config, tensors and module with parameters of a Llama whose rows are multiples of 32, with grouped queries."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    module = Llama(config)
    params = module.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    hf_config = config.to_hf()
    return hf_config, pretrained.state_dict(params, families.of_config(hf_config)), module, params


# ------------------------------------------------------------------------------------------------------------ Logits


@pytest.mark.parametrize("scan", [False, True], ids=["list", "scan"])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_logits_are_hugging_faces(name, scan, tmp_path):
    """The Llama has grouped queries and Llama 3's frequencies, the Qwen2 biases and tied embeddings."""
    expected = np.load(GOLDEN / name / "expected.npz")
    loaded = mcl.models.from_pretrained(write(tmp_path / "m.gguf", *golden(name)), scan=scan)
    np.testing.assert_allclose(logits(loaded, expected["tokens"]), expected["logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "special", [dict(qk_norm=True, head_dim=10), dict(rope_layers=(True, True, True, False, True))]
)
def test_qwen3_and_smollm3_are_those_written(special, tmp_path):
    """Norms of queries and keys, and layers without rotation, whose rows are interleaved all the same."""
    sizes = dict(vocab_size=41, hidden_size=24, intermediate_size=26, num_hidden_layers=5, num_attention_heads=6)
    sizes |= dict(num_key_value_heads=2, rms_norm_eps=2.0**-20, tie_word_embeddings=True)
    module = Llama(LlamaConfig(**sizes, **special))
    params = randomized(names.abstract_params(module), seed=3)
    hf_config = module.config.to_hf()
    tensors = pretrained.state_dict(params, families.of_config(hf_config))
    read = mcl.models.from_pretrained(write(tmp_path / "m.gguf", hf_config, tensors))
    assert read[0].config == module.config
    jax.tree.map(np.testing.assert_array_equal, read[1], params)


def test_weights_in_float32_are_those_written(llama, tmp_path):
    config, tensors, _, params = llama
    _, read, _ = mcl.models.from_pretrained(write(tmp_path / "m.gguf", config, tensors))
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_quantised_weights_are_near_those_written(llama, tmp_path):
    """Q8_0 rounds 32 weights of a row to steps of 1/127 of the largest, the step to float16: 0.5 + 127 / 2^11 steps.

    Weights are off by 0.7 % of their spread in 16 matrices, so logits by a few percent of theirs.
    """
    config, tensors, module, params = llama
    loaded = mcl.models.from_pretrained(write(tmp_path / "m.gguf", config, tensors, kind=Q8_0))
    read = pretrained.state_dict(loaded[1], families.of_config(config))
    for name, tensor in tensors.items():
        if tensor.ndim == 2:
            blocks = tensor.reshape(len(tensor), -1, 32)
            steps = np.abs(blocks).max(-1, keepdims=True) / 127
            assert (np.abs(read[name].reshape(blocks.shape) - blocks) / steps).max() < 0.57, name
        else:
            np.testing.assert_array_equal(read[name], tensor)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 9))
    plain = logits((module, params, None), tokens)
    assert (logits(loaded, tokens) - plain).std() < 0.05 * plain.std()


# --------------------------------------------------------------------------------------------------------- Tokenizer


def test_the_tokenizer_in_the_file_round_trips(llama, tmp_path):
    file = write(tmp_path / "m.gguf", *llama[:2], chat_template="{{ messages }}")
    tokenizer = mcl.models.from_pretrained(file)[2]
    ids = tokenizer.encode("cat cat sat</s>")
    assert tokenizer.convert_ids_to_tokens(ids) == ["cat", "Ġcat", "Ġ", "s", "a", "t", "</s>"]
    assert ids == [TOKENS.index(token) for token in tokenizer.convert_ids_to_tokens(ids)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "cat cat sat"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, None)
    assert tokenizer.chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("pre", "tokens"),
    [
        ("default", ["12"]),
        ("smollm", ["1", "2"]),
        ("qwen2", ["1", "2"]),
        ("deepseek-r1-qwen", ["1", "2"]),
        ("llama-bpe", ["12"]),
        ("smaug-bpe", ["12"]),
    ],
)
def test_pre_tokenizers_differ_in_numbers(llama, tmp_path, pre, tokens):
    tokenizer = mcl.models.from_pretrained(write(tmp_path / "m.gguf", *llama[:2], pre=pre))[2]
    assert tokenizer.tokenize("12") == tokens
    begin = "<s>" if pre == "llama-bpe" else ""  # as llama.cpp does where add_bos_token is absent
    assert tokenizer.decode(tokenizer.encode("cat 12 cat")) == f"{begin}cat 12 cat"


def test_qwen2_splits_as_hugging_faces(llama, tmp_path):
    """And Llama 3 but for its numbers, of three digits at most."""
    texts = ["I'LL go: 12345 cats ", " naïve\n\n  x\ty", "e\u0301a!!\n 东京2024?", "don't...\r\n-12"]
    ours, llama3 = (
        mcl.models.from_pretrained(write(tmp_path / f"{pre}.gguf", *llama[:2], pre=pre))[2]
        for pre in ("qwen2", "llama-bpe")
    )
    theirs = Qwen2Tokenizer(dict(zip(TOKENS, range(len(TOKENS)), strict=True)), [tuple(m.split()) for m in MERGES])
    split = lambda tokenizer, text: tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    for text in texts:
        assert split(ours, text) == split(theirs, text)
        letters = "".join(c for c in text if not c.isdigit())
        assert split(llama3, letters) == split(theirs, letters)
    assert [word for word, _ in split(llama3, "12345")] == ["123", "45"]
    normal = lambda tokenizer: tokenizer.backend_tokenizer.normalizer
    assert normal(ours).normalize_str("e\u0301") == normal(theirs).normalize_str("e\u0301") == "é"
    assert normal(llama3) is None


def test_tokenizer_files_beside_the_file_come_first(llama, tmp_path):
    write(tmp_path / "m.gguf", *llama[:2], model="llama")
    theirs = Qwen2Tokenizer({"<|endoftext|>": 0, "z": 1}, [])
    theirs.save_pretrained(tmp_path)
    assert mcl.models.from_pretrained(tmp_path)[2].encode("zz") == [1, 1]


# ------------------------------------------------------------------------------------------------------------ Errors


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.999])
def test_a_file_cut_short_is_named(llama, tmp_path, kept):
    file = write(tmp_path / "m.gguf", *llama[:2])
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"m\.gguf is damaged or not a GGUF file"):
        mcl.models.from_pretrained(file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(extra=[("blk.0.ssm.weight", np.zeros(3, np.float32))]), "unknown tensor 'blk.0.ssm.weight'"),
        (dict(model="bert", pre="default"), "tokenizer 'bert' with pre-tokenizer 'default' is not supported"),
        (dict(model="llama"), "must have tokenizer.ggml.scores for its tokenizer 'llama'"),
        (dict(pre="tekken"), "tokenizer 'gpt2' with pre-tokenizer 'tekken' is not supported"),
        (dict(rope_scaling_type=gguf.RopeScalingType.YARN), "uses rotary scaling, which is not supported"),
        (dict(said={"rope.scale_linear": 4.0}), "settings that are not supported: llama.rope.scale_linear = 4.0"),
        (dict(said={"attention.causal": False}), "settings that are not supported: llama.attention.causal = False"),
        (dict(expert_count=8), "settings that are not supported: llama.expert_count = 8"),
        (dict(sliding_window=7), "settings that are not supported: llama.attention.sliding_window = 7"),
        (dict(rope_dimension_count=8), "rope.dimension_count must be the width of a head, 16, got 8"),
        (dict(value_length=8), "attention.value_length must be the width of a head, 16, got 8"),
        (dict(head_count=None, said={"attention.head_count": [4, 4]}), "head_count must be one number above 0"),
        (dict(head_count=0), "head_count must be one number above 0, got 0"),
        (dict(extra=[("blk.0.attn_q.bias", np.zeros(64, np.int32))]), "q_proj.bias is stored as I32"),
        (dict(block_count=None), r"m\.gguf must have an entry llama\.block_count"),
        (dict(block_count=3), r"Missing: \['model\.layers\.2\."),
        (dict(head_count_kv=4), r"k_proj\.weight must have shape \(64, 64\), got \(32, 64\)"),
    ],
)
def test_files_that_do_not_fit_are_refused(llama, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        mcl.models.from_pretrained(write(tmp_path / "m.gguf", *llama[:2], **options))


def entry(kind, value):
    """An entry "x" of the metadata, as the only one of a file."""
    return b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"x" + struct.pack("<I", kind) + value


def tensor(shape, kind=0, offset=0):
    """A tensor "x" as the only one of a file, and 32 bytes of data."""
    head = b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"x" + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return head + struct.pack("<IQ", kind, offset) + bytes(64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (entry(9, struct.pack("<IQ", 0, 2**62)), r"it claims at least \d+ bytes, got"),  # gguf reads on for ever
        (entry(9, struct.pack("<IQ", 8, 2**62) + bytes(80)), r"it claims at least \d+ bytes, got"),
        (entry(8, struct.pack("<Q", 2**63) + b"a"), r"it claims at least \d+ bytes, got"),
        (entry(9, struct.pack("<IQ", 9, 1)), "x must be made of numbers or texts, got the kind 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "it claims at least"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "its version must be 2 or 3, little-endian"),
        (tensor((2**32, 2**32)), r"the tensor x ends at byte \d{20}, but the file has"),
        (tensor((8,), offset=32), "the tensor x must begin at byte 0 of the data, got 32"),
        (tensor((7,), kind=8), r"the tensor x must be of a known kind in whole blocks, got 8 and \[7\]"),
        (tensor((1,) * 5), "the tensor x must have at most 4 axes, got 5"),
    ],
)
def test_a_file_that_claims_more_than_it_holds_is_refused(tmp_path, content, message):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=rf"m\.gguf is damaged or not a GGUF file: {message}"):
        GGUF(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": "cat"}, "tokens must hold texts, got ['cat']"),
        ({"token_type": 3}, "token_type must hold integers, got [3]"),
        ({"merges": [7]}, "merges must hold texts, got [7]"),
        ({"add_bos_token": "false"}, "add_bos_token must be true or false, got 'false'"),
    ],
)
def test_metadata_of_another_type_are_refused(given, message):
    metadata = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b"], "merges": []} | given
    with pytest.raises(ValueError, match=re.escape(f"m.gguf: tokenizer.ggml.{message}")):
        gguf_tokenizer.build(Path("m.gguf"), {f"tokenizer.ggml.{name}": value for name, value in metadata.items()})


def test_long_pieces_are_refused():
    """All cuts of a piece are tried, which takes 10^10 steps for one of 100,000 letters."""
    metadata = {"model": "llama", "tokens": ["a" * 100_000], "scores": [0.0]}
    with pytest.raises(ValueError, match=r"m\.gguf: tokenizer\.ggml\.tokens must have at most 1024 characters each"):
        gguf_tokenizer.build(Path("m.gguf"), {f"tokenizer.ggml.{name}": value for name, value in metadata.items()})


def test_an_unknown_architecture_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "falcon")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"m\.gguf: architecture 'falcon' is not one of .'gemma2', "):
        mcl.models.from_pretrained(tmp_path / "m.gguf")


def test_a_folder_holds_one_file(llama, tmp_path):
    write(tmp_path / "a.gguf", *llama[:2])
    assert mcl.models.from_pretrained(tmp_path)[0].config.num_key_value_heads == 2
    write(tmp_path / "b.gguf", *llama[:2])
    with pytest.raises(ValueError, match=r"holds several GGUF files; pass the path of one of \['a\.gguf', 'b\.gguf'\]"):
        mcl.models.from_pretrained(tmp_path)


def test_settings_that_change_nothing_are_taken(llama, tmp_path):
    harmless = {"rope.scale_linear": 1.0, "expert_count": 0, "attention.causal": True, "vocab_size": 64}
    mcl.models.from_pretrained(write(tmp_path / "m.gguf", *llama[:2], rope_dimension_count=16, said=harmless))


def test_weights_that_are_not_finite_are_named(llama, tmp_path):
    tensors = dict(llama[1])
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = np.where(np.arange(64) == 7, np.nan, tensors[name]).astype(np.float32)
    with pytest.raises(ValueError, match=f"{name} must hold finite numbers"):
        mcl.models.from_pretrained(write(tmp_path / "m.gguf", llama[0], tensors))


# ------------------------------------------------------------------------------------------------------- Split files


@pytest.fixture
def parts(llama, tmp_path):
    """The names of a model in files of seven tensors each."""
    write(tmp_path / "m.gguf", *llama[:2], split=7)
    return sorted(tmp_path.glob("m-*-of-00003.gguf"))


def test_a_split_model_is_read_from_any_of_its_parts_and_from_its_folder(llama, parts):
    assert len(parts) == 3
    for path in (*parts, parts[0].parent):
        _, params, tokenizer = mcl.models.from_pretrained(path)
        jax.tree.map(np.testing.assert_array_equal, params, llama[3])
        assert tokenizer.tokenize("cat") == ["cat"]


def test_a_part_that_is_missing_broken_or_of_another_model_is_named(llama, parts, tmp_path):
    content = parts[1].read_bytes()
    parts[1].write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"m-00002-of-00003\.gguf is damaged or not a GGUF file"):
        mcl.models.from_pretrained(parts[0])
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(ValueError, match=r"m-00002-of-00003\.gguf must be part 2 of 3"):
        mcl.models.from_pretrained(parts[0])
    parts[1].unlink()
    with pytest.raises(ValueError, match=r"m-00002-of-00003\.gguf, a part of a split GGUF file, does not exist"):
        mcl.models.from_pretrained(parts[2])
    with pytest.raises(ValueError, match=r"renamed\.gguf is part 1 of 3 of a split GGUF file"):
        mcl.models.from_pretrained(parts[0].rename(tmp_path / "renamed.gguf"))


def test_parts_of_two_models_in_one_folder_are_several_files(llama, parts, tmp_path):
    write(tmp_path / "n.gguf", *llama[:2])
    with pytest.raises(ValueError, match="holds several GGUF files"):
        mcl.models.from_pretrained(tmp_path)
