"""Adapters on any Linen module: against kernels W + (α/r)·BA written out by hand, K at once against one by one."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from toys import MLP, Attention, GemmaLike, General, Layer, Scanned, normal, randomized

import mcl_jax as mcl
from mcl_jax import hypotheses, lora

K, B, T = 3, 5, 4
RANK, ALPHA = 2, 6.0
SCALE = ALPHA / RANK
DENSE = "ir,ro->io"
K_OF_EXAMPLE = np.array([2, 0, 1, 1, 2])
# On a GPU, XLA merges products that share an operand, such as xW and xA, and then sums in another order than for xW.
UNMERGED = {"xla_gpu_dot_merger_threshold_mb": 0} if jax.default_backend() == "gpu" else None


class SelfAttention(nn.Module):
    """An installed package's module, whose DenseGeneral layers have kernels [D, H, Dh] and [H, Dh, D]."""

    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=10, name="attn")(x)


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="up")(x)


class TwoLayers(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Layer(name="1")(Layer(name="0")(x)[0])[0]


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="up")(nn.BatchNorm(use_running_average=True, name="norm")(x))


class Odd(nn.Module):
    """Has an equation whose kernel cannot be split in two."""

    @nn.compact
    def __call__(self, x):
        y = nn.Einsum((3, *x.shape[1:]), "BTD,NTD->BTN", name="odd", use_bias=False)(x)
        return nn.Dense(2, name="up")(y)


class Square(nn.Module):
    """An equation with the outputs first, where a Dense layer of the same shape has the inputs first."""

    @nn.compact
    def __call__(self, x):
        return nn.Einsum((7, 7), "BD,ND->BN", name="q", use_bias=False)(x)


class Closed(nn.Module):
    @nn.compact
    def __call__(self, x):
        scan = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return scan(name="layers")(x)[0]


@dataclasses.dataclass(frozen=True)
class Case:
    """A module, what it is called with, and the equation of A, B -> kernel for each of its targets."""

    module: nn.Module
    shape: tuple[int, ...]
    kernels: dict[str, str]
    independent: bool = True  # whether it treats the examples of a batch independently


CASES = {
    "linear": Case(Linear(), (B, 7), {"up": DENSE}),
    "mlp": Case(MLP(), (B, 7), {"up": DENSE, "again": DENSE, "down": DENSE}),
    "shared layer": Case(MLP(calls=2), (B, 7), {"again": DENSE}),
    "one vector": Case(MLP(), (7,), {"up": DENSE}, independent=False),
    "attention": Case(Attention(), (B, T, 7), {"q_proj": DENSE, "k_proj": DENSE, "v_proj": DENSE, "o_proj": DENSE}),
    "flax attention": Case(
        SelfAttention(),
        (B, T, 7),
        {
            "attn/query": "dr,rnh->dnh",
            "attn/key": "dr,rnh->dnh",
            "attn/value": "dr,rnh->dnh",
            "attn/out": "nhr,rd->nhd",
        },
    ),
    "einsum": Case(
        GemmaLike(),
        (B, T, 7),
        {"q": "dr,nrh->ndh", "kv": "dr,ckrh->ckdh", "per_head": "ndr,nrh->ndh", "o": "nhr,rd->nhd"},
    ),
    "dense general": Case(General(), (B, 7, 5), {"two": "xyr,rfg->xyfg", "own": "bir,bro->bio"}, independent=False),
    "scan": Case(Scanned(), (B, 7), {"layers/up": "lir,lro->lio", "layers/down": "lir,lro->lio"}),
}


def setup(case: Case, num_hypotheses: int = K, **config: Any):
    """(model, params, adapters with both A and B random, inputs) of a case; nothing here is compiled."""
    x = normal(case.shape, seed=0)
    params = randomized(jax.eval_shape(case.module.init, jax.random.key(0), x)["params"], seed=1)
    config = {"rank": RANK, "alpha": ALPHA, "targets": tuple(case.kernels)} | config
    model = mcl.Hypotheses(case.module, mcl.LoraConfig(**config))
    init = lambda: model.init(jax.random.key(0), params, x, num_hypotheses=num_hypotheses)
    return model, params, randomized(jax.eval_shape(init), seed=2), x


def initialised(model, params, x, num_hypotheses: int = K):
    return model.init(jax.random.key(3), params, x, num_hypotheses=num_hypotheses)


def run(module, params, *inputs, **kwargs):
    """The module without adapters."""
    return jax.jit(lambda params: module.apply({"params": params}, *inputs, **kwargs))(params)


def one(model, params, adapters, k, *inputs, **kwargs):
    adapters_k = hypotheses.select(adapters, k)
    return jax.jit(lambda params, a: model.apply(params, a, *inputs, **kwargs))(params, adapters_k)


def all_of(model, params, adapters, *inputs, **kwargs):
    return jax.jit(lambda params, a: model.apply_all(params, a, *inputs, **kwargs))(params, adapters)


def assigned(model, params, adapters, k_of_example, *inputs, **kwargs):
    call = lambda params, a, k: model.apply_assigned(params, a, k, *inputs, **kwargs)
    return jax.jit(call)(params, adapters, np.asarray(k_of_example))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What several tests ask of one case, compiled once."""

    case: Case
    model: mcl.Hypotheses
    params: Any
    adapters: Any
    x: np.ndarray
    base: Any  # (params)
    one: Any  # (params, adapters_k)
    all: Any  # (params, adapters)


@functools.cache
def compiled(name: str) -> Compiled:
    case = CASES[name]
    model, params, adapters, x = setup(case)
    jit = functools.partial(jax.jit, compiler_options=UNMERGED)
    base = jit(lambda params: case.module.apply({"params": params}, x))
    one = jit(lambda params, adapters_k: model.apply(params, adapters_k, x))
    every = jit(lambda params, adapters: model.apply_all(params, adapters, x))
    return Compiled(case, model, params, adapters, x, base, one, every)


def by_hand(case: Case, params, adapters_k, scale=SCALE):
    """params with W + scale·BA at every target, by the equations of the case."""
    flat, low_rank = flatten_dict(params, sep="/"), flatten_dict(adapters_k, sep="/")
    for path, equation in case.kernels.items():
        change = np.einsum(equation, low_rank[f"{path}/a"], low_rank[f"{path}/b"])
        flat[f"{path}/kernel"] = flat[f"{path}/kernel"] + scale * change
    return unflatten_dict(flat, sep="/")


def close(actual, expected, tolerance=2e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def doubled(leaf):
    return jnp.asarray(leaf, jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def apart(a, b, at_least=1e-3):
    assert np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).max() > at_least


@pytest.mark.parametrize("name", CASES)
class TestEveryKindOfLayer:
    def test_zero_b_is_exactly_the_base(self, name):
        c = compiled(name)
        adapters, base = initialised(c.model, c.params, c.x), c.base(c.params)
        np.testing.assert_array_equal(c.one(c.params, hypotheses.select(adapters, 1)), base)
        close(c.all(c.params, adapters), np.broadcast_to(base, (K, *base.shape)), 1e-6)

    def test_adapts_the_targets_and_nothing_else(self, name):
        case, params, adapters = compiled(name).case, compiled(name).params, compiled(name).adapters
        flat = flatten_dict(adapters, sep="/")
        assert set(flat) == {f"{path}/{which}" for path in case.kernels for which in "ab"}
        kernels = flatten_dict(params, sep="/")
        for path, equation in case.kernels.items():
            a_axes, b_axes, axes = equation.replace("->", ",").split(",")
            sizes = dict(zip(axes, kernels[f"{path}/kernel"].shape, strict=True)) | {"r": RANK}
            assert flat[f"{path}/a"].shape == (K, *(sizes[c] for c in a_axes))
            assert flat[f"{path}/b"].shape == (K, *(sizes[c] for c in b_axes))

    def test_equals_the_kernels_with_ba_added(self, name):
        """One hypothesis, all at once, and each merged, against parameters written out by hand; in double precision."""
        c = compiled(name)
        before = jax.tree.map(np.array, c.params)
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # linen's norms compute in float32
            params, adapters, x = jax.tree.map(doubled, (c.params, c.adapters, c.x))
            outs, apply = jax.jit(c.model.apply_all)(params, adapters, x), jax.jit(c.model.apply)
            base = jax.jit(lambda params: c.case.module.apply({"params": params}, x))
            for k in range(K):
                adapters_k = jax.tree.map(lambda leaf, k=k: leaf[k], adapters)
                expected, merged = by_hand(c.case, params, adapters_k), c.model.merge(params, adapters, k)
                assert jax.tree.structure(merged) == jax.tree.structure(params)
                jax.tree.map(lambda a, b: close(a, b, 1e-12), merged, expected)
                close(outs[k], base(expected), 1e-10)
                close(outs[k], apply(params, adapters_k, x), 1e-10)
        close(c.all(c.params, c.adapters), outs, 1e-4)  # the same in single precision
        apart(outs[0], outs[1])
        apart(outs[0], c.base(c.params))
        jax.tree.map(np.testing.assert_array_equal, c.params, before)

    def test_gradient_reaches_every_adapter(self, name):
        c = compiled(name)
        gradient = jax.jit(jax.grad(lambda a: jnp.square(c.model.apply_all(c.params, a, c.x)).sum()))(c.adapters)
        for path, leaf in flatten_dict(gradient, sep="/").items():
            assert all(np.abs(leaf[k]).max() > 1e-4 for k in range(K)), path


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.independent])
def test_assigned_picks_from_all(name):
    c = compiled(name)
    out = assigned(c.model, c.params, c.adapters, K_OF_EXAMPLE, c.x)
    close(out, c.all(c.params, c.adapters)[K_OF_EXAMPLE, np.arange(B)])


@pytest.mark.parametrize("name", CASES)
def test_permuting_hypotheses_permutes_results(name):
    c, order = compiled(name), np.array([2, 0, 1])
    permuted = jax.tree.map(lambda leaf: leaf[order], c.adapters)
    close(c.all(c.params, permuted), c.all(c.params, c.adapters)[order], 1e-6)


@pytest.mark.parametrize(("name", "targets"), [("flax attention", ("attn/query", "attn/out")), ("scan", "up")])
def test_dropout_repeats_between_all_and_assigned(name, targets):
    model, params, adapters, x = setup(CASES[name], dropout=0.4, targets=targets)
    rng = jax.random.key(8)
    outs = all_of(model, params, adapters, x, dropout_rng=rng)
    out = assigned(model, params, adapters, K_OF_EXAMPLE, x, dropout_rng=rng)
    close(out, outs[K_OF_EXAMPLE, np.arange(B)])
    without = all_of(model, params, adapters, x)
    for k in range(K):
        apart(outs[k], without[k])


def test_dropout_masks_differ_between_examples_and_hypotheses():
    model, params, adapters, x = setup(CASES["linear"], dropout=0.5)
    same = jax.tree.map(lambda leaf: np.broadcast_to(leaf[:1], leaf.shape), adapters)
    out = all_of(model, params, same, np.broadcast_to(x[:1], x.shape), dropout_rng=jax.random.key(8))
    assert len(np.unique(np.asarray(out).reshape(K * B, -1).round(4), axis=0)) > K * B // 2


def test_dropout_keeps_the_mean_of_a_linear_layer():
    model, params, adapters, x = setup(CASES["linear"], dropout=0.4)
    adapters_k = hypotheses.select(adapters, 1)
    draw = lambda key: model.apply(params, adapters_k, x, dropout_rng=key)
    draws = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(3), 4000))
    error = np.asarray(draws).std(0) / math.sqrt(4000)
    difference = np.abs(draws.mean(0) - one(model, params, adapters, 1, x))
    assert (error > 0).all()
    assert (difference < 4 * error).all()


def test_no_dropout_without_rng_and_none_at_rate_zero():
    model, params, adapters, x = setup(CASES["mlp"], dropout=0.4)
    plain, *_ = setup(CASES["mlp"])
    expected = one(plain, params, adapters, 0, x)
    close(one(model, params, adapters, 0, x), expected, 1e-6)
    close(one(plain, params, adapters, 0, x, dropout_rng=jax.random.key(1)), expected, 1e-6)


class TestInit:
    def test_hypotheses_and_layers_differ(self):
        model, params, _, x = setup(CASES["scan"])
        layer = initialised(model, params, x)["layers"]["up"]
        assert len(np.unique(np.asarray(layer["a"]))) == layer["a"].size
        assert not np.asarray(layer["b"]).any()

    @pytest.mark.parametrize("num_hypotheses", [1, 11])
    def test_bound_is_that_of_one_layer(self, num_hypotheses):
        """U(−1/√d_in, 1/√d_in) has standard deviation 1/√(3 d_in), whatever K; d_in = 2·5 for `out`."""
        model, params, _, x = setup(CASES["flax attention"], rank=97)
        adapters = initialised(model, params, x, num_hypotheses)
        for name, d_in in [("query", 7), ("out", 10)]:
            a = np.asarray(adapters["attn"][name]["a"])
            assert a.shape[0] == num_hypotheses
            assert np.abs(a).max() <= 1 / math.sqrt(d_in)
            np.testing.assert_allclose(a.std(), 1 / math.sqrt(3 * d_in), rtol=0.06)
            assert abs(a.mean()) < 0.06

    def test_batched_kernel_has_the_fan_in_of_one_head(self):
        model, params, _, x = setup(CASES["einsum"], rank=97)
        a = np.asarray(initialised(model, params, x)["per_head"]["a"])
        np.testing.assert_allclose(a.std(), 1 / math.sqrt(3 * 5), rtol=0.06)

    def test_depends_on_the_key_and_not_on_the_inputs(self):
        model, params, _, x = setup(CASES["linear"])
        adapters = initialised(model, params, x)
        jax.tree.map(np.testing.assert_array_equal, initialised(model, params, 0 * x), adapters)
        other = model.init(jax.random.key(4), params, x, num_hypotheses=K)
        apart(other["up"]["a"], adapters["up"]["a"])

    def test_other_method(self):
        model, params, _, x = setup(CASES["mlp"])
        call = lambda module, x: module(x)
        init = lambda: model.init(jax.random.key(0), params, x, num_hypotheses=K, method=call)
        assert set(jax.eval_shape(init)) == {"up", "again", "down"}


class TestConfig:
    def test_patterns_of_rank_and_alpha(self):
        case = CASES["mlp"]
        model, params, adapters, x = setup(case, rank_pattern={"up": 5}, alpha_pattern={"down": 3.0})
        assert adapters["up"]["a"].shape == (K, 7, 5)
        assert adapters["down"]["a"].shape == (K, 11, RANK)
        adapters_k = jax.tree.map(lambda leaf: leaf[1], adapters)
        expected = params
        for path, scale in [("up", ALPHA / 5), ("again", ALPHA / RANK), ("down", 3.0 / RANK)]:
            expected = by_hand(dataclasses.replace(case, kernels={path: DENSE}), expected, adapters_k, scale)
        close(one(model, params, adapters, 1, x), run(case.module, expected, x))
        jax.tree.map(close, model.merge(params, adapters, 1), expected)

    def test_rank_stabilized(self):
        case = CASES["mlp"]
        model, params, adapters, x = setup(case, rank_stabilized=True)
        expected = by_hand(case, params, jax.tree.map(lambda leaf: leaf[1], adapters), ALPHA / math.sqrt(RANK))
        close(one(model, params, adapters, 1, x), run(case.module, expected, x))
        jax.tree.map(close, model.merge(params, adapters, 1), expected)

    @pytest.mark.parametrize(
        ("targets", "found"),
        [
            ("up", {"0/up", "1/up"}),
            ("1/up", {"1/up"}),
            (r"[01]/(up|down)", {"0/up", "0/down", "1/up", "1/down"}),
            (("up", r"1/.*"), {"0/up", "1/up", "1/down"}),
        ],
    )
    def test_names_and_regular_expressions(self, targets, found):
        _, _, adapters, _ = setup(Case(TwoLayers(), (B, 7), {}), targets=targets)
        assert {path.rsplit("/", 1)[0] for path in flatten_dict(adapters, sep="/")} == found

    def test_a_name_is_the_end_of_a_path(self):
        assert lora.matches("up", "block/up")
        assert not lora.matches("up", "block/gate_up")
        assert not lora.matches("up", "up/block")

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"rank": 0}, "at least 1, got 0"),
            ({"rank_pattern": {"up": 0}}, "at least 1, got 0 for 'up'"),
            ({"rank": 1.5}, "an integer of at least 1, got 1.5 for 'rank'"),
            ({"rank": True}, "an integer of at least 1, got True for 'rank'"),
            ({"rank_pattern": {"up": (3, 2.0)}}, r"an integer of at least 1, got \(3, 2.0\) for 'up'"),
            ({"rank_pattern": {"up": None}}, "an integer of at least 1, got None for 'up'"),
            ({"alpha": float("nan")}, "an alpha must be a finite number, got nan for 'alpha'"),
            ({"alpha": "8"}, "an alpha must be a finite number, got '8' for 'alpha'"),
            ({"alpha_pattern": {"up": (1.0, float("inf"))}}, r"a finite number, got \(1.0, inf\) for 'up'"),
            ({"dropout": "0.1"}, "dropout must be a number, got '0.1'"),
            ({"dropout": 1.0}, r"\[0, 1\), got 1.0"),
            ({"targets": ()}, "targets must name at least one linear layer, got none"),
            ({"targets": "("}, "not a valid regular expression"),
        ],
    )
    def test_refused(self, config, message):
        with pytest.raises(ValueError, match=message):
            mcl.LoraConfig(**config)


class TestDtypes:
    def test_bfloat16_base_keeps_float32_adapters(self):
        case = Case(MLP(norm=False, dtype=jnp.bfloat16), (B, 7), CASES["mlp"].kernels)
        model, params, _, x = setup(case)
        params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, x))
        adapters = jax.eval_shape(lambda: initialised(model, params, x))
        assert {leaf.dtype for leaf in jax.tree.leaves(adapters)} == {jnp.dtype("float32")}
        adapters = randomized(adapters, seed=2)
        outs = all_of(model, params, adapters, x)
        assert outs.dtype == jnp.bfloat16
        for k in range(K):
            merged = model.merge(params, adapters, k)
            assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}
            # One rounding to 8 bits after a sum in float32: at most half a unit in the last place.
            wide = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
            exact = by_hand(case, wide, jax.tree.map(lambda leaf, k=k: leaf[k], adapters))
            half = lambda m, e: np.testing.assert_allclose(m.astype(np.float32), e, rtol=2**-8, atol=1e-6)
            jax.tree.map(half, merged, exact)
            out = run(case.module, merged, x)
            spread = np.abs(out.astype(np.float32)).max()
            np.testing.assert_allclose(out.astype(np.float32), outs[k].astype(np.float32), atol=0.03 * spread)
            apart(out, run(case.module, params, x), 0.3 * spread)

    def test_dtypes_can_be_chosen(self):
        model, params, adapters, x = setup(CASES["linear"], dtype=jnp.float32, param_dtype=jnp.bfloat16)
        assert {leaf.dtype for leaf in jax.tree.leaves(adapters)} == {jnp.dtype("bfloat16")}
        assert all_of(model, params, adapters, x).dtype == jnp.float32


class TestCalls:
    def test_keyword_arrays_are_batched_and_scalars_are_passed(self):
        model, params, adapters, x = setup(CASES["mlp"])
        shift = normal(x.shape, seed=5)
        outs = all_of(model, params, adapters, x, scale=1.5, shift=shift)
        out = assigned(model, params, adapters, K_OF_EXAMPLE, x, 1.5, shift=shift)
        close(out, outs[K_OF_EXAMPLE, np.arange(B)])
        apart(outs, all_of(model, params, adapters, x, scale=1.5))

    def test_numpy_adapters_without_jit(self):
        model, params, adapters, x = setup(CASES["linear"], dropout=0.3)
        out = model.apply_assigned(params, adapters, K_OF_EXAMPLE, x, dropout_rng=jax.random.key(2))
        outs = model.apply_all(params, adapters, x, dropout_rng=jax.random.key(2))
        close(out, outs[K_OF_EXAMPLE, np.arange(B)])

    def test_further_collections_stay_beside_params(self):
        module, x = Normed(), normal((B, 7))
        variables = randomized(jax.eval_shape(module.init, jax.random.key(1), x), seed=1)
        variables["batch_stats"]["norm"]["var"] = np.full(7, 0.7, np.float32)
        model = mcl.Hypotheses(module, mcl.LoraConfig(RANK, ALPHA, targets="up"))
        adapters = randomized(jax.eval_shape(lambda: initialised(model, variables, x)), seed=2)
        merged = model.merge(variables, adapters, 1)
        assert set(merged) == {"params", "batch_stats"}
        close(module.apply(merged, x), all_of(model, variables, adapters, x)[1])

    def test_square_layer_of_full_rank_merges(self):
        """Hidden 64 at rank 64, as in the Markov experiment: the shapes alone fit the kernel in two ways."""
        case = Case(Attention(heads=1, head_dim=7), (B, T, 7), CASES["attention"].kernels)
        model, params, adapters, x = setup(case, rank=7)
        merged = model.merge(params, adapters, 2)
        expected = by_hand(case, params, jax.tree.map(lambda leaf: leaf[2], adapters), ALPHA / 7)
        jax.tree.map(close, merged, expected)
        close(run(case.module, merged, x), all_of(model, params, adapters, x)[2], 1e-4)

    def test_an_equation_that_is_no_target_need_not_factorise(self):
        _, _, adapters, _ = setup(Case(Odd(), (B, T, 7), {"up": DENSE}))
        assert set(adapters) == {"up"}
        with pytest.raises(ValueError, match="cannot factorise 'BTD,NTD->BTN'"):
            setup(Case(Odd(), (B, T, 7), {"odd": ""}))


class TestErrors:
    @pytest.mark.parametrize(
        ("targets", "message"),
        [
            ("agian", r"'agian' matches no linear layer. The nearest of 3 linear layers: again\."),
            (("up", "donw"), r"'donw' matches no linear layer. The nearest of 3 linear layers: down"),
            ("xyzzy", "The nearest of 3 linear layers: up, again, down"),
            ("norm", "norm is a LayerNorm; only nn.Dense, nn.DenseGeneral, nn.Einsum and nn.Embed can be adapted"),
        ],
    )
    def test_a_target_that_names_no_linear_layer(self, targets, message):
        with pytest.raises(ValueError, match=message):
            setup(CASES["mlp"], targets=targets)

    def test_patterns_for_layers_that_are_no_targets(self):
        with pytest.raises(ValueError, match="rank_pattern: 'down' matches no"):
            setup(CASES["mlp"], targets="up", rank_pattern={"down": 3})
        with pytest.raises(ValueError, match=r"alpha_pattern: 'upp' matches no .* up"):
            setup(CASES["mlp"], targets="up", alpha_pattern={"upp": 3.0})

    @pytest.mark.parametrize("num_hypotheses", [0, -1])
    def test_fewer_than_one_hypothesis(self, num_hypotheses):
        with pytest.raises(ValueError, match=f"num_hypotheses must be at least 1, got {num_hypotheses}"):
            setup(CASES["mlp"], num_hypotheses)

    def test_adapters_made_for_other_targets(self):
        model, params, adapters, x = setup(CASES["mlp"])
        with pytest.raises(ValueError, match=r"again is a target, but the adapters have no again/a.*same targets"):
            all_of(model, params, {"up": adapters["up"]}, x)
        with pytest.raises(ValueError, match="adapters hold elsewhere, but the parameters have no such layer"):
            model.merge(params, {"elsewhere": adapters["up"]}, 0)
        with pytest.raises(ValueError, match=r"do not fit the kernel \(11, 11\)"):
            model.merge(params, {"again": adapters["up"]}, 0)

    def test_shapes_that_leave_merging_open_are_refused_at_once(self):
        with pytest.raises(ValueError, match=r"q: at rank 7 .* choose another rank"):
            setup(Case(Square(), (B, 7), {"q": ""}), rank=7)

    def test_scan_that_does_not_know_the_collection(self):
        with pytest.raises(ValueError, match=r"layers/up is a target.*variable_axes"):
            setup(Case(Closed(), (B, 7), {"up": ""}))

    @pytest.mark.parametrize("k", [-1, K])
    def test_merge_of_a_hypothesis_that_is_not_there(self, k):
        model, params, adapters, _ = setup(CASES["mlp"])
        with pytest.raises(ValueError, match=rf"k must be in \[0, 3\), got {k}"):
            model.merge(params, adapters, k)

    def test_batch_sizes(self):
        model, params, adapters, x = setup(CASES["mlp"])
        with pytest.raises(ValueError, match=r"must have shape \[B\] = \(5,\), got \(4,\)"):
            assigned(model, params, adapters, np.zeros(4, int), x)
        with pytest.raises(ValueError, match=r"must share one leading batch axis, got sizes \[4, 5\]"):
            assigned(model, params, adapters, np.zeros(5, int), x, shift=x[:4])

    def test_leading_axes(self):
        model, params, adapters, x = setup(CASES["mlp"])
        ragged = {**adapters, "up": jax.tree.map(lambda leaf: leaf[:2], adapters["up"])}
        with pytest.raises(ValueError, match=r"one leading axis K .* \[\(2,\), \(3,\)\]"):
            all_of(model, params, ragged, x)
        with pytest.raises(ValueError, match="one leading axis K"):
            hypotheses.count({})
