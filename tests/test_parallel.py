"""The same numbers on 1, 2 and 8 devices as without `pmap`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import Tokens, adam, normal, randomized, token_batch, token_log_likelihood

import mcl_jax as mcl
from mcl_jax import objectives, parallel

K, B, STEPS = 3, 16, 3
EMPTY = (2, 7, 8, 9)  # examples 8 and 9 are all that one of 8 devices gets
MODEL = mcl.Hypotheses(Tokens(), mcl.LoraConfig(rank=2, alpha=6.0, dropout=0.3, targets="up"))
BATCHES = [token_batch(B, seed=seed, empty=EMPTY) for seed in range(STEPS)]
OPTIMIZER = adam(0.05)

CASES = {
    # B = 0 at first, hence ties; dropout; a state of biases; micro-batches
    "balanced": (objectives.balanced_wta(rate=0.3), "winner", {"accumulate": 2}),
    "sampled": (objectives.relaxed_wta(0.3), "sampled", {}),
    "all": (objectives.mixture(), "all", {}),
}


def start(model=MODEL):
    inputs = BATCHES[0]["tokens"][:, :-1]
    params = randomized(jax.eval_shape(model.module.init, jax.random.key(0), inputs)["params"], seed=1)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), params, inputs, num_hypotheses=K))
    adapters = {"up": {"a": normal(shapes["up"]["a"].shape), "b": jnp.zeros(shapes["up"]["b"].shape)}}
    return mcl.TrainState.create(
        params=jax.tree.map(jnp.asarray, params), adapters=adapters, optimizer=OPTIMIZER, rng=jax.random.key(5)
    )


@functools.cache
def trained(name, num_devices):
    """State and metrics of each step, as NumPy; 0 devices is `make_train_step`."""
    objective, backward, options = CASES[name]
    devices = {"devices": jax.devices()[:num_devices]} if num_devices else {}
    make = parallel.pmap_step if num_devices else mcl.make_train_step
    step = make(token_log_likelihood(MODEL), objective, OPTIMIZER, backward, **options, **devices)
    state, history = start(), []
    for batch in BATCHES:
        state, metrics = step(state, batch)
        seen = state.adapters, state.opt_state, state.objective_state, state.step, metrics
        history.append(jax.tree.map(np.asarray, seen))
    return history


@pytest.mark.parametrize(
    ("name", "num_devices"), [("balanced", 1), ("balanced", 2), ("balanced", 8), ("sampled", 8), ("all", 2)]
)
def test_as_on_one_device(name, num_devices):
    for here, there in zip(trained(name, num_devices), trained(name, 0), strict=True):
        assert jax.tree.structure(here) == jax.tree.structure(there)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), here, there)
        jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail("shapes"), here, there)


def test_the_comparison_covers_what_it_says():
    (first, *_), last = trained("balanced", 0), trained("balanced", 0)[-1]
    assert (first[-1]["win_rate"] > 0).all()  # ties, broken at random
    assert np.abs(last[2]).max() > 0.01  # a bias
    assert last[-1]["examples"] == B - len(EMPTY)
    assert last[3] == STEPS
    assert np.abs(last[0]["up"]["b"]).max() > 0.01


def categorical_log_p(params, adapters, batch, rng):
    return jax.nn.log_softmax(params["base"] + adapters["logits"])[batch["x"]]


def categorical():
    return mcl.TrainState.create(
        params={"base": jnp.asarray(normal((5,)))},
        adapters={"logits": jnp.asarray(normal((K, 5), 1))},
        optimizer=OPTIMIZER,
        rng=jax.random.key(0),
    )


SYMBOLS = {"x": (np.arange(B) % 5).astype(np.int32)}


def test_compiles_once_and_leaves_the_base():
    traces = []

    def log_p(*args):
        traces.append(1)
        return categorical_log_p(*args)

    step = parallel.pmap_step(log_p, objectives.balanced_wta(), OPTIMIZER)
    state = categorical()
    params, before = state.params, np.array(state.params["base"])
    state, _ = step(state, SYMBOLS)
    once = len(traces)
    for _ in range(3):
        state, _ = step(state, SYMBOLS)
    assert len(traces) == once
    np.testing.assert_array_equal(params["base"], before)
    np.testing.assert_array_equal(state.params["base"], before)


def test_a_state_moves_between_steps():
    """From one device to eight and back, without replicating or unreplicating anything."""
    single = mcl.make_train_step(categorical_log_p, objectives.wta(), OPTIMIZER)
    eight = parallel.pmap_step(categorical_log_p, objectives.wta(), OPTIMIZER)
    state, expected = categorical(), categorical()
    for step in (single, eight, eight, single):
        state, _ = step(state, SYMBOLS)
        expected, _ = single(expected, SYMBOLS)
    np.testing.assert_allclose(state.adapters["logits"], expected.adapters["logits"], rtol=1e-5, atol=1e-6)


def test_nan_on_one_device_shows_everywhere():
    log_p = lambda params, adapters, batch, rng: categorical_log_p(params, adapters, batch, rng) * batch["scale"]
    step = parallel.pmap_step(log_p, objectives.wta(), OPTIMIZER)
    scale = np.ones(B, np.float32)
    scale[5] = np.nan
    _, metrics = step(categorical(), SYMBOLS | {"scale": scale})
    assert np.isnan(metrics["loss"])


WIDE = mcl.Hypotheses(Tokens(width=12), MODEL.config)  # a width that can be cut


def mesh_of(data, model):
    return jax.sharding.Mesh(np.array(jax.devices()[: data * model]).reshape(data, model), ("data", "model"))


def run_wide(step, state):
    for batch in BATCHES:
        state, metrics = step(state, batch)
    return state, metrics


@pytest.mark.parametrize(("name", "data", "model"), [("balanced", 2, 4), ("sampled", 8, 1), ("all", 1, 6)])
def test_a_base_cut_over_a_mesh(name, data, model):
    objective, backward, options = CASES[name]
    make = functools.partial(dict, optimizer=OPTIMIZER, objective=objective, backward=backward, **options)
    traces, log_likelihood = [], token_log_likelihood(WIDE)
    counted = lambda *args: (traces.append(len(args)), log_likelihood(*args))[1]
    mesh = mesh_of(data, model)
    shardings = parallel.base_sharding(mesh)
    state = start(WIDE)
    cut = jax.tree.map(lambda x: jax.device_put(x, shardings((), x.shape)), state.params)
    step = parallel.mesh_step(counted, **make(), mesh=mesh)
    state, _ = step(state.replace(params=cut), BATCHES[0])
    once = len(traces)
    for batch in BATCHES[1:]:
        state, found_metrics = step(state, batch)
    found = state
    assert len(traces) == once
    assert found.params["head"]["kernel"].addressable_shards[0].data.size == 12 * 13 // model
    assert found.adapters["up"]["a"].sharding.is_fully_replicated
    expected, metrics = run_wide(mcl.make_train_step(log_likelihood, **make()), start(WIDE))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
    jax.tree.map(close, (found.adapters, found.objective_state), (expected.adapters, expected.objective_state))
    jax.tree.map(close, found_metrics, metrics)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def test_a_base_elsewhere_is_copied_to_the_mesh():
    step = parallel.mesh_step(categorical_log_p, objectives.wta(), OPTIMIZER, mesh=mesh_of(4, 2))
    state, _ = step(categorical(), SYMBOLS)
    assert state.params["base"].sharding.is_fully_replicated
    assert len(state.params["base"].sharding.device_set) == 8


def test_how_a_base_is_cut():
    of = lambda *shape: tuple(parallel.base_sharding(mesh_of(2, 4))((), shape).spec)
    assert of(12, 20) == (None, "model")
    assert of(12, 8) == ("model", None)
    assert of(8, 8) == (None, "model")
    assert of(32, 12, 7) == (None, "model", None)
    assert of(12, 13, 7) == (None, None, None)
    assert of(8) == (None,)


class TestRefused:
    def test_a_mesh_without_the_axes(self):
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
        with pytest.raises(ValueError, match="needs an axis 'data'"):
            parallel.mesh_step(categorical_log_p, objectives.wta(), OPTIMIZER, mesh=mesh)
        with pytest.raises(ValueError, match="needs an axis 'model'"):
            parallel.base_sharding(mesh)

    def test_a_batch_that_does_not_divide_over_the_mesh(self):
        step = parallel.mesh_step(categorical_log_p, objectives.wta(), OPTIMIZER, mesh=mesh_of(4, 2))
        with pytest.raises(ValueError, match="6 examples does not divide over 4 devices along"):
            step(categorical(), {"x": np.zeros(6, np.int32)})

    def test_a_batch_that_does_not_divide(self):
        step = parallel.pmap_step(categorical_log_p, objectives.wta(), OPTIMIZER)
        with pytest.raises(ValueError, match="12 examples does not divide over 8 devices"):
            step(categorical(), {"x": np.zeros(12, np.int32)})

    def test_micro_batches_that_do_not_divide(self):
        devices = jax.devices()[:2]
        step = parallel.pmap_step(categorical_log_p, objectives.wta(), OPTIMIZER, accumulate=3, devices=devices)
        with pytest.raises(ValueError, match="a batch of 8 examples does not divide into accumulate=3"):
            step(categorical(), SYMBOLS)

    def test_winner_for_soft_weights(self):
        with pytest.raises(ValueError, match=r'"sampled" .* or "all"'):
            parallel.pmap_step(categorical_log_p, objectives.mixture(), OPTIMIZER)

    def test_an_empty_batch(self):
        step = parallel.pmap_step(categorical_log_p, objectives.wta(), OPTIMIZER)
        with pytest.raises(ValueError, match="0 examples"):
            step(categorical(), {"x": np.zeros(0, np.int32)})
