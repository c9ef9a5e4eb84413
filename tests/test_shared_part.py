"""A part of the adapters that all hypotheses share equals plain adapters whose first components are tied."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import MLP, Attention, GemmaLike, Named, Scanned, Tokens, adam, normal, randomized, token_batch
from toys import token_log_likelihood as likelihood_of

import mcl_jax as mcl
from mcl_jax import generation, hypotheses, interop, objectives, parallel
from mcl_jax.models import Llama, LlamaConfig

K, S, R, B = 3, 2, 3, 8
ALPHA = 7.0
BATCH = token_batch(B, empty=(2,))
LAYERS = {
    "mlp": (MLP(calls=2), normal((5, 7)), ("up", "again", "down"), {}),
    "attention": (Attention(), normal((5, 3, 7)), ("q_proj", "v_proj", "o_proj"), {"rank_stabilized": True}),
    "einsum": (GemmaLike(), normal((5, 3, 7)), ("q", "kv", "per_head", "o"), {}),
    "general": (
        Named(lambda name: nn.DenseGeneral((2, 3), axis=(-1, -2), name=name)),
        normal((5, 7, 5)),
        ("up",),
        {},
    ),
    "scanned": (Scanned(), normal((5, 7)), ("up", "down"), {}),
    "each layer": (
        Scanned(),
        normal((5, 7)),
        ("up", "down"),
        {"rank_pattern": {"layers/up": (3, 1, 2)}, "alpha_pattern": {"layers/down": (2.0, 5.0, 11.0)}},
    ),
}


def setup(module, x, targets, **options):
    """(model, params, adapters with a random A and B)."""
    params = randomized(jax.eval_shape(module.init, jax.random.key(0), x)["params"], seed=1)
    config = {"rank": R, "shared_rank": S, "alpha": ALPHA} | options
    model = mcl.Hypotheses(module, mcl.LoraConfig(targets=targets, **config))
    init = lambda: model.init(jax.random.key(0), params, x, num_hypotheses=K)
    return model, params, randomized(jax.eval_shape(init), seed=2, scale=0.2)


def tied(model, adapters, params, x):
    """(plain hypotheses of rank S + R, their adapters with the shared components first in every hypothesis)."""
    config = model.config
    more = lambda rank: tuple(r + S for r in rank) if isinstance(rank, tuple) else rank + S
    plain = mcl.Hypotheses(
        model.module,
        mcl.LoraConfig(
            rank=R + S,
            alpha=ALPHA,
            targets=config.targets,
            dropout=config.dropout,
            rank_stabilized=config.rank_stabilized,
            rank_pattern={pattern: more(rank) for pattern, rank in config.rank_pattern.items()},
            alpha_pattern=config.alpha_pattern,
        ),
    )
    shapes = jax.eval_shape(lambda: plain.init(jax.random.key(0), params, x, num_hypotheses=K))

    def joined(keys, shape):
        layer = adapters
        for key in keys[:-1]:
            layer = layer[key.key]
        name = keys[-1].key
        own, shared = layer[name], jnp.broadcast_to(layer[f"shared_{name}"][None], (K, *layer[f"shared_{name}"].shape))
        axis = next(i for i, (m, n) in enumerate(zip(own.shape, shape.shape, strict=True)) if m != n)
        return jnp.concatenate([shared, own], axis)

    return plain, jax.tree_util.tree_map_with_path(joined, shapes)


def close(actual, expected, tolerance=3e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), actual, expected)


SLOWER = {"mlp", "attention", "general", "einsum"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOWER)) for name in LAYERS])
def test_equals_tied_adapters(name):
    module, x, targets, options = LAYERS[name]
    model, params, adapters = setup(module, x, targets, **options)
    plain, expected = tied(model, adapters, params, x)
    every = jax.jit(model.apply_all)(params, adapters, x)
    close(every, jax.jit(plain.apply_all)(params, expected, x))
    apply, base = jax.jit(model.apply), jax.jit(lambda params: module.apply({"params": params}, x))
    for k in range(K):
        close(every[k], apply(params, hypotheses.select(adapters, k), x))
        close(base(model.merge(params, adapters, k)), every[k], 1e-4)
    chosen = jnp.array([1, 0, 2, 2, 1])
    assigned = jax.jit(model.apply_assigned)(params, adapters, chosen, x)
    close(assigned, every[chosen, jnp.arange(5)])


def test_a_fresh_shared_part_is_stored_once_and_changes_nothing():
    module, x, targets, _ = LAYERS["scanned"]
    model, params, _ = setup(module, x, targets)
    adapters = model.init(jax.random.key(3), params, x, num_hypotheses=K)
    up = adapters["layers"]["up"]
    assert up["shared_a"].shape == (3, 7, S) and up["shared_b"].shape == (3, S, 11)
    assert up["a"].shape == (K, 3, 7, R) and up["b"].shape == (K, 3, R, 11)
    assert np.abs(up["shared_a"]).min() > 0 and not np.any(up["shared_b"]) and hypotheses.count(adapters) == K
    assert np.unique(np.asarray(up["shared_a"])).size == up["shared_a"].size  # each layer has its own
    assert not np.isin(np.asarray(up["shared_a"]), np.asarray(up["a"])).any()
    close(model.apply_all(params, adapters, x)[1], module.apply({"params": params}, x))
    assert hypotheses.labels(adapters)["layers"]["up"] == {
        "a": "own",
        "b": "own",
        "shared_a": "shared",
        "shared_b": "shared",
    }


MODEL, PARAMS, ADAPTERS = setup(Tokens(), BATCH["tokens"][:, :-1], ("up", "down"))


def trained(model, adapters, objective, backward, steps=2, optimizer=None, batch=BATCH, **options):
    optimizer = optax.sgd(0.3) if optimizer is None else optimizer
    step = mcl.make_train_step(likelihood_of(model), objective, optimizer, backward, **options)
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=optimizer, rng=jax.random.key(4))
    for _ in range(steps):
        state, metrics = step(state, batch)
    return jax.tree.map(np.asarray, (state.adapters, metrics))


def moved(factor, adapters=ADAPTERS, steps=2):
    """Which of the own and the shared leaves a training moves, as mean absolute changes."""
    optimizer = optax.chain(optax.sgd(0.3), hypotheses.scale_own(factor))
    (after, _), found = trained(MODEL, adapters, objectives.wta(), "all", steps, optimizer), {"own": [], "shared": []}
    for kind, a, b in zip(*map(jax.tree.leaves, (hypotheses.labels(adapters), adapters, after)), strict=True):
        found[kind].append(np.abs(b - a).mean())
    return {kind: np.array(changes) for kind, changes in found.items()}


def test_the_own_part_can_learn_faster_or_later():
    one, four = moved(1.0, steps=1), moved(4.0, steps=1)
    close(four["own"], 4 * one["own"])
    close(four["shared"], one["shared"])
    late = lambda steps: moved(lambda step: jnp.where(step < 2, 0.0, 1.0), steps=steps)
    assert not late(2)["own"].any() and (late(2)["shared"] > 0).any() and (late(3)["own"] > 0).any()


def test_adapters_without_a_shared_part_learn_as_ever():
    model = mcl.Hypotheses(Tokens(), mcl.LoraConfig(rank=R, alpha=3.0, targets=("up", "down")))
    adapters = model.init(jax.random.key(3), PARAMS, BATCH["tokens"][:, :-1], num_hypotheses=K)
    optimizer = optax.sgd(0.3)
    scaled = optax.chain(optimizer, hypotheses.scale_own(0.0))
    with_it, without = (trained(model, adapters, objectives.wta(), "all", 1, one)[0] for one in (scaled, optimizer))
    jax.tree.map(np.testing.assert_array_equal, with_it, without)


@pytest.mark.parametrize(
    ("objective", "backward"),
    [
        (objectives.wta(), "winner"),
        (objectives.relaxed_wta(0.2), "all"),
        pytest.param(objectives.wta(), "all", marks=pytest.mark.slow),
        pytest.param(objectives.relaxed_wta(0.2), "sampled", marks=pytest.mark.slow),
        pytest.param(objectives.balanced_wta(rate=0.3), "winner", marks=pytest.mark.slow),
    ],
)
def test_one_step_adds_up_the_gradients_of_tied_components(objective, backward):
    """The shared part's gradient is the sum over hypotheses, hence over examples under their winners."""
    adapters, metrics = trained(MODEL, ADAPTERS, objective, backward, steps=1)
    plain, joined = tied(MODEL, ADAPTERS, PARAMS, BATCH["tokens"][:, :-1])
    expected, expected_metrics = trained(plain, joined, objective, backward, steps=1)
    for layer in ("up", "down"):
        a, b = expected[layer]["a"], expected[layer]["b"]
        close(adapters[layer]["a"], a[..., S:])
        close(adapters[layer]["b"], b[:, S:])
        start_a, start_b = joined[layer]["a"][..., :S], joined[layer]["b"][:, :S]
        close(adapters[layer]["shared_a"], start_a[0] + (a[..., :S] - start_a).sum(0))
        close(adapters[layer]["shared_b"], start_b[0] + (b[:, :S] - start_b).sum(0))
    close(metrics["loss"], expected_metrics["loss"])


def test_winner_equals_all():
    close(*(trained(MODEL, ADAPTERS, objectives.wta(), backward)[0] for backward in ("winner", "all")))


def test_chunks_of_hypotheses_and_micro_batches_change_nothing():
    expected = trained(MODEL, ADAPTERS, objectives.mixture(), "all")[0]
    close(trained(MODEL, ADAPTERS, objectives.mixture(), "all", hypothesis_chunk=1)[0], expected)
    close(trained(MODEL, ADAPTERS, objectives.mixture(), "all", accumulate=2)[0], expected)


def test_sampled_is_unbiased():
    objective, draws = objectives.relaxed_wta(0.4), 100
    step = mcl.make_train_step(likelihood_of(MODEL), objective, optax.sgd(1.0), "sampled", donate=False)
    exact = trained(MODEL, ADAPTERS, objective, "all", steps=1, optimizer=optax.sgd(1.0))[0]
    state = mcl.TrainState.create(
        params=jax.tree.map(jnp.asarray, PARAMS), adapters=ADAPTERS, optimizer=optax.sgd(1.0), rng=jax.random.key(0)
    )
    ends = [step(state.replace(rng=jax.random.key(i)), BATCH)[0].adapters for i in range(draws)]
    for name in ("shared_a", "shared_b", "b"):
        found = np.stack([np.asarray(end["up"][name]) for end in ends])
        error = np.abs(found.mean(0) - exact["up"][name]) / (found.std(0) / draws**0.5 + 1e-6)
        assert error.max() < 5


def test_one_hypothesis_is_plain_lora_of_the_summed_rank():
    one = hypotheses.select(ADAPTERS, slice(1))
    plain, joined = tied(MODEL, ADAPTERS, PARAMS, BATCH["tokens"][:, :-1])
    expected = trained(plain, hypotheses.select(joined, slice(1)), objectives.mle(), "all", optimizer=adam(0.05))[0]
    found = trained(MODEL, one, objectives.mle(), "all", optimizer=adam(0.05))[0]
    close(found["up"]["shared_b"], expected["up"]["b"][0, :S])
    close(found["up"]["b"], expected["up"]["b"][:, S:])


def test_permuting_hypotheses_permutes_their_own_parts():
    order = np.array([2, 0, 1])
    found = trained(MODEL, hypotheses.select(ADAPTERS, order), objectives.wta(), "winner")[0]
    close(found, hypotheses.select(trained(MODEL, ADAPTERS, objectives.wta(), "winner")[0], order))


def test_dropout_is_that_of_each_example_alone():
    model = mcl.Hypotheses(
        MODEL.module, mcl.LoraConfig(rank=R, shared_rank=S, alpha=ALPHA, dropout=0.4, targets=("up", "down"))
    )
    tokens, key = jnp.asarray(BATCH["tokens"][:5]), jax.random.key(9)
    every = model.apply_all(PARAMS, ADAPTERS, tokens, dropout_rng=key)
    chosen = jnp.array([2, 2, 0, 1, 0])
    assigned = model.apply_assigned(PARAMS, ADAPTERS, chosen, tokens, dropout_rng=key)
    close(assigned, every[chosen, jnp.arange(5)])
    one = model.apply(
        PARAMS, hypotheses.select(ADAPTERS, 2), tokens[1:2], dropout_rng=hypotheses.example_key(key, 2, 1)
    )
    close(every[2, 1], one[0])
    assert np.abs(every - MODEL.apply_all(PARAMS, ADAPTERS, tokens)).max() > 1e-3


@pytest.mark.parametrize("shape", [(4, 2), (2, 4)])
def test_on_a_mesh(shape):
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(shape), ("data", "model"))
    objective = objectives.balanced_wta(rate=0.3)
    expected = trained(MODEL, ADAPTERS, objective, "winner", optimizer=adam(0.05))[0]
    found = trained(MODEL, ADAPTERS, objective, "winner", optimizer=adam(0.05), mesh=mesh)[0]
    close(found, expected, 1e-4)


def test_the_shared_part_is_sharded_like_its_kernel():
    config = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    module, tokens = Llama(config), jnp.zeros((2, 3), jnp.int32)
    _, params, adapters = setup(module, tokens, ("q_proj", "down_proj"))
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    cut = parallel.base_sharding(mesh)
    placed = jax.tree_util.tree_map_with_path(lambda keys, x: jax.device_put(x, cut(keys, x.shape)), params)
    shardings = mcl.mesh.adapter_shardings(mesh, placed, adapters)["model"]["layers"]
    assert tuple(shardings["self_attn"]["q_proj"]["shared_b"].spec) == (None, None, "model")
    assert tuple(shardings["mlp"]["down_proj"]["shared_a"].spec) == (None, "model", None)
    assert not any(shardings["self_attn"]["q_proj"]["shared_a"].spec)


class TestLanguageModel:
    CONFIG = LlamaConfig(
        vocab_size=32,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )

    def setup_method(self):
        self.tokens = np.random.default_rng(0).integers(2, 32, (5, 9)).astype(np.int32)
        self.model, self.params, self.adapters = setup(Llama(self.CONFIG), self.tokens, ("q_proj", "down_proj"))
        self.plain, self.joined = tied(self.model, self.adapters, self.params, self.tokens)

    def test_likelihood_decoding_and_ranking(self):
        batch = {"tokens": self.tokens, "target_mask": np.ones((5, 8), bool)}
        pairs = (self.model, self.adapters), (self.plain, self.joined)
        evaluated = [mcl.language_model.evaluate(m, self.params, a, [batch])[0] for m, a in pairs]
        close(*evaluated, 1e-4)
        beams = generation.BeamSearch(num_beams=2)
        decoded = [generation.decode(m, self.params, a, self.tokens[:, :4], beams, 3) for m, a in pairs]
        np.testing.assert_array_equal(decoded[0].tokens, decoded[1].tokens)
        scored = [generation.log_likelihoods(m, self.params, a, self.tokens[:, :4], decoded[0]) for m, a in pairs]
        close(*scored, 1e-4)

    def test_peft_gets_plain_adapters_and_gives_the_shared_part_back(self, tmp_path):
        interop.save_peft(tmp_path, self.model, self.adapters)
        plain, joined = interop.load_peft(tmp_path, self.model.module)
        assert plain.config.rank == R + S and plain.config.alpha == ALPHA and plain.config.shared_rank == 0
        every = self.model.apply_all(self.params, self.adapters, self.tokens)
        close(plain.apply_all(self.params, joined, self.tokens), every)
        again, parted = interop.load_peft(tmp_path, self.model.module, shared_rank=S)
        assert (again.config.rank, again.config.shared_rank) == (R, S)
        jax.tree.map(np.testing.assert_array_equal, parted, self.adapters)
        with pytest.raises(ValueError, match="the first 3 components of .* differ between hypotheses"):
            interop.load_peft(tmp_path, self.model.module, shared_rank=3)
        with pytest.raises(ValueError, match=r"shared_rank must be at least 1 and below every rank, got 5 for \[5\]"):
            interop.load_peft(tmp_path, self.model.module, shared_rank=5)


def test_a_run_resumes(tmp_path):
    optimizer, objective = adam(0.05), objectives.balanced_wta(rate=0.2)
    step = mcl.make_train_step(likelihood_of(MODEL), objective, optimizer)
    failed = []

    def draw(number):
        if number == 3 and not failed:
            failed.append(number)
            raise OSError("no more batches for now")
        return token_batch(B, seed=number)

    def fit(workdir):
        state = mcl.TrainState.create(
            params=jax.tree.map(jnp.asarray, PARAMS),
            adapters=ADAPTERS,
            optimizer=optimizer,
            rng=jax.random.key(0),
            objective=objective,
        )
        return mcl.fit(step, state, draw, steps=5, workdir=workdir, checkpoint_seconds=0.0).state.adapters

    with pytest.raises(OSError, match="no more batches"):
        fit(tmp_path / "interrupted")
    found, expected = fit(tmp_path / "interrupted"), fit(tmp_path / "straight")
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert failed and found["up"]["shared_b"].shape == (S, 7)


def test_refused():
    with pytest.raises(ValueError, match="MixtureOfExperts has no shared part; .* got 2"):
        mcl.MixtureOfExperts(Tokens(), mcl.LoraConfig(2, targets="up", shared_rank=2), 3)
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match="shared_rank"):
            mcl.LoraConfig(shared_rank=wrong)
