"""The train step: every backward against plain JAX and against each other, and what a step must leave alone."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from toys import Tokens, adam, keep_gradient, normal, randomized, token_batch, token_log_likelihood

import mcl_jax as mcl
from mcl_jax import objectives
from mcl_jax.update import Update

K, B = 3, 9
MODEL = mcl.Hypotheses(Tokens(), mcl.LoraConfig(rank=2, alpha=6.0, dropout=0.3, targets=("up", "head")))
BATCH = token_batch(B, empty=(2, 7))  # lengths 1 to 5, and two examples without targets


@functools.cache
def tokens_setup(num_hypotheses=K):
    """Parameters and adapters (A and B both random) of the token model."""
    inputs = BATCH["tokens"][:, :-1]
    params = randomized(jax.eval_shape(Tokens().init, jax.random.key(0), inputs)["params"], seed=1)
    init = lambda: MODEL.init(jax.random.key(0), params, inputs, num_hypotheses=num_hypotheses)
    return params, randomized(jax.eval_shape(init), seed=2, scale=0.3)


@functools.cache
def gradient_of(objective, backward, *, dropout=True, num_hypotheses=K, objective_state=None, **options):
    """(gradient, metrics) of one step of the token model."""
    params, adapters = tokens_setup(num_hypotheses)
    state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=keep_gradient(), rng=jax.random.key(7))
    if objective_state is not None:
        state = state.replace(objective_state=jnp.asarray(objective_state))
    log_p = token_log_likelihood(MODEL, dropout=dropout)
    state, metrics = mcl.make_train_step(log_p, objective, keep_gradient(), backward, **options)(state, BATCH)
    return state.opt_state, metrics


def close(actual, expected, tolerance=2e-6):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=tolerance), actual, expected)


def size_of(gradient):
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))


def plain_log_p(adapters, params):
    """log p [K, B] and tokens [B] of the whole batch at once, without the machinery of a step."""
    log_p = token_log_likelihood(MODEL, dropout=False)
    log_p, tokens = jax.vmap(lambda a: log_p(params, a, BATCH, None))(adapters)
    return log_p, tokens[0]


class TestAgainstPlainJax:
    @pytest.mark.parametrize("normalization", ["token", "sum"])
    def test_wta(self, normalization):
        """−mean over examples with targets of max_k log p, differentiated by JAX alone."""
        params, adapters = tokens_setup()

        def loss(adapters):
            log_p, tokens = plain_log_p(adapters, params)
            per = jnp.maximum(tokens, 1).astype(jnp.float32) if normalization == "token" else jnp.ones(B)
            best = (log_p / per[None]).max(0)
            return -jnp.where(tokens > 0, best, 0.0).sum() / (B - 2)

        value, expected = jax.jit(jax.value_and_grad(loss))(adapters)
        gradient, metrics = gradient_of(objectives.wta(normalization=normalization), "winner", dropout=False)
        close(gradient, expected)
        close(metrics["loss"], value)
        close(metrics["gradient_norm"], optax.tree.norm(expected), 1e-5)
        assert size_of(expected) > 0.01
        assert metrics["examples"] == B - 2
        assert metrics["tokens"] == int(BATCH["mask"].sum())
        close(metrics["win_rate"].sum(), 1.0)

    def test_mle_trains_k_separate_models(self):
        """Each hypothesis' gradient is 1/K of that of its own model, trained alone."""
        params, adapters = tokens_setup()
        gradient, metrics = gradient_of(objectives.mle(), "all", dropout=False)

        def alone(adapters_k):
            log_p, tokens = token_log_likelihood(MODEL, dropout=False)(params, adapters_k, BATCH, None)
            return -(log_p / jnp.maximum(tokens, 1).astype(jnp.float32)).sum() / (B - 2)

        alone = jax.jit(jax.value_and_grad(alone))
        for k in range(K):
            value, expected = alone(jax.tree.map(lambda leaf, k=k: leaf[k], adapters))
            close(jax.tree.map(lambda leaf, k=k: K * leaf[k], gradient), expected)
            close(metrics["log_likelihood"][k], -value)

    def test_one_hypothesis(self):
        one, metrics = gradient_of(objectives.mle(), "winner", num_hypotheses=1)
        other, _ = gradient_of(objectives.wta(), "all", num_hypotheses=1)
        close(one, other)
        assert metrics["win_rate"].tolist() == [1.0]


class TestBackwards:
    @pytest.mark.parametrize(
        ("objective", "state"),
        [(objectives.wta(), None), (objectives.balanced_wta(), (-0.5, 0.3, 0.2))],
        ids=["wta", "balanced"],
    )
    def test_winner_equals_all(self, objective, state):
        """With dropout: the second pass repeats the masks of the first."""
        winner, metrics = gradient_of(objective, "winner", objective_state=state)
        every, expected = gradient_of(objective, "all", objective_state=state)
        close(winner, every)
        close(metrics, expected, 1e-5)
        assert size_of(every) > 0.01
        assert (np.asarray(metrics["win_rate"]) > 0).sum() > 1

    def test_dropout_is_on(self):
        with_dropout, _ = gradient_of(objectives.wta(), "winner")
        without, _ = gradient_of(objectives.wta(), "winner", dropout=False)
        assert size_of(jax.tree.map(jnp.subtract, with_dropout, without)) > 0.01

    def test_chunks_of_hypotheses_change_nothing(self):
        objective = objectives.relaxed_wta(0.3)
        by_chunks, metrics = gradient_of(objective, "all", hypothesis_chunk=1)
        at_once, expected = gradient_of(objective, "all")
        close(by_chunks, at_once)
        close(metrics, expected, 1e-5)

    @pytest.mark.parametrize(
        ("objective", "backward"), [(objectives.wta(), "winner"), (objectives.mixture(), "sampled")]
    )
    def test_micro_batches_change_nothing(self, objective, backward):
        """Micro-batches of unequal weight, since examples without targets are not spread evenly."""
        cut, metrics = gradient_of(objective, backward, accumulate=3)
        whole, expected = gradient_of(objective, backward)
        close(cut, whole)
        close(metrics, expected, 1e-5)

    @pytest.mark.parametrize(
        "objective",
        [objectives.relaxed_wta(0.4), objectives.annealed(1.5), objectives.mixture(normalization="token")],
        ids=["relaxed", "annealed", "mixture"],
    )
    def test_sampled_is_unbiased(self, objective):
        """The mean of 800 draws is within 4.5 standard errors of the exact gradient, and the winners' is not."""
        params, adapters = tokens_setup()
        exact, _ = gradient_of(objective, "all", dropout=False)
        log_p = token_log_likelihood(MODEL, dropout=False)
        update = Update(log_p, objective, keep_gradient(), "sampled")
        state = mcl.TrainState.create(params=None, adapters=adapters, optimizer=keep_gradient(), rng=jax.random.key(0))
        draw = lambda rng: update(params, state.replace(rng=rng, objective_state=()), BATCH)[0].opt_state
        draws = jax.jit(lambda rngs: jax.lax.map(draw, rngs, batch_size=100))(jax.random.split(jax.random.key(5), 800))
        biased, _ = gradient_of(objectives.wta(), "winner", dropout=False)
        flat = lambda tree: np.concatenate(
            [np.reshape(leaf, (*leaf.shape[:-3], -1)) for leaf in jax.tree.leaves(tree)], -1
        )
        draws, exact, biased = flat(draws), flat(exact), flat(biased)
        error = draws.std(0) / np.sqrt(800) + 1e-6
        assert np.abs((draws.mean(0) - exact) / error).max() < 4.5
        assert np.abs((biased - exact) / error).max() > 20

    def test_ties_of_the_first_step_are_broken_at_random(self):
        """With B = 0 all hypotheses are one function, and argmax would give every example to the first."""
        batch = {"x": np.zeros(300, np.int32)}
        state, step = categorical(objectives.wta(), np.zeros((K, 5), np.float32))
        _, metrics = step(state, batch)
        assert np.abs(np.asarray(metrics["win_rate"]) - 1 / K).max() < 0.1


def categorical_log_p(params, adapters, batch, rng):
    """A hand-written model, without Flax: log p(x) = log_softmax(base + logits)[x]. No token counts."""
    z = jax.nn.log_softmax(params["base"] + adapters["logits"])
    return z[batch["x"]]


def categorical(objective, logits=None, optimizer=None, backward="winner", log_p=categorical_log_p, **options):
    """(state, step) of the hand-written model with 5 symbols."""
    optimizer = optax.sgd(0.5) if optimizer is None else optimizer
    logits = normal((K, 5), 3) if logits is None else logits
    state = mcl.TrainState.create(
        params={"base": jnp.asarray(normal((5,), 4))},
        adapters={"logits": jnp.asarray(logits)},
        optimizer=optimizer,
        rng=jax.random.key(1),
    )
    return state, mcl.make_train_step(log_p, objective, optimizer, backward, **options)


SYMBOLS = {"x": np.array([0, 1, 1, 2, 4, 4], np.int32)}


class TestState:
    def test_hand_written_model_learns(self):
        state, step = categorical(objectives.mixture(), backward="all")
        losses = []
        for _ in range(60):
            state, metrics = step(state, SYMBOLS)
            losses.append(float(metrics["loss"]))
        share = np.bincount(SYMBOLS["x"], minlength=5) / 6
        entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
        assert losses[0] > entropy + 0.3
        assert entropy - 1e-4 < losses[-1] < entropy + 0.1
        assert state.step == 60

    def test_base_is_untouched_and_inputs_stay_usable(self):
        params, adapters = tokens_setup()
        params, adapters = jax.tree.map(jnp.asarray, (params, adapters))
        before = jax.tree.map(np.array, (params, adapters))
        optimizer = adam(0.1)
        state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=optimizer, rng=jax.random.key(0))
        step = mcl.make_train_step(token_log_likelihood(MODEL), objectives.wta(), optimizer)
        for _ in range(3):
            state, _ = step(state, BATCH)
        jax.tree.map(np.testing.assert_array_equal, (params, adapters), before)
        jax.tree.map(np.testing.assert_array_equal, state.params, before[0])
        assert state.params["up"]["kernel"] is params["up"]["kernel"]
        assert all(
            not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (state.adapters, adapters)), strict=True)
        )

    def test_old_state_is_donated_unless_asked_otherwise(self):
        state, step = categorical(objectives.wta())
        step(state, SYMBOLS)
        assert state.adapters["logits"].is_deleted()
        assert not state.params["base"].is_deleted()
        state, step = categorical(objectives.wta(), donate=False)
        step(state, SYMBOLS)
        assert not state.adapters["logits"].is_deleted()

    def test_compiles_once(self):
        traces = []

        def log_p(*args):
            traces.append(1)
            return categorical_log_p(*args)

        state, step = categorical(objectives.balanced_wta(), optimizer=adam(0.1), log_p=log_p)
        state, _ = step(state, SYMBOLS)
        once = len(traces)
        for _ in range(3):
            state, _ = step(state, SYMBOLS)
        assert len(traces) == once
        assert step.jitted._cache_size() == 1
        step(state, {"x": SYMBOLS["x"][:4]})
        assert len(traces) == 2 * once  # another shape compiles anew

    def test_optimizer_never_sees_the_base(self):
        params, adapters = tokens_setup()
        state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=adam(0.1), rng=jax.random.key(0))
        shapes = {leaf.shape for leaf in jax.tree.leaves(state.opt_state)}
        assert shapes <= {leaf.shape for leaf in jax.tree.leaves(adapters)} | {()}
        assert not shapes & {leaf.shape for leaf in jax.tree.leaves(params)}

    def test_clipping_lives_in_the_chain(self):
        optimizer = optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(1.0))
        state, step = categorical(objectives.wta(), optimizer=optimizer)
        before = np.array(state.adapters["logits"])
        state, metrics = step(state, SYMBOLS)
        np.testing.assert_allclose(np.linalg.norm(state.adapters["logits"] - before), 0.01, rtol=1e-4)
        assert metrics["gradient_norm"] > 0.1

    def test_objective_state_is_carried(self):
        state, step = categorical(objectives.balanced_wta(rate=0.5))
        bias = np.zeros(K)
        for _ in range(4):
            state, metrics = step(state, SYMBOLS)
            bias = bias + 0.5 * (1 / K - np.asarray(metrics["win_rate"]))
            np.testing.assert_allclose(state.objective_state, bias, atol=1e-6)
        assert np.abs(bias).max() > 0.05

    def test_step_reaches_the_schedule(self):
        seen = []
        objective = objectives.annealed(lambda step: jnp.where(step < 2, 1e6, 0.0))
        state, step = categorical(objective, backward="all")
        for _ in range(4):
            state, metrics = step(state, SYMBOLS)
            seen.append(float(metrics["weight_entropy"]))
        np.testing.assert_allclose(seen, [np.log(K), np.log(K), 0.0, 0.0], atol=1e-4)

    def test_random_numbers_depend_on_seed_and_step_alone(self):
        def run(seed, steps=2):
            state, step = categorical(objectives.mixture(), backward="sampled", optimizer=keep_gradient())
            state = state.replace(rng=jax.random.key(seed))
            gradients = []
            for _ in range(steps):
                state, _ = step(state, SYMBOLS)
                gradients.append(np.array(state.opt_state["logits"]))
            return gradients

        (first, second), again, other = run(3), run(3), run(4)
        np.testing.assert_array_equal(first, again[0])
        np.testing.assert_array_equal(second, again[1])
        assert not np.array_equal(first, second)
        assert not np.array_equal(first, other[0])


def test_random_winners_are_the_same_in_every_backward():
    objective = objectives.random_wta()
    (winner, metrics), *others = [gradient_of(objective, backward) for backward in ("winner", "sampled", "all")]
    assert size_of(winner) > 0.01
    for gradient, metrics_of_other in others:
        close(gradient, winner)
        np.testing.assert_array_equal(metrics_of_other["win_rate"], metrics["win_rate"])


class TestRefused:
    @pytest.mark.parametrize(
        "objective",
        [objectives.relaxed_wta(), objectives.annealed(1.0), objectives.mixture(), objectives.balanced_wta(0.1)],
    )
    def test_winner_for_soft_weights(self, objective):
        with pytest.raises(ValueError, match=f'{type(objective).__name__} does not promise. Use "sampled" .* or "all"'):
            categorical(objective)

    def test_winner_for_an_ensemble(self):
        state, step = categorical(objectives.mle())
        with pytest.raises(ValueError, match='MLE with K=3 does not promise. Use "sampled" .* or "all"'):
            step(state, SYMBOLS)

    def test_options(self):
        with pytest.raises(ValueError, match="backward must be one of .*, got 'best'"):
            categorical(objectives.wta(), backward="best")
        with pytest.raises(ValueError, match="accumulate must be at least 1 micro-batch, got 0"):
            categorical(objectives.wta(), accumulate=0)
        with pytest.raises(ValueError, match=r"hypothesis_chunk must be at least 1.*all.*hypothesis_chunk=2.*winner"):
            categorical(objectives.wta(), hypothesis_chunk=2)
        state, step = categorical(objectives.wta(), backward="all", hypothesis_chunk=2)
        with pytest.raises(ValueError, match="hypothesis_chunk=2 does not divide K=3"):
            step(state, SYMBOLS)

    def test_one_hypothesis_for_relaxed(self):
        state, step = categorical(objectives.relaxed_wta(), np.zeros((1, 5), np.float32), backward="all")
        with pytest.raises(ValueError, match="at least 2 hypotheses"):
            step(state, SYMBOLS)

    def test_batches(self):
        state, step = categorical(objectives.wta(), accumulate=4)
        with pytest.raises(ValueError, match="6 examples does not divide into accumulate=4"):
            step(state, SYMBOLS)
        with pytest.raises(ValueError, match=r"one leading axis B .* \[\(4,\), \(6,\)\]"):
            step(state, SYMBOLS | {"y": np.zeros(4)})
        with pytest.raises(ValueError, match="0 examples"):
            step(state, {"x": np.zeros(0, np.int32)})

    @pytest.mark.parametrize(
        ("log_p", "shape"), [(lambda *_: jnp.zeros(()), r"\(\)"), (lambda *_: jnp.zeros((1, 4)), r"\(1, 4\)")]
    )
    def test_log_likelihoods_of_another_shape(self, log_p, shape):
        state, step = categorical(objectives.wta(), log_p=log_p)
        with pytest.raises(ValueError, match=rf"one number per example, so shape \(1,\) .* got shape {shape}"):
            step(state, SYMBOLS)

    def test_state(self):
        create = functools.partial(mcl.TrainState.create, params={}, optimizer=optax.sgd(1.0))
        with pytest.raises(ValueError, match="one leading axis K"):
            create(adapters={"a": jnp.zeros((2, 3)), "b": jnp.zeros((3, 3))}, rng=jax.random.key(0))
        with pytest.raises(ValueError, match="typed key"):
            create(adapters={"a": jnp.zeros((2, 3))}, rng=jax.random.PRNGKey(0))


class TestCollapse:
    """Three modes in the plane, of weight 1, 3 and 1, and three hypotheses, one of which starts too far away to win.

    Under plain WTA it never moves: the two others share the modes, and the loss keeps the variance between two of them.
    """

    MODES = np.array([[4.0, 3.5], [0.0, 0.0], [4.0, 0.0]], np.float32)
    START = np.array([[3.0, 3.0], [1.0, 1.0], [10.0, 11.0]], np.float32)

    def train(self, objective, backward, steps=500):
        """Win rates under plain WTA, and which hypotheses moved, after training."""
        rng = np.random.default_rng(0)
        mode = np.repeat([0, 1, 2], [6, 18, 6])
        batch = {"x": (self.MODES[mode] + 0.1 * rng.normal(size=(30, 2))).astype(np.float32)}
        log_p = lambda params, adapters, batch, rng: -jnp.square(batch["x"] - adapters["mean"][None]).sum(-1)
        optimizer = optax.sgd(0.1)
        state = mcl.TrainState.create(
            params={}, adapters={"mean": jnp.asarray(self.START)}, optimizer=optimizer, rng=jax.random.key(0)
        )
        update = Update(log_p, objective, optimizer, backward)
        state = state.replace(objective_state=objective.init(3))
        scan = jax.jit(lambda state: jax.lax.scan(lambda s, _: update({}, s, batch), state, None, steps))
        mean = np.asarray(scan(state)[0].adapters["mean"])
        distance = np.square(batch["x"][None] - mean[:, None]).sum(-1)
        return np.bincount(distance.argmin(0), minlength=3) / 30, mean

    def test_wta_leaves_a_hypothesis_dead(self):
        win_rate, mean = self.train(objectives.wta(), "winner")
        assert win_rate[2] == 0.0
        np.testing.assert_array_equal(mean[2], self.START[2])

    @pytest.mark.parametrize(
        ("objective", "backward"),
        [
            (objectives.relaxed_wta(0.05), "all"),
            (objectives.relaxed_wta(0.05), "sampled"),
            (objectives.balanced_wta(rate=3.0, share=(0.2, 0.6, 0.2), release_step=400), "winner"),
        ],
        ids=["relaxed", "relaxed sampled", "balanced"],
    )
    def test_one_hypothesis_a_mode(self, objective, backward):
        win_rate, mean = self.train(objective, backward)
        assert sorted(win_rate.tolist()) == pytest.approx([0.2, 0.2, 0.6])
        nearest = np.square(self.MODES[:, None] - mean[None]).sum(-1).argmin(1)
        assert sorted(nearest.tolist()) == [0, 1, 2]

    @pytest.mark.parametrize(
        ("objective", "backward"),
        [
            (objectives.annealed(lambda step: 100.0 * 0.98 ** step.astype(jnp.float32)), "all"),
            (objectives.balanced_wta(rate=3.0), "winner"),
        ],
        ids=["annealed", "uniform share"],
    )
    def test_all_alive(self, objective, backward):
        """Both hold the hypotheses to equal parts at first, and here split the heavy mode."""
        win_rate, _ = self.train(objective, backward)
        assert win_rate.min() > 0.1


class TestDivergedHypothesis:
    """With one of three hypotheses NaN, the others win every example and go on learning, and the step says so."""

    @pytest.mark.parametrize(
        ("objective", "backward"),
        [
            (objectives.wta(), "winner"),
            (objectives.relaxed_wta(0.4), "sampled"),
            (objectives.annealed(1.5), "all"),
            (objectives.balanced_wta(), "winner"),
        ],
        ids=["wta", "relaxed", "annealed", "balanced"],
    )
    def test_loses_and_shows(self, objective, backward):
        params, whole = tokens_setup()
        optimizer = optax.sgd(0.1)
        step = mcl.make_train_step(token_log_likelihood(MODEL, dropout=False), objective, optimizer, backward)
        for broken in (0, 2):
            spoil = lambda leaf, broken=broken: np.where(
                (np.arange(K) == broken).reshape(-1, *[1] * (leaf.ndim - 1)), np.nan, leaf
            )
            adapters = jax.tree.map(lambda leaf, spoil=spoil: spoil(leaf).astype(leaf.dtype), whole)
            state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=optimizer, rng=jax.random.key(7))
            state, metrics = step(state, BATCH)
            healthy = np.arange(K) != broken
            assert np.isnan(metrics["loss"])
            assert np.isnan(metrics["log_likelihood"]).tolist() == (~healthy).tolist()
            assert metrics["win_rate"][broken] == 0.0
            close(metrics["win_rate"].sum(), 1.0)
            for new, old in zip(jax.tree.leaves(state.adapters), jax.tree.leaves(adapters), strict=True):
                assert np.isfinite(new[healthy]).all()
                assert not np.array_equal(new[healthy], old[healthy])
            if objective == objectives.balanced_wta():
                close(state.objective_state, 0.05 * (1 / K - np.asarray(metrics["win_rate"])))

    @pytest.mark.parametrize("num_hypotheses", [1, K])
    @pytest.mark.parametrize(
        ("objective", "backward", "options"),
        [
            (objectives.wta(), "winner", {}),
            (objectives.wta(), "winner", {"accumulate": 3}),
            (objectives.mixture(), "sampled", {}),
            (objectives.wta(), "all", {}),
            (objectives.wta(), "all", {"hypothesis_chunk": 1}),
        ],
    )
    def test_examples_without_targets_may_be_anything(self, objective, backward, options, num_hypotheses):
        """NaN features of an example that has no targets: neither the loss nor the gradient knows of them."""
        params, adapters = tokens_setup(num_hypotheses)
        plain = token_log_likelihood(MODEL, dropout=False)

        def with_features(params, adapters_k, batch, rng):
            log_p, tokens = plain(params, adapters_k, batch, rng)
            scale = batch["features"] * jnp.mean(adapters_k["up"]["a"])  # a gradient that is NaN where features are
            return log_p * (1.0 + scale), tokens

        step, results = mcl.make_train_step(with_features, objective, keep_gradient(), backward, **options), []
        for bad in (0.0, np.nan):
            features = np.where(BATCH["mask"].any(1), 0.5, bad).astype(np.float32)
            state = mcl.TrainState.create(
                params=params, adapters=adapters, optimizer=keep_gradient(), rng=jax.random.key(7)
            )
            state, metrics = step(state, BATCH | {"features": features})
            results.append((state.opt_state, metrics))
        assert np.isfinite(results[1][1]["gradient_norm"])
        close(results[1], results[0])
        assert results[1][1]["tokens"] == int(BATCH["mask"].sum())


class TestOptimizers:
    """Optimizers that keep, share or ask for more than most."""

    @pytest.mark.parametrize(
        "optimizer",
        [
            optax.contrib.mechanize(optax.contrib.prodigy()),  # two leaves of its state are one buffer
            optax.chain(optax.sgd(1e-2), optax.contrib.reduce_on_plateau(patience=1)),  # wants the loss
            optax.inject_hyperparams(optax.sgd)(0.01),
            optax.chain(optax.add_noise(1e-2, 0.5, key=jax.random.key(3)), optax.sgd(1e-2)),  # holds a typed key
            optax.GradientTransformation(  # a Python number as state
                lambda adapters: {"count": 0, "rate": 0.1},
                lambda g, state, *_: (
                    jax.tree.map(lambda x: -state["rate"] * x, g),
                    {"count": state["count"] + 1, "rate": 0.5 * state["rate"]},
                ),
            ),
        ],
        ids=["mechanize", "reduce_on_plateau", "inject_hyperparams", "add_noise", "Python numbers"],
    )
    def test_three_steps_compile_once(self, optimizer):
        params, adapters = tokens_setup()
        with jax.numpy_dtype_promotion("standard"):
            state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=optimizer, rng=jax.random.key(7))
            first = jax.tree.map(lambda leaf: leaf.dtype, state.opt_state)
            step = mcl.make_train_step(token_log_likelihood(MODEL), objectives.wta(), optimizer)
            for _ in range(3):
                state, metrics = step(state, BATCH)
        assert step.jitted._cache_size() == 1
        assert np.isfinite(metrics["loss"])
        assert jax.tree.map(lambda leaf: leaf.dtype, state.opt_state) == first
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state.opt_state))

    def test_an_optimizer_that_does_not_want_the_loss_is_not_given_it(self):
        """`sam` takes arguments by name, and `value` is none of them."""
        params, adapters = tokens_setup()
        optimizer = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), opaque_mode=False)
        state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=optimizer, rng=jax.random.key(7))
        step = mcl.make_train_step(token_log_likelihood(MODEL), objectives.wta(), optimizer)
        with jax.numpy_dtype_promotion("standard"):
            _, metrics = step(state, BATCH)
        assert np.isfinite(metrics["loss"])

    def test_an_optimizer_that_wants_more_is_refused(self):
        optimizer = optax.scale_by_backtracking_linesearch(5)
        with pytest.raises(ValueError, match="the optimizer needs value_fn, which a train step cannot give"):
            mcl.make_train_step(token_log_likelihood(MODEL), objectives.wta(), optimizer)

    def test_value_is_the_loss(self):
        """Of the batch before the update: a plateau is seen, and the rate falls."""
        params, adapters = tokens_setup()
        plateau = optax.chain(optax.sgd(0.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=2))
        state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=plateau, rng=jax.random.key(7))
        step = mcl.make_train_step(token_log_likelihood(MODEL, dropout=False), objectives.wta(), plateau)
        with jax.numpy_dtype_promotion("standard"):
            for _ in range(4):
                state, metrics = step(state, BATCH)
        close(state.opt_state[1].best_value, metrics["loss"])
        assert state.opt_state[1].scale == 0.5


@pytest.mark.parametrize("backward", ["winner", "all"])
def test_gradients_of_bfloat16_adapters_are_added_in_float32(backward):
    """512 equal examples, one by one or at once: adding them in bfloat16 stops at 256 times the first."""
    params, adapters = tokens_setup()
    adapters = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), adapters)
    batch = jax.tree.map(lambda leaf: np.repeat(leaf[4:5], 512, axis=0), BATCH)
    model = mcl.Hypotheses(Tokens(), mcl.LoraConfig(rank=2, alpha=6.0, targets=("up", "head")))
    norms = []
    for size, accumulate in [(1, 1), (512, 1), (512, 512)]:
        optimizer = optax.sgd(0.0)
        state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=optimizer, rng=jax.random.key(7))
        step = mcl.make_train_step(
            token_log_likelihood(model), objectives.wta(), optimizer, backward, accumulate=accumulate
        )
        norms.append(float(step(state, jax.tree.map(lambda leaf, size=size: leaf[:size], batch))[1]["gradient_norm"]))
    np.testing.assert_allclose(norms[1:], norms[0], rtol=0.01)


def test_nothing_leaves_the_device():
    """With the data there, neither making a state nor a step moves anything between host and device."""
    params, adapters, batch = jax.tree.map(jnp.asarray, (*tokens_setup(), BATCH))
    rng, optimizer = jax.random.key(7), optax.sgd(0.1)
    with jax.transfer_guard("disallow"):
        state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=optimizer, rng=rng)
        step = mcl.make_train_step(token_log_likelihood(MODEL), objectives.balanced_wta(), optimizer)
        for _ in range(2):
            state, _ = step(state, batch)


def test_a_state_may_be_given_the_objective():
    params, adapters = tokens_setup()
    create = functools.partial(
        mcl.TrainState.create, params=params, adapters=adapters, optimizer=optax.sgd(0.1), rng=jax.random.key(7)
    )
    assert create(objective=objectives.balanced_wta()).objective_state.tolist() == [0.0] * K
    with pytest.raises(ValueError, match="share has 2 numbers for K=3 hypotheses"):
        create(objective=objectives.balanced_wta(share=(0.5, 0.5)))


def test_state_is_a_pytree_without_surprises():
    state, _ = categorical(objectives.wta())
    assert flax.struct.dataclasses.is_dataclass(state)
    assert set(vars(state)) == {"step", "params", "adapters", "opt_state", "objective_state", "rng", "winners"}
