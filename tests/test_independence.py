"""Hypotheses.check: modules whose examples interact are found, others pass."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import GemmaLike, Scanned, Tokens, normal, randomized

import mcl_jax as mcl

K, B, T = 3, 5, 4
X = normal((B, T, 7))


class Mixed(nn.Module):
    """[B, T, 7] -> [B, T, 3], and something done to it."""

    change: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(3, name="up", dtype=self.dtype)(x.astype(self.dtype))
        mean = lambda y: y.mean(0, keepdims=True)
        match self.change:
            case "mean":
                y = y - mean(y)
            case "little":
                y = y + jnp.asarray(2e-3, y.dtype) * jnp.flip(y, 0)
            case "later on earlier":
                y = jnp.cumsum(y, 0)
            case "earlier on later":
                y = jnp.flip(jnp.cumsum(jnp.flip(y, 0), 0), 0)
            case "maximum":
                y = y / jnp.abs(y).max()
            case "count":
                y = y / jnp.asarray(len(y), y.dtype)
            case "batch norm":
                y = (y - mean(y)) / jnp.sqrt(mean(jnp.square(y - mean(y))) + 1e-3)
            case "beside":
                return {"y": y, "mean": mean(y)}
            case "scalar":
                return y, y.sum()
            case "transposed":
                return y.swapaxes(0, 1)
            case "length":
                return jnp.zeros((len(y), len(y)))
            case "integers":
                return (y > mean(y)).astype(jnp.int32)
            case "infinite":
                return jnp.where(jnp.arange(3) == 1, jnp.asarray(-jnp.inf, y.dtype), y)
        return y


def setup(module, x=X, targets="up", num_hypotheses=K, kind=mcl.Hypotheses):
    params = randomized(jax.eval_shape(module.init, jax.random.key(0), x)["params"], seed=1)
    model = kind(module, mcl.LoraConfig(rank=2, alpha=7.0, targets=targets))
    init = lambda: model.init(jax.random.key(0), params, x, num_hypotheses=num_hypotheses)
    return model, params, randomized(jax.eval_shape(init), seed=2)


DEPENDS = r"of the module depends on the other examples of the batch, by up to .* treats the examples .* independently"


@pytest.mark.parametrize(
    "change", ["mean", "little", "later on earlier", "earlier on later", "maximum", "batch norm", "integers"]
)
def test_examples_that_interact(change):
    model, params, adapters = setup(Mixed(change))
    with pytest.raises(ValueError, match="output " + DEPENDS):
        model.check(params, adapters, X)


@pytest.mark.parametrize("change", ["mean", "little", "integers"])
def test_examples_that_interact_in_bfloat16(change):
    model, params, adapters = setup(Mixed(change, jnp.bfloat16))
    with pytest.raises(ValueError, match="output " + DEPENDS):
        model.check(params, adapters, X)


def test_examples_that_interact_at_initialisation_and_alone():
    """With B = 0, and with one hypothesis."""
    model, params, _ = setup(Mixed("mean"))
    for num_hypotheses in (1, K):
        with pytest.raises(ValueError, match=DEPENDS):
            model.check(params, model.init(jax.random.key(0), params, X, num_hypotheses=num_hypotheses), X)


def test_results_that_depend_on_the_size_of_the_batch():
    model, params, adapters = setup(Mixed("count"))
    with pytest.raises(ValueError, match="output of the module differs between a batch of two and two batches of one"):
        model.check(params, adapters, X)


@pytest.mark.parametrize("abstract", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("scalar", r"output\[1\] of the module needs a leading batch axis, got shape \(\) for a batch of 1"),
        ("transposed", r"output of the module needs a leading batch axis, got shape \(4, 1, 3\)"),
        ("beside", r"output\['mean'\] of the module needs a .* shape \(1, 4, 3\) for a batch of 2"),
        ("length", r"output of the module has shape \(2, 2\) for a batch of two but \(2, 1\) for two batches of one"),
    ],
)
def test_outputs_without_a_batch_axis(change, message, abstract):
    model, params, adapters = setup(Mixed(change))
    shapes = lambda tree: jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree))
    with pytest.raises(ValueError, match=message):
        model.check(*(shapes((params, adapters, X)) if abstract else (params, adapters, X)))


@pytest.mark.parametrize(
    ("module", "x", "targets"),
    [
        (Mixed(), X, "up"),
        (Mixed("none", jnp.bfloat16), X, "up"),
        (Mixed("infinite"), X, "up"),
        (Scanned(), X[:, 0], ("up", "down")),
        (GemmaLike(), X, ("q", "kv", "per_head", "o")),
        (Tokens(), np.arange(B * T).reshape(B, T) % 13, ("up", "head")),
    ],
    ids=["dense", "bfloat16", "infinite", "scan", "attention", "tokens"],
)
def test_independent_examples_pass(module, x, targets):
    model, params, adapters = setup(module, x, targets)
    model.check(params, adapters, x)
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    model.check(params, adapters, shape)
    model.check(jax.eval_shape(lambda: params), jax.eval_shape(lambda: adapters), shape)


def test_mixtures_of_experts_and_other_methods():
    kind = lambda module, config: mcl.MixtureOfExperts(module, config, 3, top_k=1)
    call = lambda module, x: module(x)
    model, params, adapters = setup(Mixed(), num_hypotheses=1, kind=kind)
    model.check(params, adapters, X, method=call)
    model, params, adapters = setup(Mixed("mean"), kind=kind)
    with pytest.raises(ValueError, match=DEPENDS):
        model.check(params, adapters, x=X, method=call)


class TestRefusedExamples:
    def test_one(self):
        model, params, adapters = setup(Mixed())
        with pytest.raises(ValueError, match="check needs at least two examples, got a batch of one"):
            model.check(params, adapters, X[:1])

    def test_alike(self):
        """All zeros have the mean of all zeros."""
        model, params, adapters = setup(Mixed("mean"))
        with pytest.raises(ValueError, match="two different examples, but the first two of this batch are equal"):
            model.check(params, adapters, np.zeros_like(X))
