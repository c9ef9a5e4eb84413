"""The same numbers on 1, 2 and 8 devices as without `pmap`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published_sizes import ALL, config_of
from toys import Tokens, adam, normal, randomized, token_batch, token_log_likelihood

import mcl_jax as mcl
from mcl_jax import generation, mesh, objectives, parallel
from mcl_jax.models import Llama, LlamaConfig, families, names

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
    "clean": (objectives.mixture(), "all", {"assign": "clean"}),
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
    ("name", "num_devices"),
    [
        ("balanced", 8),
        ("sampled", 8),
        ("all", 2),
        pytest.param("clean", 8, marks=pytest.mark.slow),
        *(pytest.param("balanced", n, marks=pytest.mark.slow) for n in (1, 2)),
    ],
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


WIDE_RULES = [(r"^up/", "outputs"), (r"^head/", "inputs")]


@pytest.mark.parametrize(
    ("name", "data", "model"),
    [
        ("balanced", 2, 4),
        ("sampled", 8, 1),
        ("all", 1, 6),
        ("clean", 2, 4),
        pytest.param("all", 4, 2, marks=pytest.mark.slow),
    ],
)
def test_a_base_cut_over_a_mesh(name, data, model):
    objective, backward, options = CASES[name]
    make = functools.partial(dict, optimizer=OPTIMIZER, objective=objective, backward=backward, **options)
    traces, log_likelihood = [], token_log_likelihood(WIDE)
    counted = lambda *args: (traces.append(len(args)), log_likelihood(*args))[1]
    grid = mesh_of(data, model)
    shardings = parallel.base_sharding(grid, WIDE_RULES)
    state = start(WIDE)
    cut = jax.tree_util.tree_map_with_path(lambda keys, x: jax.device_put(x, shardings(keys, x.shape)), state.params)
    step = parallel.mesh_step(counted, **make(), mesh=grid)
    state, _ = step(state.replace(params=cut), BATCHES[0])
    once = len(traces)
    for batch in BATCHES[1:]:
        state, found_metrics = step(state, batch)
    found = state
    assert len(traces) == once
    part = lambda leaf: leaf.addressable_shards[0].data.size / leaf.size
    assert part(found.params["head"]["kernel"]) == part(found.params["up"]["kernel"]) == 1 / model
    moments = found.opt_state[0].mu if hasattr(found.opt_state[0], "mu") else found.opt_state[0][0].mu
    for of_adapters in (found.adapters, moments):  # cut like their kernel, which is cut by outputs
        assert part(of_adapters["up"]["b"]) == 1 / model and part(of_adapters["up"]["a"]) == 1
    expected, metrics = run_wide(mcl.make_train_step(log_likelihood, **make()), start(WIDE))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
    jax.tree.map(close, (found.adapters, found.objective_state), (expected.adapters, expected.objective_state))
    jax.tree.map(close, found_metrics, metrics)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


@pytest.mark.parametrize(("name", "size"), [("balanced", 3), ("all", 1)])
def test_a_batch_smaller_than_the_data_axis(name, size):
    objective, backward, _ = CASES[name]
    batches = [jax.tree.map(lambda x: x[10 : 10 + size], batch) for batch in BATCHES]
    states = []
    for options in ({}, {"mesh": mesh_of(4, 2)}):
        step = mcl.make_train_step(token_log_likelihood(MODEL), objective, OPTIMIZER, backward, **options)
        state = start()
        for batch in batches:
            state, metrics = step(state, batch)
        assert metrics["examples"] == size
        states.append(jax.tree.map(np.asarray, (state.adapters, state.objective_state, metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), *states)


def test_padding_without_token_counts_has_no_weight():
    batch = {"x": SYMBOLS["x"][:3]}
    states = []
    for options in ({}, {"mesh": mesh_of(8, 1)}):
        step = mcl.make_train_step(categorical_log_p, objectives.relaxed_wta(0.2), OPTIMIZER, "all", **options)
        state, metrics = step(categorical(), batch)
        states.append(jax.tree.map(np.asarray, (state.adapters, metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *states)


def test_a_step_is_lowered_from_shapes():
    """Nothing is allocated, and the program is that of arrays."""
    objective, backward, options = CASES["balanced"]
    grid, shardings = mesh_of(4, 2), parallel.base_sharding(mesh_of(4, 2), WIDE_RULES)
    real = start(WIDE)
    shape_of = lambda keys, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings(keys, x.shape))
    params = jax.tree_util.tree_map_with_path(shape_of, real.params)
    state = mcl.TrainState.abstract(
        params=params, adapters=jax.eval_shape(lambda: real.adapters), optimizer=OPTIMIZER, objective=objective
    )
    step = mcl.make_train_step(token_log_likelihood(WIDE), objective, OPTIMIZER, backward, **options, mesh=grid)
    shapes = jax.eval_shape(lambda: BATCHES[0])
    prepared = jax.tree.leaves(step.prepare(state, shapes))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in prepared)  # devices of a topology hold no arrays
    from_shapes = step.lower(state, shapes).as_text()
    cut = jax.tree_util.tree_map_with_path(lambda keys, x: jax.device_put(x, shardings(keys, x.shape)), real.params)
    assert from_shapes == step.lower(real.replace(params=cut), BATCHES[0]).as_text()
    one_device = mcl.make_train_step(token_log_likelihood(WIDE), objective, OPTIMIZER, backward, **options)
    assert one_device.lower(state.replace(params=jax.eval_shape(lambda: real.params)), shapes).as_text()


def test_a_base_elsewhere_is_copied_to_the_mesh():
    step = parallel.mesh_step(categorical_log_p, objectives.wta(), OPTIMIZER, mesh=mesh_of(4, 2))
    state, _ = step(categorical(), SYMBOLS)
    assert state.params["base"].sharding.is_fully_replicated
    assert len(state.params["base"].sharding.device_set) == 8


def test_how_a_base_is_cut():
    of = lambda path, *shape: tuple(parallel.base_sharding(mesh_of(2, 4))(path, shape).spec)
    assert of("layers/self_attn/q_proj/kernel", 7, 12, 20) == (None, None, "model")
    assert of("layers/self_attn/q_proj/bias", 7, 20) == (None, "model")
    assert of("layers/mlp/down_proj/kernel", 7, 20, 12) == (None, "model", None)
    assert of("layers/mlp/fc2/bias", 7, 12) == ()
    assert of("embed_tokens/embedding", 32, 12) == ("model", None)
    assert of("lm_head/kernel", 12, 32) == (None, "model")
    assert of("lm_head/kernel", 12, 31) == ("model", None)  # the vocabulary does not divide
    assert of("lm_head/kernel", 13, 31) == ()
    assert of("norm/scale", 12) == of("small/kernel", 12, 12) == ()
    mine = [("^head$", "inputs"), *parallel.RULES]
    assert tuple(parallel.base_sharding(mesh_of(2, 4), mine)(("head",), (12, 20)).spec) == ("model", None)


@pytest.mark.parametrize("name", ALL)
def test_every_published_size_has_its_rules(name):
    """On 8 devices no large parameter is left whole, and each device holds little more than an eighth."""
    _, module = families.build(config_of(name), scan=True)
    shardings = parallel.base_sharding(mesh_of(1, 8))
    params = jax.tree_util.tree_map_with_path(
        lambda keys, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings(keys, x.shape)),
        names.abstract_params(module),
    )
    rows = parallel.table(params)
    total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    whole_in_a_small_one = 2**23 if name == "smolvlm-256m" else 0  # positions and norms of its tower
    assert sum(row.bytes_per_device for row in rows) < total / 7.8 + whole_in_a_small_one
    whole = {row.path for row in rows if not any(row.spec) and np.prod(row.shape) > 2**20}
    left = ("conv2/kernel", "embed_positions/embedding", "position_embedding/embedding", "layernorm/scale")
    assert all(path.endswith(left) for path in whole)
    kernel = next(row for row in rows if row.path.endswith("layers/self_attn/o_proj/kernel"))
    assert tuple(kernel.spec) == (None, "model", None)
    assert kernel.bytes_per_device * 8 == 4 * np.prod(kernel.shape)


@pytest.mark.parametrize(("dtype", "size"), [(jnp.float32, 84), (jnp.bfloat16, 42), (jnp.int8, 21), (jnp.int4, 11)])
def test_bytes_of_small_integers_are_those_of_packed_ones(dtype, size):
    assert mesh.bytes_per_device([jax.ShapeDtypeStruct((3, 7), dtype), jax.random.key(0)]) == size + 8


class TestRefused:
    def test_a_mesh_without_the_axes(self):
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
        with pytest.raises(ValueError, match="needs an axis 'data'"):
            parallel.mesh_step(categorical_log_p, objectives.wta(), OPTIMIZER, mesh=mesh)
        with pytest.raises(ValueError, match="needs an axis 'model'"):
            parallel.base_sharding(mesh)

    def test_a_batch_that_does_not_divide_over_the_mesh(self):
        step = parallel.mesh_step(categorical_log_p, objectives.wta(), OPTIMIZER, mesh=mesh_of(4, 2))
        with pytest.raises(
            ValueError, match="6 examples does not divide over 4 devices along.* batch of 4 or 8, or a mesh with data=3"
        ):
            step(categorical(), {"x": np.zeros(6, np.int32)})

    def test_a_large_parameter_without_a_rule(self):
        shardings = parallel.base_sharding(mesh_of(2, 4))
        with pytest.raises(ValueError, match=r"no rule says how to shard blocks/dense/kernel \(2048, 1024\) over 4"):
            shardings(("blocks", "dense", "kernel"), (2048, 1024))
        with pytest.raises(ValueError, match='"outputs", "inputs" or "whole", got \'columns\''):
            parallel.base_sharding(mesh_of(2, 4), [("dense", "columns")])

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


class TestEvaluationAndDecoding:
    CONFIG = LlamaConfig(
        vocab_size=32,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )

    def setup_method(self):
        module, tokens = Llama(self.CONFIG), np.random.default_rng(0).integers(2, 32, (7, 9)).astype(np.int32)
        self.params = randomized(jax.eval_shape(module.init, jax.random.key(0), tokens)["params"], seed=1)
        self.model = mcl.Hypotheses(module, mcl.LoraConfig(rank=2, alpha=6.0, targets=("q_proj", "down_proj")))
        init = lambda: self.model.init(jax.random.key(0), self.params, tokens, num_hypotheses=K)
        self.adapters = randomized(jax.eval_shape(init), seed=2)
        self.tokens, self.mask = tokens, np.arange(9)[None] >= np.arange(7)[:, None] // 2

    def on(self, data, model):
        """The base on a mesh, and the mesh."""
        grid = mesh_of(data, model)
        shardings = parallel.base_sharding(grid)
        place = lambda keys, x: jax.device_put(x, shardings(keys, x.shape))
        return jax.tree_util.tree_map_with_path(place, self.params), grid

    @pytest.mark.parametrize("shape", [(2, 4), (1, 8), pytest.param((8, 1), marks=pytest.mark.slow)])
    def test_held_out_likelihoods(self, shape):
        batch = {"tokens": self.tokens, "target_mask": self.mask[:, 1:]}
        expected = mcl.language_model.evaluate(self.model, self.params, self.adapters, [batch])
        params, grid = self.on(*shape)
        found = mcl.language_model.evaluate(self.model, params, self.adapters, [batch], mesh=grid)
        assert found[0].shape == (K, 7)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), found, expected)

    @pytest.mark.parametrize(
        ("shape", "decoder"),
        [
            ((4, 2), generation.BeamSearch(num_beams=3)),
            ((1, 8), generation.Sampling(num_samples=2)),
            pytest.param((4, 2), generation.Greedy(), marks=pytest.mark.slow),
            pytest.param((8, 1), generation.Sampling(num_samples=2), marks=pytest.mark.slow),
        ],
    )
    def test_continuations(self, shape, decoder):
        prompts = {"tokens": self.tokens, "mask": self.mask}
        options = {"max_new_tokens": 5, "eos_token_id": 3}
        expected = generation.decode(self.model, self.params, self.adapters, prompts, decoder, **options)
        params, grid = self.on(*shape)
        found = generation.decode(self.model, params, self.adapters, prompts, decoder, **options, mesh=grid)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)

    def test_decoding_is_lowered_from_shapes(self):
        params, grid = self.on(4, 2)
        shape_of = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))
        shapes = jax.tree.map(shape_of, (params, self.adapters))
        inputs = {"tokens": jax.ShapeDtypeStruct((7, 9), jnp.int32)}
        lowered = generation.lower_decode(self.model, *shapes, inputs, max_new_tokens=5, eos_token_id=3, mesh=grid)
        assert lowered.compile().memory_analysis().argument_size_in_bytes > 0
        one_device = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (self.params, self.adapters))
        assert "while" in generation.lower_decode(self.model, *one_device, inputs).as_text()
