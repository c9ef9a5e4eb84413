"""Checkpoints as they are published: other names, heads, quantised or damaged weights, settings."""

import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mcl_jax as mcl
from mcl_jax.models import GPTNeo, GPTNeoConfig, LlamaConfig, families
from mcl_jax.models.rotary import Rope, frequencies_of

GOLDEN = Path(__file__).parents[1] / "golden"
ROPE = "rope_parameters"


def copied(name, folder):
    """A golden model in a folder of its own."""
    return Path(shutil.copytree(GOLDEN / name, folder / "model"))


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors")


def renamed(folder, rename, **more):
    rewrite(folder, lambda tensors: {rename(name): of for name, of in tensors.items()} | more)


def set_config(folder, **changed):
    """Writes `changed` into the config; None takes an entry out."""
    config = json.loads((folder / "config.json").read_text()) | changed
    (folder / "config.json").write_text(json.dumps({name: of for name, of in config.items() if of is not None}))


def assert_loads_the_same(folder, name):
    _, params, _ = mcl.models.from_pretrained(folder)
    jax.tree.map(np.testing.assert_array_equal, params, mcl.models.from_pretrained(GOLDEN / name)[1])


# ------------------------------------------------------------------------------------------------------------- Names


@pytest.mark.parametrize("headed", [False, True], ids=["base", "head"])
@pytest.mark.parametrize("masked", [False, True], ids=["now", "old"])
def test_gpt2_loads_without_a_prefix_and_with_its_masks_and_head(headed, masked, tmp_path):
    """The published file has names without "transformer.", masks, and no head."""
    folder = copied("models/gpt2", tmp_path)
    masks = (
        {"h.0.attn.bias": np.ones((1, 1, 5, 5), bool), "h.0.attn.masked_bias": np.full((), -1e4, np.float32)}
        if masked
        else {}
    )
    head = load_file(folder / "model.safetensors")["transformer.wte.weight"]
    renamed(
        folder, lambda name: name.removeprefix("transformer."), **masks, **({"lm_head.weight": head} if headed else {})
    )
    assert_loads_the_same(folder, "models/gpt2")


def test_gpt_neo_loads_without_a_prefix(tmp_path):
    config = GPTNeoConfig(
        vocab_size=11,
        hidden_size=6,
        num_layers=2,
        num_heads=3,
        max_position_embeddings=5,
        window_size=3,
        attention_layers=("global", "local"),
    )
    params = GPTNeo(config).init(jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    mcl.models.save_pretrained(tmp_path, GPTNeo(config), params)
    renamed(tmp_path, lambda name: name.removeprefix("transformer."), **{"h.1.attn.attention.bias": np.ones(3, bool)})
    jax.tree.map(np.testing.assert_array_equal, mcl.models.from_pretrained(tmp_path)[1], params)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_llama_without_its_head_loads_where_that_is_tied(prefix, tmp_path):
    folder = copied("models/llama_tied_biased", tmp_path)
    heads = {"score.weight": np.ones((2, 3), np.float32), "qa_outputs.bias": np.ones(2, np.float32)}
    renamed(folder, lambda name: prefix + name.removeprefix("model."), **heads)
    assert_loads_the_same(folder, "models/llama_tied_biased")


def test_of_a_llama_without_its_head_the_head_alone_is_named(tmp_path):
    folder = copied("models/llama", tmp_path)
    rewrite(folder, lambda tensors: {n.removeprefix("model."): of for n, of in tensors.items() if "lm_head" not in n})
    with pytest.raises(ValueError, match=r"Missing: \['lm_head.weight'\]. Unexpected: \[\]"):
        mcl.models.from_pretrained(folder)


def test_qwen2_audio_loads_as_a_model_without_a_head(tmp_path):
    """transformers 5 writes `Qwen2AudioModel` without the "model" of the language model."""
    folder = copied("qwen2_audio/tied", tmp_path)
    without = lambda name: name.replace("model.language_model.", "language_model.").replace(
        "language_model.model.", "language_model."
    )
    rewrite(folder, lambda tensors: {without(n): of for n, of in tensors.items() if "lm_head" not in n})
    assert_loads_the_same(folder, "qwen2_audio/tied")


# ----------------------------------------------------------------------------------------------------------- Weights


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_weights_that_are_not_finite_are_named(value, dtype, tmp_path):
    folder = copied("models/llama", tmp_path)
    name = "model.layers.2.mlp.down_proj.weight"

    def damage(tensors):
        tensors = {name: of.astype(dtype) for name, of in tensors.items()}
        tensors[name][3, 5] = value
        return tensors

    rewrite(folder, damage)
    with pytest.raises(ValueError, match=f"{name} must hold finite numbers"):
        mcl.models.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.float8_e4m3fn], ids=["int8", "fp8"])
def test_weights_that_are_no_floats_are_named_whatever_the_config_says(dtype, tmp_path):
    folder = copied("models/llama", tmp_path)
    name = "model.layers.1.self_attn.q_proj.weight"
    rewrite(folder, lambda tensors: tensors | {name: tensors[name].astype(dtype)})
    with pytest.raises(ValueError, match=rf"\(not quantised\), but .*{name} is stored as (I8|F8_E4M3)"):
        mcl.models.from_pretrained(folder)


QUANTISED = {
    "gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "awq": {"quantization_config": {"quant_method": "awq", "bits": 4}},
    "fp8": {"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"}},
    "bitsandbytes": {"quantization_config": {"load_in_4bit": True}},
    "compressed-tensors": {"compression_config": {"format": "pack-quantized", "quant_method": "compressed-tensors"}},
    "hqq": {"text_config": {"quantization_config": {"quant_method": "hqq"}}},
}


@pytest.mark.parametrize("method", QUANTISED)
def test_quantised_folders_are_refused_by_name_before_anything_is_loaded(method, tmp_path):
    folder = copied("models/llama", tmp_path)
    set_config(folder, **QUANTISED[method])
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"model: the weights are quantised with {method} "):
        mcl.models.from_pretrained(folder)


@pytest.mark.parametrize(("file", "method"), [("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ")])
def test_folders_of_older_quantisers_are_refused(file, method, tmp_path):
    folder = copied("models/llama", tmp_path)
    (folder / file).write_text('{"bits": 4}')
    with pytest.raises(ValueError, match=f"quantised with {method} "):
        mcl.models.from_pretrained(folder)


def test_bitsandbytes_that_is_switched_off_is_no_quantisation(tmp_path):
    folder = copied("models/llama", tmp_path)
    off = {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": False}
    set_config(folder, quantization_config=off, compression_config={})
    assert_loads_the_same(folder, "models/llama")


# ---------------------------------------------------------------------------------------------------------- Settings


@pytest.mark.parametrize("factor", [{}, {"factor": None}], ids=["absent", "null"])
def test_a_yarn_without_a_factor_has_the_ratio_of_the_lengths(factor):
    """As transformers: 4096 / 512 = 8."""
    of = lambda **given: Rope.from_hf(
        {"max_position_embeddings": 4096, ROPE: {"rope_type": "yarn", "original_max_position_embeddings": 512} | given}
    )
    assert of(**factor) == of(factor=8.0) != of(factor=1.0)
    positions = np.arange(7)[None]
    for ours, theirs in zip(*(frequencies_of(r, 10, positions) for r in (of(**factor), of(factor=8.0))), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_all_that_transformers_needs_of_a_scaling_is_written():
    rope = Rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=97)
    assert {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}.items() <= rope.to_hf().items()
    assert Rope.from_hf({"max_position_embeddings": 2048, ROPE: rope.to_hf()}) == rope


def test_dynamic_scaling_starts_where_transformers_starts_it():
    """At max_position_embeddings, whatever the length of pretraining."""
    given = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 11}
    assert Rope.from_hf({"max_position_embeddings": 64, ROPE: given}).original == 64


def test_what_a_mistral_or_qwen2_leaves_out_is_transformers_default():
    sizes = dict(vocab_size=41, hidden_size=64, intermediate_size=12, num_hidden_layers=30, num_attention_heads=32)
    mistral = LlamaConfig.from_hf({"model_type": "mistral"} | sizes)
    assert (mistral.num_key_value_heads, set(mistral.windows)) == (8, {4096})
    assert mistral.rope.max_positions == 131072
    assert set(LlamaConfig.from_hf({"model_type": "mistral", "sliding_window": None} | sizes).windows) == {None}
    qwen2 = LlamaConfig.from_hf({"model_type": "qwen2", "use_sliding_window": True} | sizes)
    assert qwen2.windows == (None,) * 28 + (4096,) * 2
    assert LlamaConfig.from_hf({"model_type": "llama"} | sizes).num_key_value_heads == 32


def test_the_token_of_a_clip_is_read_under_both_of_its_names():
    config = json.loads((GOLDEN / "qwen2_audio" / "tied" / "config.json").read_text())
    index = config.pop("audio_token_index")
    assert families.build(config | {"audio_token_id": index})[1].config.audio_token_index == index


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_hidden_layers": "3"}, "num_hidden_layers must be an integer of at least 1, got '3'"),
        ({"hidden_size": 24.0}, "hidden_size must be an integer of at least 1, got 24.0"),
        ({"num_attention_heads": 0}, "num_attention_heads must be at least 1, got 0"),
        ({"num_key_value_heads": True}, "num_key_value_heads must be an integer of at least 1, got True"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps must be a finite number, got '1e-6'"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a finite number, got nan"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false, got 'no'"),
        ({"model_type": ["llama"]}, r"unknown model_type \['llama'\]"),
        ({ROPE: {"rope_type": "linear"}}, r"rope_type 'linear' needs \['factor'\]"),
        ({ROPE: {"rope_type": "dynamic", "factor": "2"}}, "factor must be a finite number, got '2'"),
        ({ROPE: {"rope_type": "linear", "factor": 0.0}}, "factor of rotary embeddings must be above 0, got 0.0"),
        ({ROPE: {"rope_type": "default", "mrope_section": [2, 1]}}, r"not supported: \['mrope_section'\]"),
        ({ROPE: {"rope_type": "yarn", "factor": 4.0, "attn_factor": 0.9}}, r"not supported: \['attn_factor'\]"),
        ({ROPE: {"full_attention": {"rope_type": "default"}}}, r"not supported: \['full_attention'\]"),
        ({ROPE: {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "short_factor must be"),
        ({ROPE: {"rope_type": "longrope", "short_factor": [1.0, 1.0]}}, r"'longrope' needs \['long_factor'\]"),
        ({ROPE: "linear"}, "rope_parameters must be an object, got 'linear'"),
        ({"model_type": "llava_next", "text_config": [1], "vision_config": {"patch_size": 4}}, "of the wrong type"),
        ({"model_type": "mistral", "sliding_window": 5, "layer_types": ["full_attention"] * 3}, "not have layer_types"),
        ({"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["chunked"] * 3}, r"got \['chunked'\]"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "rope_layers must have one entry for each of 3 layers"),
        ({"model_type": "smollm3", "no_rope_layers": 1}, "of the wrong type"),
        ({"model_type": "qwen3_moe"}, r"unknown model_type 'qwen3_moe'; .*\(nearest: qwen3, "),
    ],
)
def test_settings_that_are_not_computed_are_named_with_their_file(changed, message, tmp_path):
    folder = copied("models/llama", tmp_path)
    set_config(folder, **changed)
    with pytest.raises(ValueError, match=rf"model.config\.json: .*{message}") as error:
        mcl.models.from_pretrained(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"model_type": "ll\xe9ma"}', "is not text in UTF-8"),
        (b"\xff\xfe{\x00}\x00", "is not text in UTF-8"),
        (b'{"model_type": ', "is not valid JSON"),
        (b"[" * 100000, "is not valid JSON"),
        (b"[1, 2]", "must hold a JSON object, got list"),
        (b"", "is not valid JSON"),
    ],
)
@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_json_that_is_none_is_named(file, content, message, tmp_path):
    folder = copied("models/llama", tmp_path)
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} {message}"):
        mcl.models.from_pretrained(folder)


def test_modules_name_the_values_they_do_not_take():
    """Not only what a file says."""
    with pytest.raises(ValueError, match="num_layers must be an integer of at least 1, got '2'"):
        mcl.models.GPT2Config(vocab_size=11, hidden_size=6, num_layers="2", num_heads=3, max_position_embeddings=5)
