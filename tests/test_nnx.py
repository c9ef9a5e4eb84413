"""Modules of Flax NNX: the numbers of the Linen twin, and what is special about them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
import toys_nnx
from flax import nnx
from toy_language import Bigrams, bigram_hypotheses
from toys import adam, normal, randomized, token_batch, token_log_likelihood

import mcl_jax as mcl
from mcl_jax import checkpoint, hypotheses, language_model

K, B = 5, 3
X, SEQUENCES = normal((B, 7)), normal((B, 4, 7))
CONFIG = mcl.LoraConfig(rank=2, alpha=6.0, targets=("up", "down"))
TOKENS = toys_nnx.Tokens(rngs=nnx.Rngs(0))
BATCH = token_batch(batch=B)


def close(a, b, tolerance=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), a, b)


def some_adapters(model, params, *inputs, scale=0.5):
    init = lambda: model.init(jax.random.key(0), params, *inputs, num_hypotheses=K)
    return randomized(jax.eval_shape(init), seed=2, scale=scale)


def setup(module, x, targets="up", **options):
    """Hypotheses of an NNX module, its parameters and K different adapters, all as NumPy arrays."""
    model = mcl.Hypotheses(module, mcl.LoraConfig(2, 6.0, targets=targets, **options))
    params = randomized(nnx.to_pure_dict(nnx.state(model.module, nnx.Param)), seed=1)
    return model, params, some_adapters(model, params, x)


def merged_module(module, state, model, adapters, k):
    """The module with the kernels of hypothesis k, without adapters."""
    return nnx.merge(nnx.graphdef(module), model.merge(state, adapters, k))


# --------------------------------------------------------------------------------------------------------- Linen twins


@pytest.fixture(scope="module")
def twins():
    """Hypotheses of NNX and of Linen, the parameters of both, and adapters that fit both."""
    params = randomized(nnx.to_pure_dict(nnx.state(TOKENS)), seed=1)
    model, twin = mcl.Hypotheses(TOKENS, CONFIG), mcl.Hypotheses(toys.Tokens(), CONFIG)
    return model, twin, params, some_adapters(model, params, BATCH["tokens"])


def test_forward_and_gradient_are_those_of_linen(twins):
    *models, params, adapters = twins

    @jax.jit
    def both(adapters):
        loss = lambda model: lambda a: jnp.square(model.apply_all(params, a, BATCH["tokens"])).sum()
        return [
            (model.apply_all(params, adapters, BATCH["tokens"]), jax.grad(loss(model))(adapters)) for model in models
        ]

    (out, gradient), (expected, expected_gradient) = both(adapters)
    close(out, expected)
    jax.tree.map(lambda g, e: close(g / np.abs(e).max(), e / np.abs(e).max()), gradient, expected_gradient)
    assert out.shape == (K, B, 6, 13) and all(np.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(gradient))


def test_each_token_under_a_hypothesis_of_its_own(twins):
    """`Tokens` mixes no tokens, so that each has what its hypothesis gives to all of them."""
    *models, params, adapters = twins
    tokens = BATCH["tokens"]
    k_of_token = np.random.default_rng(0).integers(0, K, tokens.shape)
    every = models[0].apply_all(params, adapters, tokens)
    expected = np.take_along_axis(np.asarray(every), k_of_token[None, ..., None], axis=0)[0]
    for model in models:
        close(model.apply_by_token(params, adapters, k_of_token, tokens), expected, 1e-5)


def state_of(params, adapters):
    return mcl.TrainState.create(
        params=jax.tree.map(jnp.asarray, params), adapters=adapters, optimizer=adam(0.05), rng=jax.random.key(5)
    )


@pytest.fixture(scope="module")
def step(twins):
    return mcl.make_train_step(token_log_likelihood(twins[0]), mcl.objectives.wta(), adam(0.05), "winner")


def test_a_step_is_that_of_linen_and_leaves_the_base_alone(twins, step):
    _, twin, params, adapters = twins
    state, metrics = step(state_of(params, adapters), BATCH)
    jax.tree.map(np.testing.assert_array_equal, state.params, params)  # bit for bit
    other = mcl.make_train_step(token_log_likelihood(twin), mcl.objectives.wta(), adam(0.05), "winner")
    expected, expected_metrics = other(state_of(params, adapters), BATCH)
    close((state.adapters, metrics), (expected.adapters, expected_metrics))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.adapters, adapters)
    assert min(jax.tree.leaves(moved)) > 0.01


def test_a_resumed_training_is_a_straight_one(twins, step, tmp_path):
    _, _, params, adapters = twins
    straight, _ = step(state_of(params, adapters), BATCH)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(straight, config={})
        checkpoints.wait()
        resumed, _, _ = checkpoints.restore(state_of(params, adapters))
    (straight, _), (resumed, _) = step(straight, BATCH), step(resumed, BATCH)
    jax.tree.map(np.testing.assert_array_equal, resumed.adapters, straight.adapters)
    assert int(resumed.step) == 2


@pytest.mark.slow
@pytest.mark.parametrize("backward", ["sampled", "all"])
def test_other_steps_are_those_of_linen(twins, backward):
    *models, params, adapters = twins
    make = lambda model: mcl.make_train_step(
        token_log_likelihood(model), mcl.objectives.relaxed_wta(0.2), adam(0.05), backward
    )
    results = [make(model)(state_of(params, adapters), BATCH) for model in models]
    (state, metrics), (expected, expected_metrics) = results
    close((state.adapters, metrics), (expected.adapters, expected_metrics))


@pytest.mark.slow
def test_a_mesh_gives_the_step_of_one_device(twins):
    """The parameters are a state of NNX with random streams, on two axes."""
    model, _, _, adapters = twins
    batch, make = token_batch(batch=8), mcl.make_train_step
    arguments = token_log_likelihood(model), mcl.objectives.wta(), adam(0.05), "winner"
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    rules = [(r"(up|head)/kernel$", "outputs"), (r"down/kernel$", "inputs")]
    sharding = mcl.parallel.base_sharding(mesh, rules)
    params = nnx.state(TOKENS)
    placed = jax.tree_util.tree_map_with_path(
        lambda keys, leaf: jax.device_put(leaf, sharding(keys, leaf.shape)), params
    )
    alone, metrics = make(*arguments)(state_of(params, adapters), batch)
    together, metrics_together = make(*arguments, mesh=mesh)(state_of(placed, adapters), batch)
    close((together.adapters, metrics_together), (alone.adapters, metrics), 2e-5)


@pytest.mark.slow
def test_generation_and_likelihood_are_those_of_linen():
    twin, params, adapters = bigram_hypotheses()
    model = mcl.Hypotheses(toys_nnx.Bigrams(rngs=nnx.Rngs(0)), twin.config)
    prompts = {"input_ids": np.array([[1, 2], [3, 4]]), "attention_mask": np.ones((2, 2), int)}
    outs = [mcl.generate(m, params, adapters, prompts, max_new_tokens=5, eos_token_id=12) for m in (model, twin)]
    np.testing.assert_array_equal(*outs)
    batch = {"tokens": BATCH["tokens"], "target_mask": BATCH["mask"]}
    close(*(language_model.evaluate(m, params, adapters, [batch])[0] for m in (model, twin)))


# -------------------------------------------------------------------------------------------------------------- Layers

KINDS = {
    "Linear": (lambda rngs: nnx.Linear(7, 3, rngs=rngs), lambda name: nn.Dense(3, name=name), X),
    "several axes": (
        lambda rngs: nnx.LinearGeneral((4, 7), (2, 3), axis=(-2, -1), rngs=rngs),
        lambda name: nn.DenseGeneral((2, 3), axis=(-2, -1), name=name),
        SEQUENCES,
    ),
    "batch axis": (
        lambda rngs: nnx.LinearGeneral(7, 2, axis=2, batch_axis={0: B}, rngs=rngs),
        lambda name: nn.DenseGeneral(2, axis=2, batch_dims=(0,), name=name),
        SEQUENCES,
    ),
    "Einsum": (
        lambda rngs: nnx.Einsum("...td,hdf->...htf", (2, 7, 3), rngs=rngs),
        lambda name: nn.Einsum((2, 7, 3), "...td,hdf->...htf", False, name=name),
        SEQUENCES,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer(kind):
    """Equals the layer of Linen, and the kernel with B A added to it."""
    make, linen, x = KINDS[kind]
    model, params, adapters = setup(toys_nnx.Named(make), x)
    out = model.apply(params, hypotheses.select(adapters, 1), x)
    twin = mcl.Hypotheses(toys.Named(linen), model.config)
    close(out, twin.apply(params, hypotheses.select(adapters, 1), x))
    close(out, model.apply_base(model.merge(params, adapters, 1), x), 3e-6)
    assert jax.tree.map(jnp.shape, adapters) == jax.tree.map(jnp.shape, some_adapters(twin, params, x))


OTHERS = {
    "another equation at the call": (
        toys_nnx.Named(lambda rngs: nnx.Einsum("bd,df->bf", (7, 3), rngs=rngs)),
        lambda module, x: module.up(x, "bd,df->fb"),
    ),
    "subclass": (toys_nnx.Named(lambda rngs: toys_nnx.Around(7, 3, rngs=rngs)), None),
    "same layer at two places": (
        toys_nnx.Named(lambda rngs: nnx.Linear(7, 7, rngs=rngs)),
        lambda module, x: module.up(nnx.tanh(module.up(x))),
    ),
    "rematerialised": (
        toys_nnx.Named(lambda rngs: nnx.Linear(7, 3, rngs=rngs)),
        lambda module, x: nnx.remat(lambda layer, x: layer(x))(module.up, x),
    ),
    "jit": (
        toys_nnx.Named(lambda rngs: nnx.Linear(7, 3, rngs=rngs)),
        lambda module, x: nnx.jit(lambda layer, x: layer(x))(module.up, x),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_is_adapted_as_merging_says(name):
    module, method = OTHERS[name]
    model = mcl.Hypotheses(module, mcl.LoraConfig(2, 6.0, targets="up"))
    params = randomized(nnx.to_pure_dict(nnx.state(model.module)), seed=1)
    init = lambda: model.init(jax.random.key(0), params, X, num_hypotheses=K, method=method)
    adapters = randomized(jax.eval_shape(init), seed=2)
    out = model.apply(params, hypotheses.select(adapters, 1), X, method=method)
    close(out, model.apply_base(model.merge(params, adapters, 1), X, method=method), 3e-6)
    assert np.abs(out - model.apply_base(params, X, method=method)).max() > 0.1


def test_stacked_layers():
    """One path, adapters with the layer axis in front, and one rank and alpha for each layer."""
    patterns = {"rank_pattern": {"layers": (2, 1, 2)}, "alpha_pattern": {"layers": (6.0, 5.0, 4.0)}}
    model, params, adapters = setup(toys_nnx.Scanned(rngs=nnx.Rngs(0)), X, "layers", dropout=0.4, **patterns)
    assert jax.tree.map(jnp.shape, adapters) == {"layers": {"a": (K, 3, 7, 2), "b": (K, 3, 2, 7)}}
    outs = model.apply_all(params, adapters, X)
    close(outs[1], model.apply_base(model.merge(params, adapters, 1), X), 3e-6)
    expected, scale = X, (3.0, 5.0, 2.0)
    for i in range(3):  # padding beyond rank 1 of the second layer does nothing
        a, b = (adapters["layers"][name][1, i] for name in ("a", "b"))
        delta = scale[i] * (a @ b if i != 1 else a[:, :1] @ b[:1])
        kernel, bias = params["layers"]["kernel"][i], params["layers"]["bias"][i]
        expected = expected + np.tanh(expected @ (kernel + delta) + bias[None])
    close(outs[1], expected, 3e-5)
    dropped = model.apply(params, hypotheses.select(adapters, 1), X, dropout_rng=jax.random.key(1))
    assert np.abs(dropped - outs[1]).max() > 0.1


# ---------------------------------------------------------------------------------------------------------- Hypotheses


def test_init_gives_the_base_and_all_ways_agree():
    """B = 0 is the base bit for bit; then vmap, a loop and K merged modules are the same."""
    model, state = mcl.Hypotheses(TOKENS, CONFIG), nnx.state(TOKENS)
    tokens = BATCH["tokens"]
    adapters = model.init(jax.random.key(1), state, tokens, num_hypotheses=K)
    assert np.abs(adapters["up"]["a"][0] - adapters["up"]["a"][1]).max() > 0.1
    np.testing.assert_array_equal(model.apply_all(state, adapters, tokens), np.stack(K * [TOKENS(tokens)]))
    adapters = randomized(adapters, seed=2)
    together = model.apply_all(state, adapters, tokens)
    for k in range(K):
        close(together[k], model.apply(state, hypotheses.select(adapters, k), tokens), 3e-6)
        close(together[k], merged_module(TOKENS, state, model, adapters, k)(tokens), 3e-6)
    ks = np.array([3, 1, 4])
    close(model.apply_assigned(state, adapters, ks, tokens), np.asarray(together)[ks, np.arange(B)], 3e-6)


@pytest.mark.parametrize(
    "options",
    [{"shared_rank": 3}, {"rank_pattern": {"up": 3}, "alpha_pattern": {"down": 5.0}, "rank_stabilized": True}],
)
def test_settings_of_the_config(options):
    model, params, adapters = setup(TOKENS, BATCH["tokens"], ("up", "down"), **options)
    out = model.apply(params, hypotheses.select(adapters, 2), BATCH["tokens"])
    close(out, model.apply_base(model.merge(params, adapters, 2), BATCH["tokens"]), 3e-6)
    twin = mcl.Hypotheses(toys.Tokens(), model.config)
    close(out, twin.apply(params, hypotheses.select(adapters, 2), BATCH["tokens"]))


def test_dropout_and_batch_normalisation():
    """A key switches dropout on, unless the module is in evaluation mode; running averages are always used."""
    module = toys_nnx.Dropped(rngs=nnx.Rngs(0))
    model = mcl.Hypotheses(module, mcl.LoraConfig(2, 6.0, targets="up"))
    state = nnx.state(module)
    adapters = some_adapters(model, state, X)
    model.check(state, adapters, X)
    plain = model.apply_all(state, adapters, X)
    once, again, other = (model.apply_all(state, adapters, X, dropout_rng=jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - other).max() > 0.1 and np.abs(once - plain).max() > 0.1
    ks = np.array([3, 1, 4])
    assigned = model.apply_assigned(state, adapters, ks, X, dropout_rng=jax.random.key(1))
    close(assigned, np.asarray(once)[ks, np.arange(B)], 3e-6)
    module.eval()
    quiet = mcl.Hypotheses(module, model.config).apply_all(state, adapters, X, dropout_rng=jax.random.key(1))
    close(quiet, plain, 3e-6)


def test_parameters_may_lack_random_streams_but_nothing_else():
    module = toys_nnx.Dropped(rngs=nnx.Rngs(0))
    model = mcl.Hypotheses(module, mcl.LoraConfig(2, 6.0, targets="up"))
    _, _, rest = nnx.split(module, nnx.RngState, ...)
    np.testing.assert_array_equal(model.apply_base(rest, X), model.apply_base(nnx.state(module), X))
    with pytest.raises(ValueError, match=r"have no norm/mean; pass nnx.state\(module\), with all its variables"):
        model.apply_base(nnx.state(module, nnx.Param), X)


def test_the_model_holds_no_arrays_and_equals_one_of_another_copy():
    model, again = (mcl.Hypotheses(toys_nnx.Tokens(rngs=nnx.Rngs(seed)), CONFIG) for seed in (0, 1))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(nnx.state(model.module)))
    assert model == again and hash(model) == hash(again)
    assert model == mcl.Hypotheses(model.module, CONFIG)
    assert model != mcl.Hypotheses(toys_nnx.Tokens(width=11, rngs=nnx.Rngs(0)), CONFIG)
    assert model.reached(nnx.state(TOKENS), BATCH["tokens"]) == {"up", "down"}


def test_experts():
    twin = mcl.MixtureOfExperts(toys.Tokens(), CONFIG, 3, top_k=2)
    model = mcl.MixtureOfExperts(TOKENS, CONFIG, 3, top_k=2)
    params = randomized(nnx.to_pure_dict(nnx.state(TOKENS)), seed=1)
    tokens = BATCH["tokens"]
    adapters = randomized(jax.eval_shape(lambda: model.init(jax.random.key(0), params, tokens)), seed=2)
    close(model.apply_all(params, adapters, tokens), twin.apply_all(params, adapters, tokens), 3e-6)
    with pytest.raises(ValueError, match="layers of flax.nnx cannot report routing"):
        model.apply_with_balance(params, hypotheses.select(adapters, 0), tokens, counted=tokens > 0)


# ------------------------------------------------------------------------------------------------------------- Refused


def linear(rngs):
    return nnx.Linear(7, 3, rngs=rngs)


def tied(rngs):
    first = linear(rngs)
    first.twin = nnx.Linear(7, 3, rngs=rngs)
    first.twin.kernel = first.kernel
    return first


def moved(rngs):
    layer = linear(rngs)
    layer.kernel = nnx.Param(jnp.zeros((7, 4, 3)))
    return layer


REFUSED = {
    "unknown": (linear, "wp", r"'wp' matches no linear layer. The nearest of 2 linear layers: up"),
    "convolution": (
        lambda rngs: nnx.Conv(7, 3, 1, rngs=rngs),
        "up",
        "up is a Conv; only nnx.Linear, nnx.LinearGeneral and nnx.Einsum can be adapted",
    ),
    "not called": (linear, "idle", "'idle' matches idle, which the example call of the module does not call"),
    "own use of the kernel": (
        lambda rngs: toys_nnx.Positive(7, 3, rngs=rngs),
        "up",
        "up is a Positive, whose __call__ does not call that of nnx.Linear",
    ),
    "tied": (tied, "up", "up shares its kernel with another layer"),
    "normalized": (
        lambda rngs: nnx.WeightNorm(linear(rngs), rngs=rngs),
        "up/.*",
        "up/layer_instance is inside nnx.WeightNorm, which normalizes its kernel",
    ),
    "another shape": (moved, "up", r"up needs a kernel of shape \(7, 3\), .* got \(7, 4, 3\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_layers(name):
    make, target, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        setup(toys_nnx.Named(make, idle=linear), X, target)


def test_refused_modules(tmp_path):
    module = toys_nnx.Dropped(rngs=nnx.Rngs(0), mean=False)
    with pytest.raises(ValueError, match="norm is an nnx.BatchNorm in training mode.* set use_running_average=True"):
        setup_state = nnx.state(module)
        some_adapters(mcl.Hypotheses(module, mcl.LoraConfig(2, targets="up")), setup_state, X)
    with pytest.raises(ValueError, match="SoftPrompts needs a module of flax.linen, got one of flax.nnx"):
        mcl.SoftPrompts(TOKENS, 3)
    model, params, adapters = setup(TOKENS, BATCH["tokens"])
    with pytest.raises(TypeError, match="must be one of .* from mcl_jax.models, got Tokens"):
        mcl.interop.save_peft(tmp_path, model, adapters)
    with pytest.raises(TypeError, match="must have the methods .* but lacks hidden, logits, extend"):
        mcl.generate(model, params, adapters, {"input_ids": BATCH["tokens"]}, max_new_tokens=2)
    with pytest.raises(ValueError, match="down is a target, but the adapters have no down/a. Check that the adapters"):
        mcl.Hypotheses(TOKENS, CONFIG).apply(params, hypotheses.select(adapters, 0), BATCH["tokens"])


def test_adapters_of_an_output_layer_are_those_of_the_logits():
    twin, params, _ = bigram_hypotheses()
    model = mcl.Hypotheses(toys_nnx.Bigrams(rngs=nnx.Rngs(0)), mcl.LoraConfig(2, targets=("up", "head")))
    one = hypotheses.select(some_adapters(model, params, BATCH["tokens"]), 0)
    batch = {"tokens": BATCH["tokens"], "target_mask": BATCH["mask"]}
    assert isinstance(twin.module, Bigrams)
    logits = model.apply(params, one, BATCH["tokens"][:, :-1])
    wanted, _ = mcl.sequence_log_likelihood(logits, BATCH["tokens"][:, 1:], BATCH["mask"])
    found, _ = language_model.log_likelihood_fn(model, chunk_size=16)(params, one, batch, None)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert (
        np.abs(found - language_model.log_likelihood_fn(twin)(params, {"up": one["up"]}, batch, None)[0]).max() > 0.01
    )
    with pytest.raises(ValueError, match="modules of flax.nnx take no trained copies of parameters, got up/kernel"):
        model.apply(params, one | {"up": one["up"] | {"kernel": jnp.zeros((7, 7))}}, BATCH["tokens"])
