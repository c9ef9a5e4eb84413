"""Gemma 1, 2 and 3: settings as transformers reads them, what is refused, capped likelihoods, and GGUF files.

Logits, greedy tokens and kept keys are compared with Hugging Face in test_pretrained, adapters in test_interop.
"""

import dataclasses
import json
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published_sizes import config_of
from safetensors.numpy import load_file, save_file
from test_gguf import write
from toys import randomized
from transformers import AutoConfig

import mcl_jax as mcl
from mcl_jax.models import Gemma, GemmaConfig, families, names, pretrained, quantized
from mcl_jax.models.gguf_file import GGUF
from mcl_jax.models.rotary import Rope

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
LOCAL, GLOBAL = "sliding_attention", "full_attention"
SIZES = dict(vocab_size=41, hidden_size=24, intermediate_size=26, num_attention_heads=6, num_key_value_heads=2)
SIZES |= dict(head_dim=10, rms_norm_eps=2.0**-20, query_pre_attn_scalar=10, tie_word_embeddings=True)


def gemma2(layers=3, window=4, **changed):
    windows = [None if i % 2 else window for i in range(layers)]
    caps = dict(attn_logit_softcapping=1.5, final_logit_softcapping=2.5)
    return GemmaConfig(**SIZES | caps | dict(num_hidden_layers=layers, sliding_windows=windows) | changed)


def gemma3(layers=7, window=4, **changed):
    special = dict(qk_norm=True, rope_layers=[i % 6 == 5 for i in range(layers)])
    special |= dict(sliding_windows=[None if i % 6 == 5 else window for i in range(layers)])
    ropes = dict(rope=Rope(1e6, "linear", factor=8.0), local_rope=Rope(1e4))
    return GemmaConfig(**SIZES | special | ropes | dict(num_hidden_layers=layers) | changed)


# ---------------------------------------------------------------------------------------------------------- Settings


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text"])
def test_what_a_gemma_leaves_out_is_transformers_default(model_type):
    """As the text parts of Gemma 3 do, in whose files hardly a size stands."""
    theirs = AutoConfig.for_model(model_type).to_dict()
    assert GemmaConfig.from_hf({"model_type": model_type}) == GemmaConfig.from_hf(theirs)


@pytest.mark.parametrize(
    ("name", "global_layers", "window", "scalar", "factor"),
    [
        ("gemma-2-2b", range(1, 26, 2), 4096, 256, 1.0),
        ("gemma-2-27b", range(1, 46, 2), 4096, 144, 1.0),
        ("gemma-3-270m", range(5, 18, 6), 512, 256, 1.0),
        ("gemma-3-1b", range(5, 26, 6), 512, 256, 1.0),
        ("gemma-3-4b-text", range(5, 34, 6), 1024, 256, 8.0),
        ("gemma-3-27b-text", range(5, 62, 6), 1024, 168, 8.0),
    ],
)
def test_layers_of_published_models(name, global_layers, window, scalar, factor):
    config = families.build(config_of(name))[1].config
    whole = tuple(i in global_layers for i in range(config.num_hidden_layers))
    assert config.windows == tuple(None if one else window for one in whole)
    assert config.attention_scale == scalar**-0.5
    assert config.rope.factor == factor
    if name.startswith("gemma-2"):
        caps = config.attention_cap, config.final_logit_softcapping
        assert (config.rope_layers, config.local_rope, config.qk_norm, caps) == (None, None, False, (50.0, 30.0))
    else:
        thetas = config.rope.rope_theta, config.local_rope.rope_theta
        assert (config.rope_layers, thetas, config.qk_norm) == (whole, (1e6, 1e4), True)
        assert (config.attention_cap, config.local_rope.factor, config.final_logit_softcapping) == (None, 1.0, None)


def test_a_null_takes_away_a_window_or_a_cap():
    nulls = dict(sliding_window=None, attn_logit_softcapping=None, final_logit_softcapping=None)
    config = GemmaConfig.from_hf({"model_type": "gemma2", "num_hidden_layers": 3} | nulls)
    assert (config.windows, config.attention_cap, config.final_logit_softcapping) == ((None,) * 3, None, None)
    assert GemmaConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(hidden_activation="gelu"), "hidden_activation must be 'gelu_pytorch_tanh', got 'gelu'"),
        (dict(use_bidirectional_attention=True), "use_bidirectional_attention must be false"),
        (dict(attn_logit_softcapping=50.0), "must be null, as transformers ignores it, got 50.0"),
        (dict(final_logit_softcapping=0.0), "final_logit_softcapping must be above 0, got 0.0"),
        (dict(query_pre_attn_scalar=-1), "query_pre_attn_scalar must be at least 1, got -1"),
        (dict(layer_types=["chunked_attention"]), "layer_types must be 'full_attention' or .* got .'chunked"),
        (dict(layer_types=[LOCAL, GLOBAL]), "sliding_windows must have one entry for each of 26 layers, got 2"),
        (dict(sliding_window=0), "sliding_window must be at least 1, got 0"),
        (dict(num_hidden_layers=10**15), "num_hidden_layers must be at most 10000, got 1000000000000000"),
        (dict(sliding_window_pattern=0), "sliding_window_pattern must be at least 1, got 0"),
        (dict(rope_parameters=dict(rope_theta=1.0)), r"must have only .'full_attention', 'sliding_attention'.*, got"),
        (dict(rope_scaling=dict(rope_type="linear")), r"rope_type 'linear' needs \['factor'\]"),
        (dict(head_dim=9), "head_dim must be even"),
        (dict(model_type="gemma4"), "model_type must be one of .*, got 'gemma4'"),
        (dict(model_type="gemma", hidden_act="silu"), "hidden_act must be 'gelu_pytorch_tanh', got 'silu'"),
    ],
)
def test_what_the_model_cannot_compute_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        GemmaConfig.from_hf({"model_type": "gemma3_text"} | changed)


def test_gemma_1_has_two_norms_and_neither_windows_nor_caps():
    """Its config.json has no entries for them; transformers ignores those that stand there all the same."""
    config = GemmaConfig.from_hf({"model_type": "gemma"} | SIZES | dict(hidden_act="gelu", sliding_window=4))
    assert config == GemmaConfig(**SIZES | dict(num_hidden_layers=28, rope=Rope(max_positions=8192)), four_norms=False)
    written = json.loads(json.dumps(config.to_hf()))
    assert GemmaConfig.from_hf(AutoConfig.for_model(**written).to_dict()) == config
    with pytest.raises(ValueError, match="a gemma config.json cannot describe final_logit_softcapping of this model"):
        dataclasses.replace(config, final_logit_softcapping=2.5).to_hf()


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."], ids=["published", "in memory"])
def test_the_text_part_of_a_gemma_that_sees_is_read(prefix, tmp_path):
    """Under the names of published files, or those that transformers has in memory; the tower is passed over."""
    tensors = load_file(GOLDEN / "gemma3" / "model.safetensors")
    renamed = {name.replace("model.", prefix, 1): tensor for name, tensor in tensors.items()}
    renamed["vision_tower.vision_model.post_layernorm.weight"] = np.zeros(3, np.float32)
    renamed["multi_modal_projector.mm_input_projection_weight"] = np.zeros((3, 24), np.float32)
    save_file(renamed, tmp_path / "model.safetensors")
    text_config = json.loads((GOLDEN / "gemma3" / "config.json").read_text())
    config = {"model_type": "gemma3", "text_config": text_config, "vision_config": {}, "mm_tokens_per_image": 256}
    (tmp_path / "config.json").write_text(json.dumps(config))
    module, params, _ = mcl.models.from_pretrained(tmp_path)
    expected = mcl.models.from_pretrained(GOLDEN / "gemma3")
    assert module.config == expected[0].config and module.config.family == "gemma3_text"
    jax.tree.map(np.testing.assert_array_equal, params, expected[1])


@pytest.mark.parametrize(
    ("changed", "lost"),
    [
        (dict(o_bias=True), "o_bias"),
        (dict(mlp_bias=True), "mlp_bias"),
        (dict(sliding_windows=[4, 4, None]), "sliding_windows"),
        (dict(attn_logit_softcapping=3.0), "attn_logit_softcapping of a gemma3_text must be null"),
    ],
)
def test_settings_that_no_config_json_describes_are_not_written(changed, lost):
    with pytest.raises(ValueError, match=lost):
        gemma3(3, **changed).to_hf()


def test_one_rotation_for_all_or_two():
    with pytest.raises(ValueError, match="rope_layers and local_rope must be given together, got None and Rope"):
        gemma2(local_rope=Rope())


# -------------------------------------------------------------------------------------------------------- Likelihood


@pytest.mark.slow
def test_likelihoods_and_gradients_are_those_of_capped_logits():
    """Through chunks, for three hypotheses; the cap of Gemma 2's golden model bends most of its logits."""
    module, params, _ = mcl.models.from_pretrained(GOLDEN / "gemma2")
    tokens = jnp.asarray(np.load(GOLDEN / "gemma2" / "expected.npz")["tokens"])
    mask = jnp.arange(10)[None] >= jnp.array([[2], [5], [9]])
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=2, alpha=3, targets=mcl.models.lora_targets(module)))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), params, tokens, num_hypotheses=3))
    adapters = randomized(shapes, scale=0.3)
    log_likelihood = mcl.language_model.log_likelihood_fn(model, chunk_size=4)

    def at_once(params, adapters_k, batch, rng):
        logits = model.apply(params, adapters_k, batch["tokens"][:, :-1])
        return mcl.sequence_log_likelihood(logits, batch["tokens"][:, 1:], batch["target_mask"])

    def run(log_p):
        batch = dict(tokens=tokens, target_mask=mask)
        each = jax.vmap(lambda adapters_k: log_p(params, adapters_k, batch, None)[0])
        return jax.jit(lambda a: (each(a), jax.grad(lambda a: each(a).sum())(a)))(adapters)

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, run(log_likelihood), run(at_once))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'VariableState' was removed")  # by qwix
def test_a_quantized_gemma_keeps_its_cap():
    assert quantized.quantized(Gemma(gemma2()), "int8").logit_cap == 2.5


# -------------------------------------------------------------------------------------------------------- GGUF files

# How llama.cpp's `ggml-quants.c` defines a block of each kind, number by number.


def half(block, at):
    return float(block[at : at + 2].view(np.float16)[0])


def q8_0(block):
    return [half(block, 0) * q for q in block[2:].view(np.int8).tolist()]


def q5_0(block):
    """32 numbers of 5 bits, the fifth apart from the others; 0 is stored as 16."""
    fifth, low = int.from_bytes(block[2:6].tobytes(), "little"), block[6:].tolist()
    four = [byte & 15 for byte in low] + [byte >> 4 for byte in low]
    return [half(block, 0) * ((four[i] | (fifth >> i & 1) << 4) - 16) for i in range(32)]


def q4_k(block):
    """8 groups of 32 numbers of 4 bits, each group with a scale and a least value of 6 bits."""
    s, low, numbers = block[4:16].tolist(), block[16:].tolist(), []
    for j in range(8):
        if j < 4:
            scale, least = s[j] & 63, s[j + 4] & 63
        else:
            scale, least = s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4
        four = [byte >> 4 * (j % 2) & 15 for byte in low[32 * (j // 2) :][:32]]
        numbers += [half(block, 0) * scale * q - half(block, 2) * least for q in four]
    return numbers


def q6_k(block):
    """256 numbers of 6 bits, four below and two above, in two halves; each 16 have a scale; 0 is stored as 32."""
    low, high, scales = block[:128].tolist(), block[128:192].tolist(), block[192:208].view(np.int8).tolist()
    numbers = []
    for i in range(256):
        part, quarter, at = i // 128, i % 128 // 32, i % 32
        four = low[64 * part + 32 * (quarter % 2) + at] >> 4 * (quarter // 2) & 15
        two = high[32 * part + at] >> 2 * quarter & 3
        numbers.append(half(block, 208) * scales[i // 16] * ((four | two << 4) - 32))
    return numbers


@pytest.mark.parametrize("formula", [q8_0, q5_0, q4_k, q6_k])
def test_quantised_numbers_are_what_their_format_says(formula, tmp_path):
    """The kinds of a Q4_K_M file, of random bytes."""
    kind = gguf.GGMLQuantizationType[formula.__name__.upper()]
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(0).integers(0, 256, (3, size)).astype(np.uint8)
    scales = np.array([0.5, -0.25], np.float16).view(np.uint8)
    for at in {q6_k: [208], q4_k: [0, 2]}.get(formula, [0]):  # else they may be NaN
        blocks[:, at : at + 2] = scales[:2] if at else scales[2:]
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gemma3")
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=kind)
    for write_part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write_part()
    writer.close()
    read = GGUF(tmp_path / "m.gguf").read("model.embed_tokens.weight")
    np.testing.assert_array_equal(read, np.array([formula(block) for block in blocks], np.float32))
    assert read.shape == (3, numbers) and np.unique(read).size > 20


def gguf_of(file, config, tensors):
    """Writes Gemma as llama.cpp's converter does: 1 + w in norms, and names and entries of its own."""
    kind = {"gemma3_text": "gemma3"}.get(config["model_type"], config["model_type"])
    stored = {name: x + 1 if name.endswith("norm.weight") else x for name, x in tensors.items()}
    said = {"attention.sliding_window": config["sliding_window"]}
    ropes, more = config["rope_parameters"], {}
    if kind == "gemma3":
        ropes = ropes[GLOBAL]
        more = dict(rope_scaling_type=gguf.RopeScalingType.LINEAR, rope_scaling_factor=ropes["factor"])
    else:
        said |= {name: config[name] for name in ("attn_logit_softcapping", "final_logit_softcapping")}
    return write(file, config | dict(model_type=kind, rope_parameters=ropes), stored, said=said, **more)


@pytest.mark.parametrize("config", [gemma2(), gemma3()], ids=["gemma2", "gemma3"])
def test_a_gguf_file_holds_what_was_written(config, tmp_path):
    params = randomized(names.abstract_params(Gemma(config)), seed=3)
    hf_config = config.to_hf()
    tensors = pretrained.state_dict(params, families.of_config(hf_config))
    module, read, _ = mcl.models.from_pretrained(gguf_of(tmp_path / "m.gguf", hf_config, tensors))
    assert module.config == config
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-7), read, params)


def test_a_gguf_file_without_a_window_has_global_layers_alone(tmp_path):
    config = gemma3(3, sliding_windows=[None] * 3, rope_layers=[True] * 3)
    tensors = {"model.embed_tokens.weight": np.zeros((41, 24), np.float32)}
    file = gguf_of(tmp_path / "m.gguf", config.to_hf() | {"sliding_window": 0}, tensors)
    assert GemmaConfig.from_hf(GGUF(file).hf_config) == config


@pytest.mark.parametrize(("make", "layers"), [(gemma2, 46), (gemma3, 62)])
def test_scores_of_the_largest_are_divided_by_another_width(make, layers, tmp_path):
    """By √(D / H), which is not in the file: llama.cpp knows it by the number of layers."""
    config = make(layers, query_pre_attn_scalar=4, hidden_size=24)
    tensors = {"model.embed_tokens.weight": np.zeros((41, 24), np.float32)}
    file = gguf_of(tmp_path / "m.gguf", config.to_hf(), tensors)
    assert GemmaConfig.from_hf(GGUF(file).hf_config) == config


def test_what_a_gguf_file_cannot_say_is_refused(tmp_path):
    """A scaled rotation in Gemma 2, and capped scores in Gemma 3."""
    tensors = {"model.embed_tokens.weight": np.zeros((41, 24), np.float32)}
    scaled = dict(rope_scaling_type=gguf.RopeScalingType.LINEAR, rope_scaling_factor=4.0)
    file = write(tmp_path / "2.gguf", gemma2().to_hf() | {"model_type": "gemma2"}, tensors, **scaled)
    with pytest.raises(ValueError, match=r"settings that are not supported: gemma2.rope.scaling.factor = 4.0"):
        GGUF(file)
    config = gemma3().to_hf()
    config |= {"model_type": "gemma3", "rope_parameters": config["rope_parameters"][GLOBAL]}
    file = write(tmp_path / "3.gguf", config, tensors, said={"attn_logit_softcapping": 50.0})
    with pytest.raises(ValueError, match="attn_logit_softcapping of a gemma3_text must be null"):
        mcl.models.from_pretrained(file)


def test_files_are_json_objects_that_transformers_reads():
    written = json.loads(json.dumps(gemma3().to_hf()))
    assert GemmaConfig.from_hf(AutoConfig.for_model(**written).to_dict()) == gemma3()
