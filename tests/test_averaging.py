"""The mean of hypotheses against the mean of their merged kernels, for every kind of layer."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from toys import MLP, Attention, GemmaLike, Named, Scanned, normal, randomized

import mcl_jax as mcl
from mcl_jax import hypotheses
from mcl_jax.averaging import average

K, RANK, ALPHA = 3, 2, 7.0
CASES = {
    "mlp": (MLP(), normal((5, 7)), {"targets": ("up", "again", "down")}),
    "stabilized": (MLP(), normal((5, 7)), {"targets": ("up", "down"), "rank_stabilized": True}),
    "shared part": (MLP(), normal((5, 7)), {"targets": ("up", "down"), "shared_rank": 3}),
    "shared part, stabilized": (
        Attention(),
        normal((5, 3, 7)),
        {"targets": ("q_proj", "o_proj"), "shared_rank": 3, "rank_stabilized": True},
    ),
    "patterns": (
        MLP(),
        normal((5, 7)),
        {"targets": ("up", "down"), "rank_pattern": {"up": 3}, "alpha_pattern": {"down": 5.0}, "rank_stabilized": True},
    ),
    "einsum": (GemmaLike(), normal((5, 3, 7)), {"targets": ("q", "kv", "per_head", "o")}),
    "general": (
        Named(lambda name: nn.DenseGeneral((2, 3), axis=(-1, -2), name=name)),
        normal((5, 7, 5)),
        {"targets": "up"},
    ),
    "scanned": (
        Scanned(),
        normal((5, 7)),
        {
            "targets": ("up", "down"),
            "rank_pattern": {"layers/up": (3, 1, 2)},
            "alpha_pattern": {"layers/up": (2.0, 5.0, 11.0), "layers/down": (1.0, 3.0, 13.0)},
        },
    ),
}


def setup(name):
    """(model, params, adapters with everything random, input)."""
    module, x, config = CASES[name]
    params = randomized(jax.eval_shape(module.init, jax.random.key(0), x)["params"], seed=1)
    model = mcl.Hypotheses(module, mcl.LoraConfig(**({"rank": RANK, "alpha": ALPHA} | config)))
    init = lambda: model.init(jax.random.key(0), params, x, num_hypotheses=K)
    return model, params, randomized(jax.eval_shape(init), seed=2), x


@pytest.mark.parametrize("name", CASES)
def test_it_merges_into_the_mean_of_the_kernels(name):
    model, params, adapters, _ = setup(name)
    for ks in ((2, 0), (0, 1, 2)):
        mean, of_mean = average(model, params, adapters, ks)
        assert hypotheses.count(of_mean) == 1
        merged = [model.merge(params, adapters, k) for k in ks]
        expected = jax.tree.map(lambda *kernels: np.mean(kernels, axis=0), *merged)
        found = mean.merge(params, of_mean, 0)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)
        change = jax.tree.map(lambda a, b: np.abs(a - b).max(), found, params)
        assert max(jax.tree.leaves(change)) > 0.1


def test_it_runs_as_its_merged_kernels_do():
    model, params, adapters, x = setup("mlp")
    mean, of_mean = average(model, {"params": params}, adapters, (2, 0))
    assert mean.config.rank == 2 * RANK
    found = jax.jit(mean.apply_all)(params, of_mean, x)[0]
    expected = model.module.apply({"params": mean.merge(params, of_mean, 0)}, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ks", [(), (0, 0), (3,), (-1,)])
def test_what_is_no_choice_of_hypotheses_is_refused(ks):
    model, params, adapters, _ = setup("mlp")
    with pytest.raises(ValueError, match="average needs different hypotheses from 0 to 2, got"):
        average(model, params, adapters, ks)


def test_several_ranks_with_a_shared_part_are_refused():
    model, params, adapters, _ = setup("shared part")
    patterned = mcl.Hypotheses(model.module, mcl.LoraConfig(rank=2, shared_rank=3, rank_pattern={"up": 2}))
    with pytest.raises(ValueError, match="average needs one rank for all layers if hypotheses share a part"):
        average(patterned, params, adapters, (0, 1))
