"""LoRA-MoE: against experts summed one by one in NumPy, against plain LoRA, and wherever `Hypotheses` would do."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.test_util import check_grads
from toys import Attention, Layer, Scanned, Tokens, adam, normal, randomized, token_batch

import mcl_jax as mcl
from mcl_jax import hypotheses, moe, objectives, parallel
from mcl_jax.checkpoint import Checkpoints

GOLDEN = Path(__file__).parent / "golden"
B, T, E = 5, 4, 3
RANK, ALPHA = 2, 6.0
SCALE = ALPHA / RANK
TARGETS = ("q_proj", "v_proj", "o_proj")
COUNTED = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], bool)


def setup(module, x, targets, *, experts=E, top_k=None, num_models=1, scale=0.5, **config):
    """(model, params, adapters with everything random, x); nothing here is compiled."""
    params = randomized(jax.eval_shape(module.init, jax.random.key(0), x)["params"], seed=1)
    config = {"rank": RANK, "alpha": ALPHA, "targets": targets} | config
    model = mcl.MixtureOfExperts(module, mcl.LoraConfig(**config), experts, top_k)
    init = lambda: model.init(jax.random.key(0), params, x, num_hypotheses=num_models)
    return model, params, randomized(jax.eval_shape(init), seed=2, scale=scale), x


def attention(**options):
    return setup(Attention(), normal((B, T, 7)), TARGETS, **options)


def dense(features=5, **options):
    """One linear layer."""
    return setup(nn.Sequential([nn.Dense(features)]), normal((B, T, 7)), "layers_0", **options)


def run(model, params, adapters, *inputs, method="apply", **options):
    """A method of the model, compiled."""
    call = lambda params, adapters: getattr(model, method)(params, adapters, *inputs, **options)
    return jax.jit(call)(params, adapters)


def with_balance(model, params, adapters, x, counted=COUNTED):
    return run(model, params, adapters, x, counted=counted, method="apply_with_balance")


def one(adapters, k=0):
    return jax.tree.map(lambda leaf: leaf[k], adapters)


def close(actual, expected, tolerance=2e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def apart(a, b, at_least=1e-2):
    assert np.abs(np.asarray(a) - np.asarray(b)).max() > at_least


def doubled(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)


def softmax(z):
    z = np.exp(z - z.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Case:
    """A linear layer, and the equations of: x, W -> y; A, B -> W; x, R -> router logits; gate, y -> y."""

    layer: nn.Module
    x: tuple[int, ...]
    forward: str
    kernel: str
    router: str
    gate: str


CASES = {
    "dense": Case(nn.Dense(5), (B, T, 7), "btd,do->bto", "dr,ro->do", "btd,de->bte", "bt,bto->bto"),
    "own kernel for each head": Case(
        nn.Einsum((3, 7, 5), "BTND,NDH->BTNH"),
        (B, T, 3, 7),
        "btnd,ndh->btnh",
        "ndr,nrh->ndh",
        "btnd,nde->btne",
        "btn,btnh->btnh",
    ),
    "stacked": Case(
        nn.Einsum((2, 3, 7, 5), "BTD,CNDH->CBTNH"),
        (B, T, 7),
        "btd,cndh->cbtnh",
        "dr,cnrh->cndh",
        "btd,de->bte",
        "bt,cbtnh->cbtnh",
    ),
    "two axes": Case(
        nn.DenseGeneral(5, axis=(-2, -1)), (B, T, 3, 7), "btxy,xyo->bto", "xyr,ro->xyo", "btxy,xye->bte", "bt,bto->bto"
    ),
}


@pytest.mark.parametrize(("name", "top_k"), [(name, k) for name in CASES for k in (None, 2)] + [("dense", 1)])
def test_equals_experts_one_by_one(name, top_k):
    """y = W x + (α/r) Σ_e g_e (B_e A_e) x and E Σ_e f_e P_e by NumPy in double precision."""
    case = CASES[name]
    model, params, adapters, x = setup(nn.Sequential([case.layer]), normal(case.x), "layers_0", top_k=top_k)
    with jax.enable_x64(True):
        params, adapters, x = doubled((params, one(adapters), x))
        out = with_balance(model, params, adapters, x) if top_k else (run(model, params, adapters, x), None)
        base = run(model, params, jax.tree.map(jnp.zeros_like, adapters), x)
    layer, x = jax.tree.map(np.asarray, (adapters["layers_0"], x))
    logits = np.einsum(case.router, x, layer["router"])
    chosen = np.argsort(np.argsort(-logits, -1), -1) < (top_k or E)
    gates = softmax(np.where(chosen, logits, -np.inf))
    expected = np.array(base)
    for e in range(E):
        expert = np.einsum(case.forward, x, np.einsum(case.kernel, layer["a"][e], layer["b"][e]))
        expected += SCALE * np.einsum(case.gate, gates[..., e], expert)
    close(out[0], expected, 1e-12)
    if top_k:
        close(out[1], [balance(chosen[b][c], softmax(logits)[b][c], top_k) for b, c in enumerate(COUNTED)], 1e-12)


def balance(chosen, probabilities, top_k):
    """E Σ_e f_e P_e of the tokens of one example, [T, ..., E] each."""
    if len(chosen) == 0:
        return 0.0
    return (E * (chosen.mean(0) / top_k * probabilities.mean(0)).sum(-1)).mean()


def test_one_expert_or_equal_experts_are_plain_lora():
    """So the weights of a token's experts sum to one, chosen ones too."""
    model, params, adapters, x = attention(top_k=2)
    layers = one(adapters).items()
    lora = {name: {leaf: layer[leaf][1] for leaf in "ab"} for name, layer in layers}
    expected = run(mcl.Hypotheses(model.module, model.config), params, lora, x)
    equal = lambda leaf: np.broadcast_to(leaf[1:2], leaf.shape)
    alike = {name: layer | {leaf: equal(layer[leaf]) for leaf in "ab"} for name, layer in layers}
    close(run(model, params, alike, x), expected)
    single = {
        name: {"a": layer["a"][1:2], "b": layer["b"][1:2], "router": layer["router"][:, 1:2]} for name, layer in layers
    }
    close(run(dataclasses.replace(model, num_experts=1, top_k=None), params, single, x), expected)
    apart(run(model, params, one(adapters), x), expected)


def test_all_experts_chosen_is_dense_and_fewer_are_not():
    model, params, adapters, x = attention()
    sparse = {k: run(dataclasses.replace(model, top_k=k), params, one(adapters), x) for k in (None, 1, 2, E)}
    close(sparse[E], sparse[None])
    apart(sparse[2], sparse[None])
    apart(sparse[1], sparse[2])


def test_permuting_experts_changes_nothing():
    model, params, adapters, x = attention(top_k=2)
    order, axis = np.array([2, 0, 1]), {"a": 0, "b": 0, "router": -1}
    permute = lambda layer: {leaf: np.take(layer[leaf], order, axis[leaf]) for leaf in axis}
    permuted = {name: permute(layer) for name, layer in one(adapters).items()}
    out, expected = with_balance(model, params, permuted, x), with_balance(model, params, one(adapters), x)
    jax.tree.map(close, out, expected)
    apart(expected[1], np.ones(B))


def test_zero_b_is_exactly_the_base():
    model, params, _, x = setup(Scanned(), normal((B, T, 7)), ("up", "down"), top_k=2)
    adapters = model.init(jax.random.key(3), params, x)
    expected = jax.jit(model.module.apply)({"params": params}, x)
    np.testing.assert_array_equal(run(model, params, one(adapters), x), expected)


class TestInit:
    def test_experts_and_routers_are_drawn_as_for_one_layer(self):
        model, params, _, x = setup(Scanned(), normal((B, 7)), "up", rank=4, experts=5)
        layer = model.init(jax.random.key(3), params, x, num_hypotheses=2)["layers"]["up"]
        shapes = {"a": (2, 3, 5, 7, 4), "b": (2, 3, 5, 4, 11), "router": (2, 3, 7, 5)}  # K, L, then as of one
        assert {name: leaf.shape for name, leaf in layer.items()} == shapes
        assert not np.asarray(layer["b"]).any()
        for leaf in (np.asarray(layer["a"]), np.asarray(layer["router"])):
            assert len(np.unique(leaf)) == leaf.size
            assert 0.9 / np.sqrt(7) < np.abs(leaf).max() <= 1 / np.sqrt(7)

    def test_one_model_by_default_and_patterns_of_rank(self):
        adapters = attention(rank_pattern={"v_proj": 3})[2]
        assert hypotheses.count(adapters) == 1
        assert adapters["v_proj"]["a"].shape == (1, E, 7, 3)
        assert adapters["q_proj"]["b"].shape == (1, E, RANK, 10)


class TestGradients:
    @pytest.mark.parametrize("top_k", [None, 2])
    def test_against_differences(self, top_k):
        """Of outputs and balance loss, through three layers, with respect to adapters and inputs."""
        model, params, adapters, x = attention(top_k=top_k)
        with jax.enable_x64(True):
            params, adapters, x = doubled((params, one(adapters), x))
            method = functools.partial(model.apply_with_balance, counted=COUNTED) if top_k else model.apply
            call = jax.jit(lambda adapters, x: method(params, adapters, x))
            check_grads(call, (adapters, x), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)

    def test_reach_every_expert_and_only_the_balance_moves_a_router_of_one(self):
        model, params, adapters, x = attention(top_k=1)

        def loss(adapters, weight):
            out, balance = model.apply_with_balance(params, adapters, x, counted=COUNTED)
            return jnp.square(out).sum() + weight * balance.sum()

        gradient = jax.jit(jax.grad(loss))
        without, with_it = (flatten_dict(gradient(one(adapters), weight), sep="/") for weight in (0.0, 1.0))
        for path, leaf in without.items():
            if path.endswith("router"):  # the weight of a token's only expert is 1, whatever the router says
                close(leaf, np.zeros_like(leaf), 1e-5)
                apart(with_it[path], leaf)
            else:
                assert all(np.abs(leaf[e]).max() > 1e-4 for e in range(E)), path

    def test_no_array_has_an_output_for_each_expert(self):
        """Forward and backward, the largest arrays are an output and the B matrices."""
        experts, wide = 11, 101
        model, params, adapters, x = dense(wide, experts=experts, top_k=3)
        loss = lambda adapters, x: run(model, params, adapters, x).sum()
        sizes = sizes_in(jax.make_jaxpr(jax.grad(loss, (0, 1)))(one(adapters), x).jaxpr)
        assert B * T * experts * RANK in sizes
        assert max(sizes) == max(B * T * wide, experts * RANK * wide)


def sizes_in(jaxpr):
    """Sizes of all arrays that a jaxpr, and those inside it, compute."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {variable.aval.size for variable in equation.outvars}
        for inner in equation.params.values():
            inner = getattr(inner, "jaxpr", inner)
            found |= sizes_in(inner) if hasattr(inner, "eqns") else set()
    return found


class TestBalanceLoss:
    def test_padding_may_hold_anything(self):
        logits, counted = normal((2, 5, 3)), np.arange(5)[None] < np.array([[5], [2]])
        spoiled = np.where(counted[..., None], logits, np.nan)
        loss = jax.value_and_grad(lambda z: moe.balance_loss(z, 2, counted).sum())
        jax.tree.map(close, loss(spoiled), loss(logits))

    def test_is_one_when_experts_are_used_alike(self):
        everything = jnp.ones((B, T), bool)
        close(moe.balance_loss(jnp.zeros((B, T, E)), 2, everything), np.ones(B), 1e-6)
        turns = 7.0 * jax.nn.one_hot(jnp.arange(2 * E)[None] % E, E)  # one token for each expert in turn, twice
        close(moe.balance_loss(turns, 1, jnp.ones((1, 2 * E), bool)), np.ones(1), 1e-6)

    def test_is_e_over_k_when_all_choose_the_same(self):
        for top_k in (1, 2):
            logits = jnp.broadcast_to(jnp.where(jnp.arange(E) < top_k, 30.0, 0.0), (B, T, E))
            close(moe.balance_loss(logits, top_k, jnp.ones((B, T), bool)), np.full(B, E / top_k), 1e-5)

    def test_descending_it_evens_the_load(self):
        x = normal((1, 64, 7)) + 1.0  # with a mean, so that some experts are liked by all
        counted = jnp.ones((1, 64), bool)
        loss = jax.jit(jax.value_and_grad(lambda router: moe.balance_loss(x @ router, 1, counted)[0]))
        load = lambda router: np.asarray(moe.chosen_experts(x @ router, 1)).mean((0, 1))
        first = router = normal((7, E), 3)
        for _ in range(50):
            router = router - 0.5 * np.asarray(loss(router)[1])
        assert load(first).max() > 0.6
        assert loss(first)[0] > 1.2
        assert load(router).max() < 0.45
        assert loss(router)[0] < 1.02

    def test_padding_counts_nowhere(self):
        """On either side, whatever stands in it; other examples of the batch neither."""
        model, params, adapters, x = setup(Tokens(), np.arange(B * T).reshape(B, T) % 13, ("up", "head"), top_k=2)
        counted, adapters = np.ones((B, T), bool), one(adapters)
        call = jax.jit(lambda x, counted: model.apply_with_balance(params, adapters, x, counted=counted))
        logits, balance = call(x, counted)
        pad = lambda array, value: np.pad(array, ((0, 0), (2, 3)), constant_values=value)
        for junk in (0, 7):
            padded_logits, padded = call(pad(x, junk), pad(counted, False))
            close(padded, balance)
            close(padded_logits[:, 2:-3], logits)
        apart(call(pad(x, junk), pad(counted, True))[1], balance)
        close(call(x[2:3], counted[2:3])[1], balance[2:3])

    def test_is_the_mean_over_scanned_and_rematerialised_layers(self):
        model, params, adapters, x = setup(Scanned(), normal((B, T, 7)), ("up", "down"), top_k=2)
        adapters, layer, expected = one(adapters), dataclasses.replace(model, module=Layer()), []
        out, balance = with_balance(model, params, adapters, x)
        gradient = jax.jit(jax.grad(lambda a: with_balance(model, params, a, normal((B, T, 7)))[1].sum()))(adapters)
        call = jax.jit(lambda params, adapters, x: layer.apply_with_balance(params, adapters, x, counted=COUNTED))
        for i in range(3):
            (x, _), found = call(*jax.tree.map(lambda leaf, i=i: leaf[i], (params["layers"], adapters["layers"])), x)
            expected.append(found)
            assert np.abs(gradient["layers"]["down"]["router"][i]).max() > 1e-4
        close(out, x)
        close(balance, np.mean(expected, 0))
        apart(expected[0], expected[1])

    def test_a_layer_called_twice_reports_twice(self):
        twice, params, adapters, x = setup(Repeated(2), normal((B, T, 7)), "again", top_k=1)
        once = dataclasses.replace(twice, module=Repeated(1))
        hidden, first = with_balance(once, params, one(adapters), x)
        out, second = with_balance(once, params, one(adapters), hidden)
        found, both = with_balance(twice, params, one(adapters), x)
        close(found, out)
        close(both, (first + second) / 2)
        apart(first, second)


class Repeated(nn.Module):
    """One layer, called several times."""

    calls: int

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(7, name="again")
        for _ in range(self.calls):
            x = layer(x)
        return x


def test_dropout_is_of_the_experts_inputs_and_not_of_the_routers():
    """The layer is linear in what is dropped, so that the mean of many draws is the output without."""
    model, params, adapters, x = dense(dropout=0.4, scale=2.0)
    draw = lambda key: model.apply(params, one(adapters), x, dropout_rng=key)
    draws = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(3), 4000))
    error = np.asarray(draws).std(0) / np.sqrt(4000)
    assert (error > 0).all()
    assert (np.abs(draws.mean(0) - run(model, params, one(adapters), x)) < 4.5 * error).all()


def test_several_models_at_once_are_each_alone():
    model, params, adapters, x = dense(top_k=2, num_models=4, dropout=0.3)
    rng, k = jax.random.key(4), np.array([3, 0, 1, 1, 2])
    outs, alone = run(model, params, adapters, x, method="apply_all"), jax.jit(lambda a: model.apply(params, a, x))
    for i in range(4):
        close(outs[i], alone(one(adapters, i)))
    outs = run(model, params, adapters, x, dropout_rng=rng, method="apply_all")
    close(run(model, params, adapters, k, x, dropout_rng=rng, method="apply_assigned"), outs[k, np.arange(B)])


def test_bfloat16_base_keeps_float32_adapters_and_routing():
    model, params, adapters, x = dense(top_k=2)
    params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, x))
    narrow = dataclasses.replace(model, module=nn.Sequential([nn.Dense(5, dtype=jnp.bfloat16)]))
    out, balance = with_balance(narrow, params, one(adapters), x)
    assert (out.dtype, balance.dtype) == (jnp.bfloat16, jnp.float32)
    expected = run(model, *jax.tree.map(lambda leaf: leaf.astype(np.float32), (params, one(adapters), x)))
    np.testing.assert_allclose(out.astype(np.float32), expected, atol=0.03 * np.abs(expected).max())
    gradient = jax.jit(jax.grad(lambda a: narrow.apply(params, a, x).astype(jnp.float32).sum()))(one(adapters))
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


MODEL = mcl.MixtureOfExperts(Tokens(), mcl.LoraConfig(RANK, ALPHA, targets=("up", "down"), dropout=0.1), 4, top_k=2)
BATCH = token_batch(8)
WEIGHT = 0.05


def log_likelihood_fn(params, adapters_k, batch, rng, weight=WEIGHT):
    inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    logits, balance = MODEL.apply_with_balance(params, adapters_k, inputs, counted=batch["mask"], dropout_rng=rng)
    log_p, tokens = mcl.sequence_log_likelihood(logits, targets, batch["mask"])
    return moe.with_balance(log_p, tokens, balance, weight), tokens


def start(optimizer):
    inputs = BATCH["tokens"][:, :-1]
    params = randomized(jax.eval_shape(Tokens().init, jax.random.key(0), inputs)["params"], seed=1)
    adapters = MODEL.init(jax.random.key(2), params, inputs)
    return mcl.TrainState.create(params=params, adapters=adapters, optimizer=optimizer, rng=jax.random.key(5))


@functools.cache
def trained(make: Any, steps: int = 40, **options: Any):
    """The state after some steps, and the metrics of each, as NumPy."""
    optimizer, history = adam(0.03), []
    state, step = start(optimizer), make(log_likelihood_fn, objectives.mle(), optimizer, **options)
    for _ in range(steps):
        state, metrics = step(state, BATCH)
        history.append(jax.tree.map(np.asarray, metrics))
    return state, history


class TestTraining:
    def test_loss_is_nats_a_token_plus_the_balance_and_falls(self):
        state, history = trained(mcl.make_train_step)
        call = lambda adapters, weight: log_likelihood_fn(state.params, one(adapters), BATCH, None, weight)
        every = jax.jit(lambda adapters: (*call(adapters, 0.0), call(adapters, WEIGHT)[0]))
        log_p, tokens, penalised = every(start(adam(0.03)).adapters)
        lengths = tokens.astype(jnp.float32)
        inputs, counted = BATCH["tokens"][:, :-1], BATCH["mask"]
        balance = with_balance(MODEL, state.params, one(start(adam(0.03)).adapters), inputs, counted)[1]
        close((log_p - penalised) / lengths, WEIGHT * balance)
        close(history[0]["loss"], np.mean(-log_p / lengths + WEIGHT * balance), 1e-5)  # B = 0: dropout does nothing
        assert -(every(state.adapters)[0] / lengths).mean() < 0.6 * -(log_p / lengths).mean()

    def test_on_two_devices_as_on_one(self):
        _, found = trained(parallel.pmap_step, steps=4, devices=tuple(jax.devices()[:2]))
        same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
        jax.tree.map(same, found, trained(mcl.make_train_step)[1][:4])

    def test_goes_on_from_a_checkpoint(self, tmp_path):
        state, _ = trained(mcl.make_train_step)
        with Checkpoints(tmp_path, async_=False) as checkpoints:
            checkpoints.save(state, config={})
            restored, _, _ = checkpoints.restore(start(adam(0.03)))
        jax.tree.map(np.testing.assert_array_equal, restored.adapters, state.adapters)


def test_greedy_answers_are_those_of_whole_forward_passes():
    """A scanned Llama, prompts padded on the left, two models at once: cached decoding against none."""
    module, params, _ = mcl.models.from_pretrained(GOLDEN / "models" / "llama")
    config = mcl.LoraConfig(rank=3, alpha=7, targets=("q_proj", "v_proj", "down_proj"))
    model = mcl.MixtureOfExperts(module, config, E, top_k=2)
    init = lambda: model.init(jax.random.key(0), params, jnp.zeros((1, 2), jnp.int32), num_hypotheses=2)
    adapters, new = randomized(jax.eval_shape(init), seed=3, scale=0.3), 6
    tokens = np.random.default_rng(0).integers(0, module.config.vocab_size, (3, 5)).astype(np.int32)
    mask = np.arange(5)[None] >= np.array([0, 2, 4])[:, None]
    found = mcl.generate(model, params, adapters, {"tokens": tokens, "mask": mask}, max_new_tokens=new)
    read = np.concatenate([np.broadcast_to(tokens, (2, 3, 5)), found[:, :, 0]], axis=2)
    seen = np.pad(mask, ((0, 0), (0, new)), constant_values=True)
    logits = jax.jit(jax.vmap(lambda a, read: model.apply(params, a, read, seen)))(adapters, read)
    np.testing.assert_array_equal(np.argmax(logits, -1)[:, :, 4:-1], found[:, :, 0])
    assert len(np.unique(found)) > 4
    assert (found[0] != found[1]).any()


class Closed(nn.Module):
    """A scan that knows adapters, but not what routers report."""

    @nn.compact
    def __call__(self, x):
        axes, splits = {"params": 0, "lora": 0}, {"params": True}
        return nn.scan(Layer, variable_axes=axes, split_rngs=splits, length=2)(name="layers")(x)[0]


class TestErrors:
    @pytest.mark.parametrize(
        ("experts", "top_k", "message"),
        [
            (0, None, "num_experts must be at least 1, got 0"),
            (3, 0, r"top_k must be in \[1, num_experts=3\], got 0"),
            (3, 4, r"top_k must be in \[1, num_experts=3\], got 4"),
        ],
    )
    def test_sizes(self, experts, top_k, message):
        with pytest.raises(ValueError, match=message):
            mcl.MixtureOfExperts(Attention(), mcl.LoraConfig(), experts, top_k)

    def test_dense_routing_has_no_balance(self):
        model, params, adapters, x = dense()
        with pytest.raises(ValueError, match="every token goes to every expert. Set top_k"):
            with_balance(model, params, one(adapters), x)

    def test_counted_of_another_shape(self):
        model, params, adapters, x = dense(top_k=2)
        with pytest.raises(ValueError, match=r"counted must be .* layer layers_0, .* shape \(5, 4\), got \(5, 3\)"):
            with_balance(model, params, one(adapters), x, COUNTED[:, :3])

    def test_scan_that_does_not_know_the_collection(self):
        model, params, adapters, x = setup(Closed(), normal((B, T, 7)), "up", top_k=2)
        jax.eval_shape(lambda: model.apply(params, one(adapters), x))
        with pytest.raises(ValueError, match='layers/up: inside nn.scan, .* variable_axes={"routing": 0}'):
            with_balance(model, params, one(adapters), x)

    def test_adapters_of_plain_lora(self):
        model, params, adapters, x = dense()
        adapters["layers_0"].pop("router")
        with pytest.raises(ValueError, match="layers_0 is a target, but the adapters have no layers_0/router"):
            run(model, params, one(adapters), x)

    def test_targets_are_checked(self):
        with pytest.raises(ValueError, match="'layers_1' matches no linear layer.*layers_0"):
            setup(nn.Sequential([nn.Dense(5)]), normal((B, T, 7)), "layers_1")


def test_an_expert_alone_is_a_mixture_of_this_expert():
    model, params, adapters, x = attention()
    alone, apart = moe.experts_alone(model, adapters)
    found = run(alone, params, apart, x, method="apply_all")
    single = mcl.MixtureOfExperts(model.module, model.config, 1)
    for e in range(E):
        of_e = lambda path, leaf, e=e: leaf[..., e : e + 1] if path[-1].key == "router" else leaf[e : e + 1]
        wanted = run(single, params, jax.tree_util.tree_map_with_path(of_e, one(adapters)), x)
        np.testing.assert_allclose(found[e], wanted, rtol=1e-5, atol=1e-5)
    assert not np.allclose(found[0], found[1])


def test_experts_of_stacked_layers_alone():
    """As many layers as experts, so that only the places of the axes tell them apart."""
    a, b, router = normal((1, E, E, 7, RANK)), normal((1, E, E, RANK, 5)), normal((1, E, 7, E))
    _, apart = moe.experts_alone(attention()[0], {"layers": {"up": {"a": a, "b": b, "router": router}}})
    np.testing.assert_array_equal(apart["layers"]["up"]["a"], np.moveaxis(a[0], 1, 0))
    np.testing.assert_array_equal(apart["layers"]["up"]["b"], np.moveaxis(b[0], 1, 0))
    assert set(apart["layers"]["up"]) == {"a", "b"}
    with pytest.raises(ValueError, match="adapters of one model, with a leading axis of 1, got 2"):
        moe.experts_alone(attention()[0], {"up": {"a": np.zeros((2, E, 7, RANK))}})
