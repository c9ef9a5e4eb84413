"""Phi-3 and 4: settings as transformers reads them, what is refused, heads rotated in part, layers of several parts.

Logits, greedy tokens and kept keys are compared with Hugging Face in test_pretrained, adapters in test_interop.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from published_sizes import config_of
from toys import randomized
from transformers import AutoConfig

import mcl_jax as mcl
from mcl_jax import parallel
from mcl_jax.models import LlamaConfig, Phi, PhiConfig, families, quantized
from mcl_jax.models.names import abstract_params
from mcl_jax.models.rotary import Rope, frequencies_of, rotate

# Queries, keys and values are 40, 8 and 8 wide, so that an eighth of all, 7, fits none of them.
SIZES = dict(vocab_size=41, hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=5)
SIZES |= dict(num_key_value_heads=1, head_dim=8)
PARTLY = dict(partial_rotary_factor=0.75, short_factor=(1.0, 1.2, 1.4), long_factor=(2.0, 3.0, 4.0))
ROPE = Rope(100.0, "longrope", factor=8.0, max_positions=64, original_max_positions=8, **PARTLY)
PLAIN = Rope(100.0, max_positions=64, original_max_positions=64)


def phi(**changed):
    return PhiConfig(**SIZES | changed)


# ---------------------------------------------------------------------------------------------------------- Settings


def test_what_a_phi_leaves_out_is_transformers_default():
    assert PhiConfig.from_hf({"model_type": "phi3"}) == PhiConfig.from_hf(AutoConfig.for_model("phi3").to_dict())


@pytest.mark.parametrize(
    ("name", "window", "kind", "rotated", "original"),
    [
        ("phi-3-mini-4k", 2047, "default", 96, 4096),
        ("phi-3-mini-128k", 262144, "longrope", 96, 4096),
        ("phi-3-medium-4k", 2047, "default", 128, 4096),
        ("phi-4", None, "default", 128, 16384),
        ("phi-4-mini", 262144, "longrope", 96, 4096),
    ],
)
def test_positions_and_windows_of_published_models(name, window, kind, rotated, original):
    config = families.build(config_of(name))[1].config
    assert config.windows == (window,) * config.num_hidden_layers
    assert (config.rope.rope_type, config.rope.width(config.head_dim), config.rope.original) == (
        kind,
        rotated,
        original,
    )
    assert config.rope.factor == (32.0 if kind == "longrope" else 1.0)


@pytest.mark.parametrize("config", [phi(rope=ROPE), phi(rope=PLAIN, sliding_windows=[4, 4], tie_word_embeddings=True)])
def test_files_are_json_objects_that_transformers_reads(config):
    written = json.loads(json.dumps(config.to_hf())) | {"head_dim": 8, "hidden_size": 40}  # which it takes to be 5 · 8
    theirs = AutoConfig.for_model(**written).to_dict() | {"hidden_size": 24}
    assert PhiConfig.from_hf(theirs) == PhiConfig.from_hf(config.to_hf()) == config


def test_su_is_the_first_name_of_longrope():
    published = config_of("phi-3-mini-128k")
    early = published | {"rope_scaling": published["rope_scaling"] | {"type": "su"}}
    assert PhiConfig.from_hf(early) == PhiConfig.from_hf(published)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(hidden_act="gelu"), "hidden_act must be 'silu', got 'gelu'"),
        (dict(attention_bias=True), "a phi3 must have no qkv_bias, o_bias, got True for qkv_bias"),
        (dict(sliding_window=4, layer_types=["full_attention"]), "a phi3 config.json must not have layer_types"),
        (dict(rope_scaling=dict(type="linear", factor=2.0)), r"must be one of \('default', 'longrope'\), got 'linear'"),
        (dict(sliding_window=0), "sliding_window must be at least 1, got 0"),
        (
            dict(sliding_window=4, num_hidden_layers=10**15),
            "num_hidden_layers must be at most 10000, got 1000000000000",
        ),
        (dict(partial_rotary_factor=0), "partial_rotary_factor must be above 0 and at most 1, got 0"),
        (dict(partial_rotary_factor=1.5), "partial_rotary_factor must be above 0 and at most 1, got 1.5"),
        (dict(partial_rotary_factor=0.1), "must have an even number of entries, got 9 of 96"),
        (
            dict(partial_rotary_factor=0.5, rope_scaling=dict(type="longrope", short_factor=[1] * 48, long_factor=[1])),
            "short_factor must be 24 numbers above 0, one per pair",
        ),
        (dict(model_type="phi"), r"model_type must be one of \('phi3',\), got 'phi'"),
    ],
)
def test_what_the_model_cannot_compute_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        PhiConfig.from_hf({"model_type": "phi3"} | changed)


def test_layers_with_windows_of_their_own_are_refused():
    with pytest.raises(ValueError, match=r"all layers of a phi3 must share one window, got \(4, None\)"):
        phi(sliding_windows=[4, None])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("phi3small", "Phi-3-small, whose attention is sparse in blocks"),
        ("phimoe", "Phi-3.5-MoE, a mixture of experts"),
        ("phi4mm", "Phi-4-multimodal, which sees and hears"),
        ("phi4_multimodal", "Phi-4-multimodal, which sees and hears"),
    ],
)
def test_other_phis_are_refused_by_name(name, reason):
    with pytest.raises(ValueError, match=rf"model_type '{name}' \({reason}\) is not supported; known are .*'phi3'"):
        families.build({"model_type": name})


def test_others_rotate_whole_heads():
    """A Llama of transformers cannot rotate a part of them, and one with a Phi inside is another model."""
    with pytest.raises(ValueError, match="partial_rotary_factor must be 1, since whole heads are rotated, got 0.75"):
        LlamaConfig(**SIZES, rope=Rope(partial_rotary_factor=0.75))
    with pytest.raises(ValueError, match="model_type must be one of .*, got 'phi3'"):
        LlamaConfig.from_text_config({"model_type": "phi3"})


# ---------------------------------------------------------------------------------------------------------- Rotation


def test_the_first_entries_of_a_head_are_rotated_and_the_others_stay():
    """With θ = 100 and six of eight entries, ω is 1, 100^(−1/3), 100^(−2/3)."""
    x = np.random.default_rng(0).normal(size=(1, 1, 2, 8)).astype(np.float32)
    y = np.asarray(rotate(jnp.asarray(x), jnp.array([[5]]), Rope(100.0, partial_rotary_factor=0.75)))
    angles = 5 * 100 ** (-np.arange(3) / 3)
    turned = (x[..., :3] + 1j * x[..., 3:6]) * np.exp(1j * angles)
    np.testing.assert_allclose(y, np.concatenate([turned.real, turned.imag, x[..., 6:]], -1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("longest", "factors"), [(8, PARTLY["short_factor"]), (9, PARTLY["long_factor"])])
def test_a_row_beyond_the_original_length_changes_the_frequencies(longest, factors):
    positions = jnp.array([[0, longest - 1], [0, 1]])
    frequencies, length = frequencies_of(ROPE, 8, positions)
    np.testing.assert_allclose(frequencies, 100 ** (-np.arange(3) / 3) / np.array(factors), rtol=1e-6)
    np.testing.assert_allclose(length, 2**0.5)  # √(1 + log 8 / log 8)


# ---------------------------------------------------------------------------------------- Layers of several parts


def hypotheses_of(module):
    """(hypotheses, parameters and adapters with random values)."""
    tokens = jnp.zeros((1, 3), jnp.int32)
    params = randomized(abstract_params(module), seed=1)
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=3, alpha=7, targets=mcl.models.lora_targets(module)))
    init = lambda: model.init(jax.random.key(0), params, tokens, num_hypotheses=4, method="hidden")
    return model, params, randomized(jax.eval_shape(init), seed=2, scale=0.2)


def test_a_layer_of_several_parts_has_one_adapter():
    adapters = flatten_dict(hypotheses_of(Phi(phi()))[2], sep="/")
    shapes = {path.removeprefix("model/layers/"): x.shape for path, x in adapters.items()}
    assert shapes == {
        "self_attn/qkv_proj/a": (4, 2, 24, 3),
        "self_attn/qkv_proj/b": (4, 2, 3, 56),
        "mlp/gate_up_proj/a": (4, 2, 24, 3),
        "mlp/gate_up_proj/b": (4, 2, 3, 40),
        "mlp/down_proj/a": (4, 2, 20, 3),
        "mlp/down_proj/b": (4, 2, 3, 24),
    }


def test_a_layer_may_be_cut_across_its_parts():
    """Over 8 devices; test_fsdp trains such a base, and test_parallel cuts the published sizes."""
    model, whole, adapters = hypotheses_of(Phi(phi(rope=ROPE, sliding_windows=[4, 4])))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(1, 8), ("data", "model"))
    shardings = parallel.base_sharding(mesh)
    params = jax.tree_util.tree_map_with_path(lambda keys, x: jax.device_put(x, shardings(keys, x.shape)), whole)
    layer = params["model"]["layers"]
    for kernel in (layer["self_attn"]["qkv_proj"]["kernel"], layer["mlp"]["gate_up_proj"]["kernel"]):
        assert kernel.sharding.shard_shape(kernel.shape) == (2, 24, kernel.shape[-1] // 8)
    rng = np.random.default_rng(0)
    batch = {"tokens": rng.integers(0, 41, (3, 11)), "target_mask": np.arange(10)[None] >= np.array([[2], [5], [9]])}
    evaluated = lambda params, **options: mcl.language_model.evaluate(model, params, adapters, [batch], **options)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
        evaluated(params, mesh=mesh),
        evaluated(whole),
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'VariableState' was removed")  # by qwix
def test_all_kernels_of_the_layers_are_quantized():
    leaves = jax.tree.leaves(abstract_params(quantized.quantized(Phi(phi()), "int8")), is_leaf=quantized.is_quantized)
    assert sum(map(quantized.is_quantized, leaves)) == 4
