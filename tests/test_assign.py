"""Winners from scores with or without dropout: which they are, and where the gradient goes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import Scanned, Tokens, keep_gradient, normal, randomized, token_batch, token_log_likelihood

import mcl_jax as mcl
from mcl_jax import objectives, update

K, B = 3, 11
RNG = jax.random.key(7)
BATCH = token_batch(B)


def model(dropout=0.5):
    return mcl.Hypotheses(Tokens(), mcl.LoraConfig(rank=2, alpha=6.0, dropout=dropout, targets=("up", "head")))


@functools.cache
def setup():
    """Parameters and adapters, A and B both random."""
    inputs = BATCH["tokens"][:, :-1]
    params = randomized(jax.eval_shape(Tokens().init, jax.random.key(0), inputs)["params"], seed=1)
    init = lambda: model().init(jax.random.key(0), params, inputs, num_hypotheses=K)
    return params, randomized(jax.eval_shape(init), seed=2, scale=0.3)


def step_and_state(objective, backward, dropout=0.5, **options):
    params, adapters = setup()
    state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=keep_gradient(), rng=RNG)
    log_p = token_log_likelihood(model(dropout))
    return mcl.make_train_step(log_p, objective, keep_gradient(), backward, **options), state


def scores(adapters, *, dropout):
    """log p per token [K, B], with the masks of the first step or without dropout."""
    rng = jax.random.split(jax.random.fold_in(RNG, 0))[1] if dropout else None
    one = lambda adapters_k, k: update.example_log_likelihoods(
        token_log_likelihood(model()),
        setup()[0],
        adapters_k,
        BATCH,
        jnp.full(B, k),
        jnp.arange(B),
        rng,
        gathered=False,
    )
    log_p, tokens = jax.vmap(one)(adapters, jnp.arange(K))
    return log_p / tokens.astype(jnp.float32)


@functools.cache
def assigned(objective, *, dropout):
    """q [K, B] from these scores, and the gradient of −mean Σ_k q_k log p, in which dropout is on."""
    adapters = setup()[1]
    q = objective.weights(jax.jit(functools.partial(scores, dropout=dropout))(adapters))
    loss = lambda adapters: -(q * scores(adapters, dropout=True)).sum() / B
    return np.asarray(q), jax.jit(jax.grad(loss))(adapters)


def distance(a, b):
    return max(float(jnp.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize(
    ("objective", "backward", "options"),
    [
        (objectives.wta(), "winner", {}),
        (objectives.relaxed_wta(0.3), "all", {}),
        (objectives.relaxed_wta(0.3), "all", {"hypothesis_chunk": 1, "accumulate": 11}),
    ],
    ids=["winner", "all", "chunks"],
)
def test_winners_are_those_without_dropout_and_the_gradient_has_dropout(objective, backward, options):
    clean, expected = assigned(objective, dropout=False)
    noisy, other = assigned(objective, dropout=True)
    assert (clean.argmax(0) != noisy.argmax(0)).any()  # dropout changes who wins
    step, state = step_and_state(objective, backward, **options)  # clean by default
    state, metrics = step(state, BATCH)
    assert distance(state.opt_state, expected) < 1e-6 < 0.01 < distance(expected, other)
    np.testing.assert_allclose(metrics["win_rate"], np.bincount(clean.argmax(0), minlength=K) / B, rtol=1e-6)
    log_p = jax.jit(functools.partial(scores, dropout=False))(setup()[1])
    np.testing.assert_allclose(metrics["loss"], -(clean * log_p).sum() / B, rtol=1e-5)


def test_noisy_winners_are_those_with_dropout():
    noisy, expected = assigned(objectives.wta(), dropout=True)
    step, state = step_and_state(objectives.wta(), "winner", assign="noisy")
    state, metrics = step(state, BATCH)
    assert distance(state.opt_state, expected) < 1e-6
    np.testing.assert_allclose(metrics["win_rate"], noisy.mean(1), rtol=1e-6)


def program(backward, assign, dropout):
    step, state = step_and_state(objectives.wta(), backward, dropout, assign=assign)
    return step.lower(state, BATCH)


@pytest.mark.parametrize("backward", ["winner", "sampled", "all"])
def test_without_dropout_both_are_one_program(backward):
    """The function passes its rng on, although nothing is drawn from it."""
    assert program(backward, "clean", 0.0).as_text() == program(backward, "noisy", 0.0).as_text()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_an_rng_that_reaches_stacked_layers_is_no_noise_by_itself(dropout):
    """nn.scan splits it for every layer, whether anything is drawn from it or not."""
    layers = mcl.Hypotheses(Scanned(), mcl.LoraConfig(rank=2, alpha=6.0, dropout=dropout, targets="up"))
    batch = {"x": normal((B, 7))}
    params = jax.eval_shape(Scanned().init, jax.random.key(0), batch["x"])["params"]
    adapters = randomized(layers.init(jax.random.key(0), randomized(params), batch["x"], num_hypotheses=K))
    log_p = lambda params, adapters, batch, rng: layers.apply(params, adapters, batch["x"], dropout_rng=rng).sum(-1)
    state = mcl.TrainState.create(
        params=randomized(params), adapters=adapters, optimizer=keep_gradient(), rng=RNG, objective=objectives.mixture()
    )
    clean, noisy = (
        mcl.make_train_step(log_p, objectives.mixture(), keep_gradient(), "all", assign=assign)
        .lower(state, batch)
        .as_text()
        for assign in ("clean", "noisy")
    )
    assert (clean == noisy) == (dropout == 0.0)


def test_cost():
    """The winners' own pass only loses its masks; with all, there is one more forward pass of every hypothesis."""
    flops = lambda backward, assign: program(backward, assign, 0.5).cost_analysis()["flops"]
    assert flops("winner", "clean") < flops("winner", "noisy")
    assert flops("all", "noisy") < flops("all", "clean")


def test_of_one_hypothesis_there_is_nothing_to_choose():
    params, adapters = setup()
    one = jax.tree.map(lambda leaf: leaf[:1], adapters)
    text = {}
    for assign in ("clean", "noisy"):
        step, _ = step_and_state(objectives.mle(), "winner", assign=assign)
        state = mcl.TrainState.create(params=params, adapters=one, optimizer=keep_gradient(), rng=RNG)
        text[assign] = step.lower(state, BATCH).as_text()
    assert text["clean"] == text["noisy"]


def test_another_assignment_is_refused():
    with pytest.raises(ValueError, match=r"assign must be one of \('clean', 'noisy'\), got 'Clean'"):
        step_and_state(objectives.wta(), "winner", assign="Clean")
