"""GPT-Neo: parity with Hugging Face (tests/golden/make_gpt_neo.py), masks, padding, dtypes, errors."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mcl_jax.models import GPTNeo, GPTNeoConfig
from mcl_jax.models.families import FAMILIES
from mcl_jax.models.gpt import Block
from mcl_jax.models.pretrained import load_params
from mcl_jax.models.tensors import Arrays

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "gpt_neo.npz")
HF_CONFIG = json.loads(str(GOLDEN["config"]))
CONFIG = GPTNeoConfig.from_hf(HF_CONFIG)
TOKENS = jnp.asarray(GOLDEN["tokens"])
MASK = jnp.asarray(GOLDEN["mask"])
LOCAL = dataclasses.replace(CONFIG, num_layers=2, attention_layers=("local", "local"), initializer_range=0.3)


def state_dict() -> dict[str, np.ndarray]:
    return {name.removeprefix("weights/"): GOLDEN[name] for name in GOLDEN.files if name.startswith("weights/")}


def params_from_hf(state_dict, config):
    return load_params(GPTNeo(config), Arrays(state_dict), FAMILIES["gpt_neo"])


@pytest.fixture(scope="module")
def params():
    return params_from_hf(state_dict(), CONFIG)


@functools.partial(jax.jit, static_argnames=("config", "method"))
def apply(params, tokens, mask=None, config=CONFIG, method="__call__"):
    return GPTNeo(config).apply({"params": params}, tokens, mask, method=method)


def assert_close(actual, desired, tolerance=1e-5):
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------------- Parity with Hugging Face


def test_logits_are_hugging_faces(params):
    assert_close(apply(params, TOKENS), GOLDEN["logits"])


def test_logits_are_hugging_faces_where_padded(params):
    """Row 0 is padded on the left, row 1 on the right, row 2 on both sides."""
    logits = apply(params, TOKENS, MASK)
    assert np.isfinite(logits).all()
    assert_close(np.asarray(logits)[MASK], GOLDEN["padded_logits"][GOLDEN["mask"]])


def test_every_layer_is_hugging_faces(params):
    _, state = GPTNeo(CONFIG).apply(
        {"params": params}, TOKENS, capture_intermediates=lambda module, _: isinstance(module, Block)
    )
    blocks = state["intermediates"]["transformer"]
    for layer in range(CONFIG.num_layers - 1):  # Hugging Face reports the last one after ln_f
        assert_close(blocks[f"h_{layer}"]["__call__"][0][0], GOLDEN["hidden"][layer + 1])
    assert_close(apply(params, TOKENS, method="hidden"), GOLDEN["hidden"][-1])


def test_parameter_tree_has_hugging_faces_names_and_shapes(params):
    D, F = 21, 43
    layer_norm = {"scale": (D,), "bias": (D,)}
    block = {
        "ln_1": layer_norm,
        "attn": {
            "attention": {
                "q_proj": {"kernel": (D, D)},
                "k_proj": {"kernel": (D, D)},
                "v_proj": {"kernel": (D, D)},
                "out_proj": {"kernel": (D, D), "bias": (D,)},
            }
        },
        "ln_2": layer_norm,
        "mlp": {"c_fc": {"kernel": (D, F), "bias": (F,)}, "c_proj": {"kernel": (F, D), "bias": (D,)}},
    }
    embeddings = {"wte": {"embedding": (29, D)}, "wpe": {"embedding": (17, D)}}
    spec = {"transformer": embeddings | {f"h_{layer}": block for layer in range(4)} | {"ln_f": layer_norm}}
    assert jax.tree.map(jnp.shape, params) == spec
    assert jax.tree.map(jnp.shape, GPTNeo(CONFIG).init(jax.random.key(0), TOKENS)["params"]) == spec


# ------------------------------------------------------------------------------------------------------ Output layer


@pytest.mark.parametrize("mask", [None, MASK], ids=["plain", "padded"])
def test_hidden_times_unembedding_is_logits(params, mask):
    hidden = apply(params, TOKENS, mask, method="hidden")
    unembedding = GPTNeo.unembedding(params)
    assert hidden.shape == (3, 13, 21)
    assert unembedding.shape == (21, 29)
    assert_close(jnp.einsum("btd,dv->btv", hidden, unembedding), apply(params, TOKENS, mask))


def test_gradient_is_finite_under_padding_and_keeps_its_dtype(params):
    config = dataclasses.replace(CONFIG, dtype=jnp.bfloat16)

    def loss(params):
        log_p = jax.nn.log_softmax(GPTNeo(config).apply({"params": params}, TOKENS, MASK))
        return jnp.sum(log_p, where=MASK[..., None])

    for path, gradient in flatten_dict(jax.jit(jax.grad(loss))(params)).items():
        assert gradient.dtype == jnp.float32, path
        assert np.isfinite(gradient).all(), path


# ------------------------------------------------------------------------------------------------- What sees what


def changed_by(params, config, position: int) -> np.ndarray:
    """Which positions of the hidden states [T] change with the token at `position`."""
    before = apply(params, TOKENS, config=config, method="hidden")
    after = apply(params, TOKENS.at[:, position].add(1) % CONFIG.vocab_size, config=config, method="hidden")
    return np.any(before != after, axis=(0, 2))


def test_a_token_changes_nothing_before_it(params):
    np.testing.assert_array_equal(changed_by(params, CONFIG, position=6), np.arange(13) >= 6)


@pytest.mark.parametrize("window", [1, 3])
def test_local_layers_reach_window_minus_one_back_each(window):
    config = dataclasses.replace(LOCAL, window_size=window)
    params = GPTNeo(config).init(jax.random.key(7), TOKENS)["params"]
    reach = config.num_layers * (window - 1)
    t = np.arange(13)
    np.testing.assert_array_equal(changed_by(params, config, position=5), (t >= 5) & (t <= 5 + reach))


@pytest.mark.parametrize(("left", "right"), [(0, 4), (3, 0), (2, 2)])
def test_extra_padding_changes_nothing(params, left, right):
    """Neither how much padding there is nor which token fills it, in global and local layers."""
    padded = jnp.pad(TOKENS, ((0, 0), (left, right)), constant_values=11)
    mask = jnp.pad(jnp.ones_like(TOKENS, bool), ((0, 0), (left, right)))
    assert_close(apply(params, padded, mask)[:, left : left + 13], apply(params, TOKENS))


def test_a_mask_without_padding_changes_nothing(params):
    assert_close(apply(params, TOKENS, jnp.ones_like(TOKENS, bool)), apply(params, TOKENS), tolerance=1e-7)


# ------------------------------------------------------------------------------------------------- Numerics, init


def test_bfloat16_computation_is_close_and_gives_float32_logits(params):
    config = dataclasses.replace(CONFIG, dtype=jnp.bfloat16)
    logits = apply(params, TOKENS, MASK, config)
    assert logits.dtype == jnp.float32
    assert apply(params, TOKENS, MASK, config, method="hidden").dtype == jnp.bfloat16
    error = np.asarray(logits)[MASK] - GOLDEN["padded_logits"][GOLDEN["mask"]]
    assert np.sqrt(np.mean(error**2)) < 0.02 * np.std(GOLDEN["logits"])


def test_remat_changes_neither_value_nor_gradient(params):
    def loss(params, config):
        return jnp.sum(jnp.sin(GPTNeo(config).apply({"params": params}, TOKENS, MASK)))

    plain = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, CONFIG)
    remat = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, dataclasses.replace(CONFIG, remat=True))
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-4), remat, plain)


def test_initialisation_has_the_configured_stds():
    config = dataclasses.replace(CONFIG, vocab_size=997, hidden_size=63, embedding_std=0.2, param_dtype=jnp.bfloat16)
    params = flatten_dict(GPTNeo(config).init(jax.random.key(0), TOKENS)["params"], sep="/")
    std = {path: np.std(np.asarray(value, np.float32)) for path, value in params.items()}
    np.testing.assert_allclose(std["transformer/wte/embedding"], 0.2, rtol=0.05)
    np.testing.assert_allclose(std["transformer/wpe/embedding"], 0.02, rtol=0.1)
    np.testing.assert_allclose(std["transformer/h_0/mlp/c_fc/kernel"], 0.02, rtol=0.1)
    assert {value.dtype for value in params.values()} == {jnp.dtype(jnp.bfloat16)}


# ----------------------------------------------------------------------------------------------------- Configuration


def test_from_hf_reads_every_field():
    expected = GPTNeoConfig(
        vocab_size=29,
        hidden_size=21,
        num_layers=4,
        num_heads=3,
        intermediate_size=43,
        max_position_embeddings=17,
        window_size=3,
        attention_layers=("global", "local", "global", "local"),
        layer_norm_epsilon=1e-5,
        initializer_range=0.02,
    )
    assert expected == CONFIG
    without_types = {name: value for name, value in HF_CONFIG.items() if name != "attention_types"}
    assert GPTNeoConfig.from_hf(without_types) == expected
    assert GPTNeoConfig.from_hf(HF_CONFIG, dtype=jnp.bfloat16).dtype == jnp.bfloat16
    assert hash(CONFIG) == hash(expected)


def test_feed_forward_size_is_four_times_hidden_by_default():
    assert dataclasses.replace(CONFIG, intermediate_size=None).feed_forward_size == 84


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 4}, "num_heads must divide hidden_size, got 4 and 21"),
        ({"num_layers": 3}, "num_layers=3 layers, got 4"),
        ({"attention_layers": ("global", "lokal") * 2}, r"attention_layers\[1\] must be one of .* got 'lokal'"),
        ({"window_size": 0}, "window_size must be at least 1, got 0"),
        ({"intermediate_size": 0}, "intermediate_size must be at least 1 .* got 0"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "relu"}, "must be 'gelu_new', got 'relu'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings must be true, .* got false"),
        ({"vocab_size": None}, r"must have \['vocab_size'\], got only"),
        ({"attention_types": None, "attention_layers": None}, "must have attention_types, got only"),
    ],
)
def test_from_hf_refuses(change, message):
    """None stands for an absent entry."""
    changed = {name: value for name, value in (HF_CONFIG | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        GPTNeoConfig.from_hf(changed)


# ------------------------------------------------------------------------------------------------------------ Errors


@pytest.mark.parametrize(
    ("tokens", "mask", "message"),
    [
        (jnp.zeros((2, 19), int), None, "max_position_embeddings=17 positions, got T=19"),
        (jnp.zeros((5,), int), None, r"tokens must be \[B, T\], got shape \(5,\)"),
        (TOKENS, MASK[:, 1:], r"mask must be bool\[3, 13\] like tokens, or integers, got bool\[3, 12\]"),
        (
            TOKENS,
            MASK.astype(jnp.float32),
            r"mask must be bool\[3, 13\] like tokens, or integers, got float32\[3, 13\]",
        ),
    ],
)
def test_model_refuses(params, tokens, mask, message):
    with pytest.raises(ValueError, match=message):
        apply(params, tokens, mask)


def test_params_from_hf_accepts_a_tied_lm_head_and_old_buffers(params):
    extra = {"lm_head.weight": GOLDEN["weights/transformer.wte.weight"]}
    buffer = {"transformer.h.0.attn.attention.bias": np.ones((1, 1, 17, 17), bool)}
    again = params_from_hf(state_dict() | extra | buffer, CONFIG)
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer.h.2.mlp.c_fc.bias": None}, r"Missing: \['transformer.h.2.mlp.c_fc.bias'\]. Unexpected: \[\]"),
        ({"transformer.h.4.ln_1.bias": np.zeros(21)}, r"Missing: \[\]. Unexpected: \['transformer.h.4.ln_1.bias'\]"),
        ({"transformer.h.1.mlp.c_fc.weight": np.zeros((21, 43))}, r"h.1.mlp.c_fc.weight .* \(43, 21\), got \(21, 43\)"),
        ({"lm_head.weight": np.zeros((29, 21))}, "lm_head.weight must equal transformer.wte.weight"),
    ],
)
def test_params_from_hf_refuses(change, message):
    changed = {name: tensor for name, tensor in (state_dict() | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        params_from_hf(changed, CONFIG)
