"""A frozen base in int8 or NF4: near the one in float32, smaller, and exact in all that concerns hypotheses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import adam, randomized

import mcl_jax as mcl
from mcl_jax import hypotheses
from mcl_jax.models import Llama, LlamaConfig, from_pretrained, save_pretrained
from mcl_jax.models.gpt2 import GPT2, GPT2Config
from mcl_jax.models.quantized import is_quantized

pytestmark = pytest.mark.filterwarnings("ignore:'VariableState' was removed")  # by qwix

K, B, T = 3, 5, 11
TOKENS = np.random.default_rng(0).integers(0, 61, (B, T)).astype(np.int32)
LLAMA = Llama(
    LlamaConfig(
        vocab_size=61,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
)
BASES = {
    "llama": LLAMA,
    "qwen3": Llama(dataclasses.replace(LLAMA.config, qk_norm=True, head_dim=32)),
    "gpt2": GPT2(GPT2Config(vocab_size=61, hidden_size=64, num_layers=2, num_heads=4, max_position_embeddings=16)),
}
ERROR = {"int8": 0.01, "nf4": 0.12}  # of the logits, in their standard deviations


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3", "gpt2")]


@pytest.fixture(scope="module", params=["llama", *SLOW])
def folder(request, tmp_path_factory):
    module, path = BASES[request.param], tmp_path_factory.mktemp("base")
    params = randomized(jax.eval_shape(module.init, jax.random.key(0), TOKENS)["params"], seed=3)
    save_pretrained(path, module, jax.tree.map(lambda x: 0.2 * x, params))
    return path


@pytest.fixture(params=["int8", pytest.param("nf4", marks=pytest.mark.slow)])
def quantization(request):
    return request.param


@pytest.mark.parametrize("scan", [True, False])
def test_logits_are_near_those_of_float32(folder, quantization, scan):
    module, params, _ = from_pretrained(folder, scan=scan)
    quantized, small, _ = from_pretrained(folder, scan=scan, quantization=quantization)
    expected = module.apply({"params": params}, TOKENS)
    error = np.asarray(quantized.apply({"params": small}, TOKENS) - expected)
    assert 0 < np.sqrt((error**2).mean()) < ERROR[quantization] * np.std(expected)


def test_kernels_alone_are_smaller(folder, quantization):
    _, params, _ = from_pretrained(folder)
    _, small, _ = from_pretrained(folder, quantization=quantization)
    part = {"int8": (1, 4), "nf4": (1, 8)}[quantization]
    leaves = jax.tree_util.tree_leaves_with_path(small, is_leaf=is_quantized)
    for (_, leaf), full in zip(leaves, jax.tree.leaves(params), strict=True):
        if is_quantized(leaf):
            assert leaf.array.qvalue.shape == full.shape
            assert (
                full.ndim == 2 or leaf.array.scale.shape[0] == full.shape[0]
            )  # each of the scanned layers has its own
            assert jnp.iinfo(leaf.array.qvalue.dtype).bits * part[1] == 32 * part[0]
        else:
            np.testing.assert_array_equal(leaf, full)
    kept = {jax.tree_util.keystr(path[-2:]) for path, leaf in leaves if not is_quantized(leaf)}
    assert any("embed" in name or "wte" in name for name in kept) and not any(
        "proj" in n and "kernel" in n for n in kept
    )


def test_hypotheses_of_a_quantized_base(folder, quantization):
    module, params, _ = from_pretrained(folder, quantization=quantization)
    before = jax.tree.map(np.array, params)
    targets = mcl.models.lora_targets(module)
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=2, alpha=6.0, targets=targets))
    adapters = model.init(jax.random.key(0), params, TOKENS, num_hypotheses=K)
    base = jax.jit(module.apply)({"params": params}, TOKENS)
    apply_all, apply = jax.jit(model.apply_all), jax.jit(model.apply)
    zero = apply_all(params, adapters, TOKENS)
    np.testing.assert_allclose(zero, np.broadcast_to(base, zero.shape), rtol=1e-5, atol=1e-5)
    adapters = randomized(jax.eval_shape(lambda: adapters), seed=2)
    every = apply_all(params, adapters, TOKENS)
    for k in range(K):
        one = apply(params, hypotheses.select(adapters, k), TOKENS)
        np.testing.assert_allclose(every[k], one, rtol=1e-4, atol=1e-4)
    assert mcl.generate(model, params, adapters, TOKENS[:, :4], max_new_tokens=3).shape == (K, B, 1, 3)
    jax.tree.map(np.testing.assert_array_equal, params, before)


@pytest.mark.parametrize("backwards", [("winner",), pytest.param(("winner", "all"), marks=pytest.mark.slow)])
def test_training_on_a_quantized_base(folder, quantization, backwards):
    """The loss falls, the same by either backward pass, and the base stays as it is."""
    module, params, _ = from_pretrained(folder, quantization=quantization)
    before = jax.tree.map(np.array, params)
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=2, alpha=6.0, targets=mcl.models.lora_targets(module)))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), params, TOKENS, num_hypotheses=K))
    adapters = randomized(shapes, seed=2)
    losses = [trained(model, params, adapters, backward) for backward in backwards]
    assert losses[0][-1] < losses[0][0] and losses[0] == pytest.approx(losses[-1], rel=1e-4)
    jax.tree.map(np.testing.assert_array_equal, params, before)


def trained(model, params, adapters, backward):
    """The losses of three steps."""
    optimizer, batch = adam(1e-2), {"tokens": TOKENS, "target_mask": np.ones((B, T - 1), bool)}
    log_likelihood = mcl.language_model.log_likelihood_fn(model)
    step = mcl.make_train_step(log_likelihood, mcl.objectives.wta(), optimizer, backward)
    state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=optimizer, rng=jax.random.key(0))
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses


def test_refused(folder, quantization, tmp_path):
    module, params, _ = from_pretrained(folder, quantization=quantization)
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=2, targets=mcl.models.lora_targets(module)))
    adapters = model.init(jax.random.key(0), params, TOKENS, num_hypotheses=K)
    with pytest.raises(ValueError, match="merge: the kernel of .* is quantized; merge into the base before"):
        model.merge(params, adapters, 1)
    with pytest.raises(ValueError, match="a quantized base cannot be saved"):
        save_pretrained(tmp_path, module, params)
    with pytest.raises(ValueError, match="quantization must be one of int8, nf4, got 'int4'"):
        from_pretrained(folder, quantization="int4")
