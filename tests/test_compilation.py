"""What compiles once: the step and the evaluation, wherever parameters, state and batch were put."""

import jax
import numpy as np
import pytest
from toys import Tokens, adam, randomized, token_batch, token_log_likelihood

import mcl_jax as mcl
from mcl_jax import objectives, parallel, sharding

MODEL = mcl.Hypotheses(Tokens(), mcl.LoraConfig(rank=2, alpha=6.0, targets=("up", "head")))
BATCH = token_batch(8)
OPTIMIZER = adam(0.1)
LOG_P = token_log_likelihood(MODEL)


@pytest.fixture
def compiled(caplog):
    """compiled(function, *args): the result, and what was compiled for it, by name."""

    def call(function, *args):
        caplog.clear()
        with jax.log_compiles():
            result = jax.block_until_ready(function(*args))
        return result, [record.message for record in caplog.records if "XLA compilation" in record.message]

    return call


def parameters():
    inputs = BATCH["tokens"][:, :-1]
    params = randomized(jax.eval_shape(Tokens().init, jax.random.key(0), inputs)["params"], seed=1)
    return params, MODEL.init(jax.random.key(0), params, inputs, num_hypotheses=3)


def on_a_device(tree):
    return jax.device_put(tree, jax.devices()[0])


def state_of(params, adapters):
    return mcl.TrainState.create(params=params, adapters=adapters, optimizer=OPTIMIZER, rng=jax.random.key(7))


def beside_nothing(params, adapters):
    return state_of(params, adapters), BATCH


def committed_base(params, adapters):
    return state_of(on_a_device(params), adapters), BATCH


def committed_batch(params, adapters):
    return state_of(params, adapters), on_a_device(BATCH)


def committed_adapters(params, adapters):
    """As a checkpoint that was read by hand leaves them."""
    state = state_of(params, adapters)
    return state.replace(adapters=on_a_device(state.adapters)), BATCH


CASES = [beside_nothing, committed_base, committed_batch, committed_adapters]
STEPS = {
    "one device": mcl.make_train_step,
    "pmap": parallel.pmap_step,
    "mesh": lambda *args: parallel.mesh_step(*args, mesh=jax.make_mesh((4, 2), ("data", "model"))),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("where", STEPS)
def test_later_steps_compile_nothing(where, case, compiled):
    state, batch = case(*parameters())
    step = STEPS[where](LOG_P, objectives.balanced_wta(), OPTIMIZER)
    (state, _), first = compiled(step, state, batch)
    assert first
    for _ in range(2):
        (state, _), later = compiled(step, state, batch)
        assert not later


@pytest.mark.parametrize("case", [beside_nothing, committed_base])
def test_what_reads_the_state_before_the_first_step_compiles_once(case, compiled):
    """Such as the evaluation at step 0."""
    state, batch = case(*parameters())
    evaluate = jax.jit(lambda params, adapters: jax.vmap(lambda one: LOG_P(params, one, batch, None)[0])(adapters))
    step = mcl.make_train_step(LOG_P, objectives.wta(), OPTIMIZER)
    _, first = compiled(evaluate, state.params, state.adapters)
    state, _ = step(state, batch)
    _, later = compiled(evaluate, state.params, state.adapters)
    assert first and not later


def test_a_state_goes_where_the_base_was_put():
    device = jax.devices()[3]
    params, adapters = parameters()
    state = state_of(jax.device_put(params, device), adapters)
    assert {leaf.device for leaf in jax.tree.leaves(state)} == {device}
    assert all(leaf.committed for leaf in jax.tree.leaves(state))
    state, _ = mcl.make_train_step(LOG_P, objectives.wta(), OPTIMIZER)(state, BATCH)
    assert {leaf.device for leaf in jax.tree.leaves(state)} == {device}


def test_arrays_on_several_devices_leave_a_state_as_it_is():
    state = {"a": np.arange(3), "b": jax.numpy.arange(3)}
    others = [jax.device_put(np.arange(3), device) for device in jax.devices()[:2]]
    assert sharding.beside(state, others) is state
    assert sharding.beside(state) is state
