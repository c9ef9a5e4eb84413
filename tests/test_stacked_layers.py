"""Layers that nn.scan stacks, each with a rank and an alpha of its own: against the same layers one by one."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import Layer, Scanned, normal, randomized

import mcl_jax as mcl
from mcl_jax import hypotheses

K, B, L, T = 3, 5, 3, 4
RANKS, ALPHAS = (5, 2, 3), (6.0, 11.0, 3.5)
X = normal((B, 7))


class Listed(nn.Module):
    """The layers of `Scanned`, one after another."""

    @nn.compact
    def __call__(self, x):
        for i in range(L):
            x, _ = Layer(name=f"layers_{i}")(x)
        return x


def setup(module=None, kind=mcl.Hypotheses, x=X, **config):
    """(model, params, adapters with everything random, padding too)."""
    module = Scanned() if module is None else module
    params = randomized(jax.eval_shape(module.init, jax.random.key(0), x)["params"], seed=1)
    model = kind(module, mcl.LoraConfig(rank=2, alpha=7.0, targets=("up", "down"), **config))
    init = lambda: model.init(jax.random.key(0), params, x, num_hypotheses=K)
    return model, params, randomized(jax.eval_shape(init), seed=2)


def by_layer(**config):
    patterns = {"rank_pattern": {"layers/up": RANKS}, "alpha_pattern": {"up": ALPHAS, "layers/down": ALPHAS[::-1]}}
    return setup(**{**patterns, **config})


def one_by_one(params, adapters, stabilized=False):
    """The same function over listed layers, the padding cut off: (model, params, adapters)."""
    names = [f"layers_{i}" for i in range(L)]
    config = mcl.LoraConfig(
        rank=2,
        alpha=7.0,
        targets=("up", "down"),
        rank_pattern={f"{name}/up": RANKS[i] for i, name in enumerate(names)},
        alpha_pattern={f"{name}/up": ALPHAS[i] for i, name in enumerate(names)}
        | {f"{name}/down": ALPHAS[L - 1 - i] for i, name in enumerate(names)},
        rank_stabilized=stabilized,
    )
    at = lambda tree, i, axis: jax.tree.map(lambda leaf: np.take(leaf, i, axis), tree["layers"])
    listed = {name: at(adapters, i, 1) for i, name in enumerate(names)}
    for i, name in enumerate(names):
        up = listed[name]["up"]
        listed[name]["up"] = {"a": up["a"][..., : RANKS[i]], "b": up["b"][:, : RANKS[i]]}
    return mcl.Hypotheses(Listed(), config), {name: at(params, i, 0) for i, name in enumerate(names)}, listed


def close(actual, expected, tolerance=2e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("stabilized", [False, True])
def test_apply_and_merge_are_those_of_layers_one_by_one(stabilized):
    model, params, adapters = by_layer(rank_stabilized=stabilized)
    listed, listed_params, listed_adapters = one_by_one(params, adapters, stabilized)
    outs = jax.jit(model.apply_all)(params, adapters, X)
    close(outs, jax.jit(listed.apply_all)(listed_params, listed_adapters, X))
    k_of_example = np.array([2, 0, 1, 1, 2])
    close(jax.jit(model.apply_assigned)(params, adapters, k_of_example, X), outs[k_of_example, np.arange(B)])
    for k in (0, K - 1):
        merged, expected = model.merge(params, adapters, k), listed.merge(listed_params, listed_adapters, k)
        for i in range(L):
            at = jax.tree.map(lambda leaf, i=i: leaf[i], merged["layers"])
            jax.tree.map(close, at, expected[f"layers_{i}"])


def test_one_alpha_for_all_is_another_function():
    model, params, adapters = by_layer()
    same = dataclasses.replace(model, config=dataclasses.replace(model.config, alpha_pattern={}))
    difference = jax.jit(model.apply_all)(params, adapters, X) - jax.jit(same.apply_all)(params, adapters, X)
    assert np.abs(difference).max() > 0.1


def test_ranks_are_padded_with_zeros_that_stay_zeros():
    model, params, _ = by_layer()
    adapters = model.init(jax.random.key(5), params, X, num_hypotheses=K)
    optimizer = optax.adamw(0.1)

    @jax.jit
    def step(adapters, state):
        gradient = jax.grad(lambda a: jnp.square(model.apply_all(params, a, X)).sum())(adapters)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state, adapters)
        return optax.apply_updates(adapters, updates), state

    state = optimizer.init(adapters)
    for _ in range(3):
        adapters, state = step(adapters, state)
    up = adapters["layers"]["up"]
    for i, rank in enumerate(RANKS):
        for inside, padding in [
            (up["a"][:, i, :, :rank], up["a"][:, i, :, rank:]),
            (up["b"][:, i, :rank], up["b"][:, i, rank:]),
        ]:
            assert np.abs(inside).min() > 0
            assert not np.asarray(padding).any()


def test_a_drawn_for_each_layer_has_the_bound_of_one():
    model, params, _ = by_layer()
    a = np.asarray(model.init(jax.random.key(5), params, X, num_hypotheses=K)["layers"]["up"]["a"])
    assert a.shape == (K, L, 7, max(RANKS))
    assert 0.8 / np.sqrt(7) < np.abs(a).max() <= 1 / np.sqrt(7)


def test_experts_have_them_too():
    x = normal((B, T, 7))
    kind = lambda module, config: mcl.MixtureOfExperts(module, config, 3, top_k=2)
    patterns = {"rank_pattern": {"up": RANKS}, "alpha_pattern": {"up": ALPHAS}}
    model, params, adapters = setup(kind=kind, x=x, **patterns)
    at = lambda tree, i: jax.tree.map(lambda leaf: leaf[i], tree)
    adapters_k, expected = at(adapters, 1), x
    for i in range(L):
        config = mcl.LoraConfig(
            rank=2, alpha=7.0, targets=("up", "down"), rank_pattern={"up": RANKS[i]}, alpha_pattern={"up": ALPHAS[i]}
        )
        layer = at(adapters_k["layers"], i)
        up = layer["up"] | {"a": layer["up"]["a"][..., : RANKS[i]], "b": layer["up"]["b"][:, : RANKS[i]]}
        expected, _ = kind(Layer(), config).apply(at(params["layers"], i), layer | {"up": up}, expected)
    close(jax.jit(model.apply)(params, adapters_k, x), expected)


def test_equal_values_for_each_layer_are_one_value_for_all():
    model, params, adapters = setup(rank_pattern={"up": (3, 3, 3)}, alpha_pattern={"up": [5.0] * L})
    same, *_ = setup(rank_pattern={"up": 3}, alpha_pattern={"up": 5.0})
    close(jax.jit(model.apply_all)(params, adapters, X), jax.jit(same.apply_all)(params, adapters, X))


class Wide(nn.Module):
    """One layer, not stacked, whose A has three axes."""

    @nn.compact
    def __call__(self, x):
        return nn.DenseGeneral(11, axis=(-2, -1), name="up")(x)


class TestErrors:
    @pytest.mark.parametrize(
        ("patterns", "message"),
        [
            (
                {"rank_pattern": {"up": (3, 5)}},
                r"layers/up ranks and alphas for 2 layers .*\[2, ..., 5\], got \(3, 7, 5\)",
            ),
            ({"alpha_pattern": {"down": (3.0, 5.0)}}, r"layers/down ranks and alphas for 2 layers .* got \(3, 11, 2\)"),
            (
                {"rank_pattern": {"up": (3, 5)}, "alpha_pattern": {"up": (1.0, 2.0, 3.0)}},
                "layers/up needs as many .* got 2 ranks and 3 alphas",
            ),
            ({"rank_pattern": {"up": (3, 0, 5)}}, r"at least 1, got \(3, 0, 5\) for 'up'"),
            ({"rank_pattern": {"up": ()}}, r"at least 1, got \(\) for 'up'"),
            (
                {"alpha_pattern": {"layers_1/up": 9.0}},
                "alpha_pattern: 'layers_1/up' matches no .* one value per layer",
            ),
        ],
    )
    def test_of_patterns(self, patterns, message):
        with pytest.raises(ValueError, match=message):
            setup(**patterns)

    def test_a_layer_that_is_no_stack(self):
        with pytest.raises(ValueError, match=r"layers_0/up ranks and alphas for 3 layers .* got \(7, 5\)"):
            setup(Listed(), rank_pattern={"layers_0/up": RANKS})
        config = mcl.LoraConfig(rank=2, targets="up", alpha_pattern={"up": ALPHAS})
        x = normal((B, 3, 7))
        params = jax.eval_shape(Wide().init, jax.random.key(0), x)["params"]
        with pytest.raises(ValueError, match="up is a single layer, so it needs a single rank and alpha"):
            mcl.Hypotheses(Wide(), config).init(jax.random.key(0), params, x, num_hypotheses=K)

    def test_adapters_of_another_depth(self):
        model, params, adapters = by_layer()
        less = jax.tree.map(lambda leaf: leaf[:2], hypotheses.select(adapters, 0))
        with pytest.raises(
            ValueError, match=r"for 3 layers stacked by nn.scan, with rank 2 at most; .* got \(2, 11, 2\)"
        ):
            model.apply(params, less, X)
