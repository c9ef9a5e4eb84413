"""Decoding under the hypotheses that a selector chooses: it is decoding under all of them, reordered and cut."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import mcl_jax as mcl
from mcl_jax.generation import BeamSearch, Greedy, Sampling, decode, log_likelihoods, prompt_features
from mcl_jax.selector import Selector, choose

GOLDEN = Path(__file__).parent / "golden"
K, T, EOS = 3, 7, (2, 5)
MASK = np.arange(6)[None] >= np.array([[0], [4], [1], [3], [5]])
PROMPTS = {"tokens": np.random.default_rng(3).integers(0, 41, MASK.shape), "mask": MASK}


def hypotheses_of(family, **config):
    module, params, _ = mcl.models.from_pretrained(GOLDEN / "models" / family)
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=3, alpha=7, targets=("q_proj", "v_proj", "down_proj"), **config))
    init = lambda: model.init(jax.random.key(0), params, jnp.zeros((1, 2), jnp.int32), num_hypotheses=K)
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), jnp.float32), jax.eval_shape(init))
    return model, params, drawn


@pytest.fixture(scope="module")
def base():
    return hypotheses_of("llama")


@pytest.fixture(scope="module")
def selector(base):
    """A selector whose choices differ between the prompts."""
    width = base[0].module.config.hidden_size
    rng = np.random.default_rng(1)
    one = Selector(rng.normal(size=(width, K)).astype(np.float32), np.zeros(K, np.float32))
    order = choose(one.log_gamma(prompt_features(*base[:2], PROMPTS)), K)
    assert len({tuple(row) for row in np.asarray(order).T}) >= 3
    return one


def assert_reordered(found, whole, order):
    """found [m, B, ...] is whole [K, B, ...] at the hypotheses `order` [m, B]."""
    np.testing.assert_array_equal(found.hypothesis, order)
    of = lambda x: np.asarray(x)[np.asarray(order), np.arange(order.shape[1])[None]]
    np.testing.assert_array_equal(found.tokens, of(whole.tokens))
    np.testing.assert_array_equal(found.lengths, of(whole.lengths))
    np.testing.assert_allclose(found.scores, of(whole.scores), rtol=1e-4)


@pytest.mark.parametrize(
    "decoder",
    [BeamSearch(num_beams=3, num_return=2), pytest.param(Sampling(2, top_k=9), marks=pytest.mark.slow)],
    ids=["beam", "sampling"],
)
def test_the_top_hypotheses_are_all_reordered_and_cut(base, selector, decoder):
    options = dict(eos_token_id=EOS, rng=jax.random.key(3), repetition_penalty=1.2)
    whole = decode(*base, PROMPTS, decoder, T, **options)
    assert whole.hypothesis is None and len({row.tobytes() for row in np.asarray(whole.tokens)}) == K
    order = choose(selector.log_gamma(prompt_features(*base[:2], PROMPTS)), K)
    for m in (K, 1):
        found = decode(*base, PROMPTS, decoder, T, selector=selector, top_hypotheses=m, **options)
        assert found.tokens.shape[0] == m
        assert_reordered(found, whole, order[:m])


def test_one_is_what_its_hypothesis_gives_alone(base, selector):
    model, params, adapters = base
    found = decode(*base, PROMPTS, Greedy(), T, eos_token_id=EOS, selector=selector, top_hypotheses=1)
    for b, k in enumerate(np.asarray(found.hypothesis[0])):
        alone = {"tokens": PROMPTS["tokens"][b : b + 1], "mask": MASK[b : b + 1]}
        of_k = jax.tree.map(lambda x, k=k: x[k : k + 1], adapters)
        wanted = decode(model, params, of_k, alone, Greedy(), T, eos_token_id=EOS)
        np.testing.assert_array_equal(found.tokens[0, b], wanted.tokens[0, 0])


def test_given_hypotheses_answer_and_are_scored(base):
    chosen = np.array([[2, 0, 1, 1, 0], [0, 0, 2, 1, 2]])
    found = decode(*base, PROMPTS, Greedy(), T, eos_token_id=EOS, chosen=chosen)
    assert_reordered(found, decode(*base, PROMPTS, Greedy(), T, eos_token_id=EOS), chosen)
    log_p = np.asarray(log_likelihoods(*base, PROMPTS, found))  # [H, m, B, n]
    own = log_p[chosen, np.arange(2)[:, None], np.arange(5)[None]]
    np.testing.assert_allclose(own, found.scores, rtol=1e-4)


@pytest.mark.slow
def test_a_mesh_and_a_shared_part_change_nothing():
    model, params, adapters = hypotheses_of("llama", shared_rank=2)
    chosen = np.array([[2, 0, 1, 1, 0], [0, 0, 2, 1, 2]])
    whole = decode(model, params, adapters, PROMPTS, BeamSearch(2), T, eos_token_id=EOS)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(4, 1), ("data", "model"))
    for devices in (None, mesh):
        found = decode(
            model, params, adapters, PROMPTS, BeamSearch(2), T, eos_token_id=EOS, chosen=chosen, mesh=devices
        )
        assert_reordered(found, whole, chosen)
    alone, together = (prompt_features(model, params, PROMPTS, mesh=devices) for devices in (None, mesh))
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["models/llama", "whisper/tiny"])
def test_layers_that_are_not_scanned_decode_the_same(family):
    """Greedy, in beams, and each prompt under hypotheses of its own; their keys and values are kept layer by layer."""
    (scanned, params, _), (listed, apart, _) = (
        mcl.models.from_pretrained(GOLDEN / family, scan=scan) for scan in (True, False)
    )
    config = mcl.LoraConfig(rank=3, alpha=7, targets=("q_proj", "v_proj"))
    rng, features = np.random.default_rng(0), {}
    if family.startswith("whisper"):
        features = {"features": rng.normal(size=(5, 11, scanned.feature_size)).astype(np.float32)}
    call = {name: x[:1, :1] for name, x in features.items()} | dict(method="hidden", num_hypotheses=K)
    model = mcl.Hypotheses(scanned, config)
    init = lambda: model.init(jax.random.key(0), params, jnp.zeros((1, 2), jnp.int32), **call)
    adapters = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), jnp.float32), jax.eval_shape(init))
    of_layers = {}
    for path, leaf in flatten_dict(adapters).items():
        at = path.index("layers")
        of_layers |= {(*path[:at], f"layers_{i}", *path[at + 1 :]): leaf[:, i] for i in range(leaf.shape[1])}
    every = (model, params, adapters), (mcl.Hypotheses(listed, config), apart, unflatten_dict(of_layers))
    inputs = {"tokens": PROMPTS["tokens"] % scanned.vocab_size, "mask": MASK, **features}
    chosen = np.array([[2, 0, 1, 1, 0], [0, 0, 2, 1, 2]])
    for decoder, options in ((BeamSearch(3, num_return=2), {}), (Greedy(), {"chosen": chosen})):
        one, same = (decode(*of, inputs, decoder, T, eos_token_id=EOS, **options) for of in every)
        np.testing.assert_array_equal(one.tokens, same.tokens)
        np.testing.assert_allclose(one.scores, same.scores, rtol=1e-4)
        assert len({np.asarray(tokens).tobytes() for tokens in one.tokens}) > 1


@pytest.mark.slow
def test_a_model_that_attends_to_features_of_a_clip():
    """Each prompt keeps its own memory, which its beams share."""
    module, params, _ = mcl.models.from_pretrained(GOLDEN / "whisper" / "tiny")
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=3, alpha=7, targets=mcl.models.lora_targets(module)))
    rng = np.random.default_rng(0)
    features = rng.normal(size=(5, 11, module.feature_size)).astype(np.float32)
    call = dict(features=features[:1, :1], method="hidden", num_hypotheses=K)
    init = lambda: model.init(jax.random.key(0), params, jnp.zeros((1, 2), jnp.int32), **call)
    adapters = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), jnp.float32), jax.eval_shape(init))
    inputs = {"tokens": PROMPTS["tokens"] % module.vocab_size, "mask": MASK, "features": features}
    chosen = np.array([[2, 0, 1, 1, 0], [0, 0, 2, 1, 2]])
    whole = decode(model, params, adapters, inputs, BeamSearch(2), T)
    assert_reordered(decode(model, params, adapters, inputs, BeamSearch(2), T, chosen=chosen), whole, chosen)
    seen = prompt_features(model, params, inputs)
    assert not np.allclose(seen, prompt_features(model, params, inputs | {"features": 2 * features}))


def test_features_are_those_of_the_base_at_the_last_token_of_the_prompt(base):
    model, params, _ = base
    found = prompt_features(model, params, PROMPTS)
    assert found.dtype == jnp.float32 and found.shape == (5, model.module.config.hidden_size)
    padded = {name: np.pad(x, ((0, 0), (3, 0))) for name, x in PROMPTS.items()}
    np.testing.assert_allclose(prompt_features(model, {"params": params}, padded), found, rtol=1e-4, atol=1e-5)
    answered = np.concatenate([PROMPTS["tokens"][:1], np.full((1, 4), 9)], axis=1)  # the first has no padding
    hidden = model.module.apply({"params": params}, answered, method="hidden")
    np.testing.assert_allclose(found[:1], hidden[:, 5], rtol=1e-4, atol=1e-5)


def test_nan_names_the_hypotheses_that_were_chosen(base):
    model, params, adapters = base
    poisoned = jax.tree.map(lambda x: x.at[1].set(jnp.nan), adapters)
    chosen = np.array([[2, 0, 1, 1, 0]])
    with pytest.raises(FloatingPointError, match=r"of hypotheses \[1\] are NaN for prompts \[2, 3\]"):
        decode(model, params, poisoned, PROMPTS, Greedy(), T, eos_token_id=EOS, chosen=chosen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(top_hypotheses=2), "top_hypotheses and selector need each other, got top_hypotheses=2 and selector=None"),
        (dict(selector=mcl.selector.init(5, K)), "need each other"),
        (dict(selector=mcl.selector.init(5, K), top_hypotheses=1), r"needs features \[B, 5\] of the base"),
        (dict(selector=mcl.selector.init(5, 4), top_hypotheses=1), "must have K = 3 hypotheses, got 4"),
        (dict(chosen=np.zeros((1, 5), int), top_hypotheses=1), "selector and top_hypotheses must be None"),
        (dict(chosen=np.zeros((5,), int)), r"chosen must be hypotheses \[m, B\] of B = 5 prompts, got shape \(5,\)"),
        (dict(chosen=np.full((1, 5), 3)), r"chosen must be integers in \[0, K = 3\), got 3 to 3"),
        (dict(chosen=np.zeros((1, 5))), r"chosen must be integers"),
    ],
)
def test_refusals(base, options, message):
    with pytest.raises(ValueError, match=message):
        decode(*base, PROMPTS, Greedy(), T, **options)
