"""Layers that are sharded over "data" too give the numbers of one device, and are gathered one at a time."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from published_sizes import config_of
from toys import randomized

import mcl_jax as mcl
from mcl_jax import fsdp, generation, objectives, parallel
from mcl_jax.models import GPT2, Gemma, GemmaConfig, GPT2Config, Llama, LlamaConfig, Phi, PhiConfig, families, names
from mcl_jax.models.llama_config import SIZES
from mcl_jax.models.rotary import Rope

K, B, T, V = 3, 8, 11, 29
SMALL = LlamaConfig(
    vocab_size=V,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    qkv_bias=True,
    remat="full",
)
MODULES = {
    "scanned": Llama(SMALL),
    "a list of layers, nothing computed again": Llama(dataclasses.replace(SMALL, scan=False, remat="none")),
    "norms of heads, a layer without rotation": Llama(
        dataclasses.replace(SMALL, qkv_bias=False, qk_norm=True, rope_layers=(True, False, True))
    ),
    "Gemma, two rotations, caps": Gemma(
        GemmaConfig(
            **{name: getattr(SMALL, name) for name in (*SIZES, "remat")},
            qk_norm=True,
            rope_layers=(False, True, False),
            local_rope=Rope(30.0),
            sliding_windows=(4, None, 4),
            query_pre_attn_scalar=7,
            attn_logit_softcapping=1.5,
            final_logit_softcapping=2.5,
            tie_word_embeddings=True,
        )
    ),
    "Phi, layers of several parts": Phi(
        PhiConfig(
            **{name: getattr(SMALL, name) for name in (*SIZES, "remat")},
            rope=Rope(partial_rotary_factor=0.5),
            sliding_windows=(4, 4, 4),
        )
    ),
    "GPT, dots": GPT2(
        GPT2Config(
            vocab_size=V, hidden_size=24, num_layers=2, num_heads=3, max_position_embeddings=32, scan=True, remat="dots"
        )
    ),
}
CASES = {
    "balanced": (objectives.balanced_wta(rate=0.3), "winner", {"accumulate": 2}),
    "sampled": (objectives.relaxed_wta(0.3), "sampled", {}),
    "all": (objectives.mixture(), "all", {}),
    "clean": (objectives.mixture(), "all", {"assign": "clean"}),
}
OPTIMIZER = optax.sgd(0.3, momentum=0.9)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    mask = (np.arange(T - 1) >= 3) & (np.arange(T - 1) < rng.integers(5, T, (B, 1)))
    return {"tokens": rng.integers(0, V, (B, T)).astype(np.int32), "target_mask": mask}


@functools.cache
def setup(name):
    """(model, params, adapters with random values)."""
    module, tokens = MODULES[name], batch()["tokens"]
    params = randomized(jax.eval_shape(module.init, jax.random.key(0), tokens)["params"], seed=1)
    of_kind = {GPT2: ("c_attn", "c_proj"), Phi: ("qkv_proj", "gate_up_proj", "down_proj")}
    targets = of_kind.get(type(module), ("q_proj", "down_proj"))
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=2, alpha=6.0, dropout=0.2, targets=targets))
    init = lambda: model.init(jax.random.key(0), params, tokens, num_hypotheses=K, method="hidden")
    return model, params, randomized(jax.eval_shape(init), seed=2, scale=0.2)


def mesh_of(data, model):
    return jax.sharding.Mesh(np.array(jax.devices()[: data * model]).reshape(data, model), ("data", "model"))


def on(params, data, model):
    """The base in its shards, and the mesh."""
    grid = mesh_of(data, model)
    shardings = parallel.base_sharding(grid, fully=True)
    place = lambda keys, x: jax.device_put(x, shardings(keys, x.shape))
    return jax.tree_util.tree_map_with_path(place, params), grid


def trained(name, case, params, **options):
    (model, _, adapters), (objective, backward, more) = setup(name), CASES[case]
    log_likelihood = mcl.language_model.log_likelihood_fn(model)
    step = mcl.make_train_step(log_likelihood, objective, OPTIMIZER, backward, **more, **options)
    state = mcl.TrainState.create(
        params=jax.tree.map(jnp.asarray, params), adapters=adapters, optimizer=OPTIMIZER, rng=jax.random.key(5)
    )
    for seed in range(2):
        state, metrics = step(state, batch(seed))
    return jax.tree.map(np.asarray, (state.adapters, state.opt_state, state.objective_state, metrics)), state


@pytest.mark.parametrize(
    ("name", "case", "shape"),
    [
        ("scanned", "balanced", (4, 2)),
        pytest.param("GPT, dots", "sampled", (4, 1), marks=pytest.mark.slow),
        pytest.param("scanned", "sampled", (8, 1), marks=pytest.mark.slow),
        pytest.param("scanned", "all", (2, 4), marks=pytest.mark.slow),
        pytest.param("a list of layers, nothing computed again", "balanced", (4, 2), marks=pytest.mark.slow),
        pytest.param("GPT, dots", "all", (2, 2), marks=pytest.mark.slow),
        pytest.param("norms of heads, a layer without rotation", "balanced", (2, 4), marks=pytest.mark.slow),
        pytest.param("Gemma, two rotations, caps", "balanced", (2, 4), marks=pytest.mark.slow),
        pytest.param("Phi, layers of several parts", "balanced", (2, 4), marks=pytest.mark.slow),
        pytest.param("scanned", "clean", (4, 2), marks=pytest.mark.slow),
    ],
)
def test_a_step_as_on_one_device(name, case, shape):
    expected, _ = trained(name, case, setup(name)[1])
    params, grid = on(setup(name)[1], *shape)
    assert fsdp.gathered_of(params)
    found, state = trained(name, case, params, mesh=grid)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=3e-5), found, expected)
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    assert not fsdp.gathered_of((state.adapters, state.opt_state))  # these are in one piece on "data"


def test_each_device_stores_its_part_and_gathers_a_layer_at_a_time():
    model, whole, adapters = setup("scanned")
    params, grid = on(whole, 4, 2)
    kernel = params["model"]["layers"]["mlp"]["down_proj"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (3, 20, 6)
    assert not fsdp.gathered_of(
        (params["model"]["embed_tokens"], params["model"]["layers"]["self_attn"]["q_proj"]["bias"])
    )
    step = mcl.make_train_step(
        mcl.language_model.log_likelihood_fn(model), objectives.wta(), OPTIMIZER, "winner", mesh=grid
    )
    state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=OPTIMIZER, rng=jax.random.key(5))
    text = step.lower(state, batch()).as_text()
    gathered = re.findall(r"stablehlo.all_gather.*?\(tensor<([\dx]+)xf32>\) -> tensor<([\dx]+)xf32>", text, re.DOTALL)
    assert {after for before, after in gathered if before != after} <= {"24x24", "24x8", "24x40", "40x24"}
    assert len(gathered) >= 3 * 7  # of all hypotheses, of the winners, and again in the backward pass of these


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scanned", "GPT, dots"])
def test_evaluation_decoding_and_scores_as_on_one_device(name):
    model, whole, adapters = setup(name)
    params, grid = on(whole, 4, 2)
    close = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=3e-5), a, b)
    evaluated = lambda params, **options: mcl.language_model.evaluate(model, params, adapters, [batch()], **options)
    close(evaluated(params, mesh=grid), evaluated(whole))
    prompts, decoder = {"tokens": batch()["tokens"][:7]}, generation.BeamSearch(num_beams=2)
    decoded = lambda params, **options: generation.decode(model, params, adapters, prompts, decoder, 4, **options)
    answers = decoded(whole)
    np.testing.assert_array_equal(decoded(params, mesh=grid).tokens, answers.tokens)
    scored = lambda params, **options: generation.log_likelihoods(model, params, adapters, prompts, answers, **options)
    close(scored(params, mesh=grid), scored(whole))


def test_what_is_sharded_over_data():
    of = lambda path, *shape: tuple(parallel.base_sharding(mesh_of(4, 2), fully=True)(path, shape).spec)
    assert of("model/layers/self_attn/q_proj/kernel", 3, 12, 20) == (None, "data", "model")
    assert of("language_model/layers_7/mlp/down_proj/kernel", 20, 12) == ("model", "data")
    assert of("h/mlp/c_fc/kernel", 4, 14, 20) == (None, None, "model")  # 4 does not divide 14
    assert of("layers/self_attn/q_proj/kernel", 3, 12, 21) == (None, "model", None)  # nor 21
    assert of("layers/self_attn/q_proj/bias", 4, 20) == (None, "model")
    assert of("layers/input_layernorm/scale", 4, 20) == ()
    assert of("embed_tokens/embedding", 32, 12) == ("model", None)
    assert of("audio_tower/layers/self_attn/q_proj/kernel", 3, 12, 20) == (None, None, "model")
    one = lambda path, *shape: tuple(parallel.base_sharding(mesh_of(1, 2), fully=True)(path, shape).spec)
    assert one("layers/self_attn/q_proj/kernel", 3, 12, 20) == (None, None, "model")


@pytest.mark.parametrize(
    "name",
    [
        "llama-2-7b",
        "llava-v1.6-vicuna-7b",
        "qwen2-audio-7b-instruct",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("gemma-2-9b", "gemma-3-27b-text", "phi-4-mini", "qwen3-8b", "smollm3-3b")
        ),
    ],
)
def test_published_bases_take_little_more_than_an_eighth(name):
    _, module = families.build(config_of(name), scan=True)
    shardings = parallel.base_sharding(mesh_of(8, 1), fully=True)
    shapes = names.abstract_params(module)
    shapes = shapes.get("language_model", shapes)
    params = jax.tree_util.tree_map_with_path(
        lambda keys, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings(keys, x.shape)), shapes
    )
    layers = {True: 0, False: 0}
    for row in parallel.table(params):
        layers["layers" in row.path] += row.bytes_per_device
    all_layers = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes)) - layers[False]
    assert layers[True] < all_layers / 7.9
