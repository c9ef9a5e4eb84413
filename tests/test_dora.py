"""DoRA: against kernels of the decomposed form, against its own equation in NumPy, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys_nnx
from flax import nnx
from toys import (
    MLP,
    GemmaLike,
    General,
    Scanned,
    Tokens,
    adam,
    normal,
    randomized,
    token_batch,
    token_log_likelihood,
)

import mcl_jax as mcl
from mcl_jax import averaging, hypotheses

K, ALPHA, RANK = 3, 5.0, 2
EACH = {"rank_pattern": {"layers/up": (2, 1, 3)}, "alpha_pattern": {"layers/down": (2.0, 5.0, 11.0)}}
CASES = {
    "dense": (MLP(), normal((5, 7)), ("up", "again", "down"), {"rank_stabilized": True}),
    "einsum": (GemmaLike(), normal((5, 3, 7)), ("q", "kv", "per_head", "o"), {}),
    "general": (General(), normal((5, 7, 5)), ("two", "own"), {}),
    "scanned": (Scanned(), normal((5, 7)), ("up", "down"), EACH),
}


def setup(module, x, targets, options):
    params = randomized(jax.eval_shape(module.init, jax.random.key(0), x)["params"], seed=1)
    config = mcl.LoraConfig(**{"rank": RANK, "alpha": ALPHA, "targets": targets, "dora": True} | options)
    model = mcl.Hypotheses(module, config)
    init = lambda: model.init(jax.random.key(0), params, x, num_hypotheses=K)
    return model, params, init


def close(actual, desired, tolerance=2e-5):
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "name", ["dense", *(pytest.param(name, marks=pytest.mark.slow) for name in CASES if name != "dense")]
)
def test_it_is_the_model_with_kernels_of_these_lengths(name):
    model, params, init = setup(module := CASES[name][0], x := CASES[name][1], *CASES[name][2:])
    adapters = randomized(jax.eval_shape(init), seed=2)
    found = jax.jit(model.apply_all)(params, adapters, x)
    plain = jax.jit(lambda params: module.apply({"params": params}, x))
    for k in range(K):
        close(found[k], plain(model.merge(params, adapters, k)))


def test_the_equation():
    """(W + s A B) · m / ‖W + s A B‖ for each output, in NumPy."""
    model, params, init = setup(*CASES["dense"])
    adapters = randomized(jax.eval_shape(init), seed=2)
    layer, w = adapters["up"], params["up"]["kernel"]
    total = w + ALPHA / RANK**0.5 * layer["a"][1] @ layer["b"][1]
    close(
        model.merge(params, adapters, 1)["up"]["kernel"], total * layer["magnitude"][1] / np.linalg.norm(total, axis=0)
    )


@pytest.mark.parametrize("name", ["dense", pytest.param("scanned", marks=pytest.mark.slow)])
def test_it_starts_as_the_base(name):
    model, params, init = setup(*CASES[name])
    adapters, x = init(), CASES[name][1]
    close(jax.jit(model.apply_all)(params, adapters, x)[2], model.module.apply({"params": params}, x))
    layers = adapters["layers"] if name == "scanned" else adapters
    assert layers["up"]["magnitude"].shape == ((K, 3, 11) if name == "scanned" else (K, 11))


def test_the_norm_is_a_constant_in_the_gradient():
    model, params, init = setup(Tokens(), tokens := np.arange(10).reshape(2, 5), ("up",), {})
    one = hypotheses.select(randomized(jax.eval_shape(init), seed=2), 1)
    w = params["up"]["kernel"]

    def by_hand(one):
        layer = one["up"]
        total = w + ALPHA / RANK * layer["a"] @ layer["b"]
        norm = jax.lax.stop_gradient(jnp.linalg.vector_norm(total, axis=0, keepdims=True))
        kernel = total * layer["magnitude"][None] / norm
        changed = params | {"up": params["up"] | {"kernel": kernel}}
        return jnp.sin(Tokens().apply({"params": changed}, tokens)).sum()

    ours = lambda one: jnp.sin(model.apply(params, one, tokens)).sum()
    jax.tree.map(close, *(jax.jit(jax.grad(f))(one) for f in (ours, by_hand)))


def test_no_kernel_is_made_for_each_hypothesis():
    """Forward and backward, nothing has K times the size of a kernel."""
    model, params, init = setup(MLP(hidden=101), x := normal((2, 7)), ("again",), {})
    adapters = jax.eval_shape(init)
    loss = lambda adapters: model.apply_all(params, adapters, x).sum()
    sizes = sizes_in(jax.make_jaxpr(jax.grad(loss))(adapters).jaxpr)
    assert max(sizes) <= 101 * 101


def sizes_in(jaxpr):
    """Sizes of all arrays that a jaxpr, and those inside it, compute."""
    found = {variable.aval.size for equation in jaxpr.eqns for variable in equation.outvars}
    inner = [getattr(p, "jaxpr", p) for equation in jaxpr.eqns for p in equation.params.values()]
    return found.union(*(sizes_in(one) for one in inner if hasattr(one, "eqns")))


@pytest.mark.slow
def test_an_output_without_weights_stays_zero():
    model, params, init = setup(*CASES["dense"])
    params["down"]["kernel"][:, 1] = 0.0
    out = model.apply_all(params, init(), CASES["dense"][1])
    assert np.isfinite(out).all() and not np.asarray(out)[..., 1].any()


@pytest.mark.slow
def test_training_moves_lengths_and_directions_of_each_hypothesis():
    batch = token_batch()
    model, params, init = setup(Tokens(), batch["tokens"][:, :-1], ("up", "down"), {"dropout": 0.1})
    adapters, objective = init(), mcl.objectives.relaxed_wta(0.1)
    step = mcl.make_train_step(token_log_likelihood(model), objective, adam(0.05), backward="all")
    state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=adam(0.05), rng=jax.random.key(2))
    losses = []
    for _ in range(12):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.05
    for k in range(K):
        moved = jax.tree.map(lambda new, old, k=k: np.abs(new[k] - old[k]).max(), state.adapters, adapters)
        assert min(jax.tree.leaves(moved)) > 0.01


def test_refusals():
    with pytest.raises(ValueError, match="dora needs a shared_rank of 0, got 2"):
        mcl.LoraConfig(dora=True, shared_rank=2)
    config = mcl.LoraConfig(rank=2, targets=("embed", "up"), dora=True)
    with pytest.raises(ValueError, match="MixtureOfExperts needs a LoraConfig with dora=False"):
        mcl.MixtureOfExperts(Tokens(), config, 3)
    with pytest.raises(ValueError, match=r"dora needs a module of flax\.linen, got one of flax\.nnx"):
        mcl.Hypotheses(toys_nnx.Tokens(rngs=nnx.Rngs(0)), config)
    tokens = np.zeros((1, 2), np.int32)
    params = jax.eval_shape(Tokens().init, jax.random.key(0), tokens)["params"]
    with pytest.raises(ValueError, match="embed is a table of embeddings, which has no DoRA"):
        mcl.Hypotheses(Tokens(), config).init(jax.random.key(0), params, tokens, num_hypotheses=K)
    model, params, init = setup(*CASES["dense"])
    with pytest.raises(ValueError, match="average takes adapters without dora"):
        averaging.average(model, params, init(), [0, 1])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    with pytest.raises(ValueError, match="dora=True starts from the norms of kernels, so it needs arrays"):
        model.init(jax.random.key(0), shapes, CASES["dense"][1], num_hypotheses=K)
