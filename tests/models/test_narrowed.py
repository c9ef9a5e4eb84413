"""Passes in fewer bits with the parameters of the base: near the exact ones, in the products that are meant alone."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.extend.core import jaxprs_in_params
from toys import randomized

import mcl_jax as mcl
from mcl_jax import language_model
from mcl_jax.models import Llama, LlamaConfig, from_pretrained, narrowed

pytestmark = pytest.mark.filterwarnings("ignore:'VariableState' was removed")  # by qwix

GOLDEN = Path(__file__).parents[1] / "golden"
K, B, T, LAYERS = 3, 5, 11, 2
CONFIG = LlamaConfig(
    vocab_size=61,
    hidden_size=64,
    intermediate_size=192,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
)
ERROR = {"bfloat16": 0.01, "int8": 0.02}  # of log p, in its standard deviations
BATCH = {
    "tokens": np.random.default_rng(0).integers(0, 61, (B, T)).astype(np.int32),
    "target_mask": np.arange(1, T)[None] < np.array([10, 7, 4, 9, 2])[:, None],
}


@pytest.fixture(autouse=True)
def promotion():
    with jax.numpy_dtype_promotion("standard"):  # qwix adds integers to floats
        yield


def setup(**changed):
    module = Llama(dataclasses.replace(CONFIG, **changed))
    params = randomized(jax.eval_shape(module.init, jax.random.key(0), BATCH["tokens"])["params"], seed=3)
    params = jax.tree.map(lambda x: 0.2 * x, params)
    config = mcl.LoraConfig(rank=3, alpha=7, targets=("q_proj", "v_proj", "down_proj"))
    model = mcl.Hypotheses(module, config)
    adapters = model.init(jax.random.key(1), params, jnp.zeros((1, 2), jnp.int32), num_hypotheses=K)
    return model, params, jax.tree.map(lambda x: 0.3 * x, randomized(adapters, seed=4))


def in_fewer_bits(model, dtype):
    return dataclasses.replace(model, module=narrowed(model.module, dtype))


def log_p(model, params, adapters):
    of_one = language_model.log_likelihood_fn(model)
    return jax.vmap(lambda adapters_k: of_one(params, adapters_k, BATCH, None)[0])(adapters)


def products(jaxpr):
    """The dtypes of the operands of all products but those of rotations by the identity, scans and calls included."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general" and eqn.params["precision"] is None:
            yield tuple(v.aval.dtype.name for v in eqn.invars)
        for inner in jaxprs_in_params(eqn.params):
            yield from products(inner)


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("scan", [True, False])
def test_likelihoods_are_near_those_in_float32(dtype, scan):
    model, params, adapters = setup(scan=scan)
    exact = np.asarray(log_p(model, params, adapters))
    error = np.asarray(log_p(in_fewer_bits(model, dtype), params, adapters)) - exact
    assert 0 < np.sqrt((error**2).mean()) < ERROR[dtype] * exact.std()


def test_all_products_are_in_bfloat16():
    model, params, adapters = setup()
    jaxpr = jax.make_jaxpr(log_p, static_argnums=0)(in_fewer_bits(model, "bfloat16"), params, adapters)
    assert {dtypes[1] for dtypes in products(jaxpr.jaxpr)} == {"bfloat16"}


def test_the_products_of_the_layers_alone_are_in_int8():
    """Seven kernels in each layer; six products of A and B, two of attention, and the output layer stay as they are."""
    model, params, adapters = setup(scan=False)
    jaxpr = jax.make_jaxpr(log_p, static_argnums=0)(in_fewer_bits(model, "int8"), params, adapters)
    found = [name for name, _ in products(jaxpr.jaxpr)]
    assert found.count("int8") == 7 * LAYERS and found.count("float32") == len(found) - 7 * LAYERS == 8 * LAYERS + 1


@pytest.mark.parametrize("dtype", ERROR)
def test_winners_chosen_in_fewer_bits_learn_as_the_same_winners_do(dtype):
    model, params, adapters = setup()
    exact = language_model.log_likelihood_fn(model)
    cheap = language_model.log_likelihood_fn(in_fewer_bits(model, dtype))
    np.testing.assert_array_equal(
        *(np.argmax(log_p(of, params, adapters), 0) for of in (model, in_fewer_bits(model, dtype)))
    )

    def stepped(choose_fn):
        optimizer = optax.sgd(0.1)
        step = mcl.make_train_step(exact, mcl.objectives.wta(), optimizer, "winner", choose_fn=choose_fn)
        state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=optimizer, rng=jax.random.key(2))
        return step(state, BATCH)

    (state, metrics), (other, others) = stepped(None), stepped(cheap)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), other.adapters, state.adapters)
    np.testing.assert_allclose(others["loss"], metrics["loss"], rtol=1e-6)  # of the exact pass of the winners
    assert not np.array_equal(others["log_likelihood"], metrics["log_likelihood"])


@pytest.mark.parametrize("family", ["llava/qwen2", "whisper/tiny"])
def test_configs_within_a_config_are_narrowed_too(family):
    module = narrowed(from_pretrained(GOLDEN / family)[0], "bfloat16")

    def dtypes(config):
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if dataclasses.is_dataclass(value):
                yield from dtypes(value)
            elif field.name == "dtype":
                yield jnp.dtype(value)

    assert {*dtypes(module.config)} == {jnp.dtype(jnp.bfloat16)}


def test_what_cannot_be_narrowed_is_named():
    module = setup()[0].module
    with pytest.raises(ValueError, match="dtype must be one of bfloat16, int8, got 'int4'"):
        narrowed(module, "int4")
    with pytest.raises(TypeError, match="from mcl_jax.models, got Dense"):
        narrowed(nn.Dense(3), "bfloat16")
    stored, _, _ = from_pretrained(GOLDEN / "models" / "llama", quantization="int8")
    with pytest.raises(ValueError, match="not quantized yet"):
        narrowed(stored, "bfloat16")
