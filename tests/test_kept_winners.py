"""Cheaper ways to choose winners: another function's scores, and winners that serve for several visits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import keep_gradient, normal

import mcl_jax as mcl
from mcl_jax import objectives
from mcl_jax.kept_winners import UNKNOWN, KeptWinners

K, B, N, D = 3, 5, 13, 7
RNG = jax.random.key(3)
WTA = objectives.wta()
ADAPTERS = {"shift": normal((K, D), seed=1)}
VALUES = normal((N, D), seed=2)


def log_p(params, adapters_k, batch, rng):
    return -((batch["x"] - adapters_k["shift"][None]) ** 2).sum(-1), jnp.full(batch["x"].shape[0], 2)


def backwards(params, adapters_k, batch, rng):
    """Prefers the hypothesis that `log_p` likes least."""
    return -log_p(params, adapters_k, batch, rng)[0], jnp.full(batch["x"].shape[0], 2)


def batch_of(example):
    example = np.asarray(example, np.int32)
    return {"x": VALUES[example], "example": example}


@functools.cache
def step_of(objective=WTA, backward="winner", place=mcl.make_train_step, **options):
    return place(log_p, objective, keep_gradient(), backward, donate=False, **options)


def state_of(adapters=ADAPTERS, num_examples=N, **options):
    return mcl.TrainState.create(
        params={}, adapters=adapters, optimizer=keep_gradient(), rng=RNG, num_examples=num_examples, **options
    )


def moved(state, adapters):
    return state.replace(adapters=adapters)


def scores(adapters, example):
    return jnp.stack([log_p({}, {"shift": a}, batch_of(example), None)[0] / 2 for a in adapters["shift"]])


def expected_gradient(adapters, example, winner):
    loss = lambda adapters: -scores(adapters, example)[winner, np.arange(len(example))].mean()
    return jax.grad(loss)(adapters)


FIRST, OTHER = [0, 3, 5, 8, 12], {"shift": ADAPTERS["shift"][::-1] + 0.1}


def test_winners_serve_until_they_are_old():
    step, state = step_of(refresh=3), state_of()
    chosen = np.asarray(scores(ADAPTERS, FIRST).argmax(0))
    assert len(set(chosen.tolist())) > 1
    for visit in range(1, 7):
        adapters = ADAPTERS if visit == 1 else OTHER  # from the second visit on, others would win
        new = np.asarray(scores(OTHER, FIRST).argmax(0))
        assert (new != chosen).any()
        state, metrics = step(moved(state, adapters), batch_of(FIRST))
        winner = chosen if visit <= 3 else new
        np.testing.assert_array_equal(state.winners.winner[np.array(FIRST)], winner)
        np.testing.assert_array_equal(state.winners.age[np.array(FIRST)], (visit - 1) % 3 + 1)
        np.testing.assert_allclose(
            state.opt_state["shift"], expected_gradient(adapters, FIRST, winner)["shift"], rtol=1e-5
        )
        values = np.asarray(scores(adapters, FIRST))[winner, np.arange(B)]
        np.testing.assert_allclose(metrics["loss"], -values.mean(), rtol=1e-5)
        np.testing.assert_allclose(metrics["win_rate"], np.bincount(winner, minlength=K) / B, rtol=1e-6)
        if (visit - 1) % 3:  # nothing but the winners was computed
            np.testing.assert_allclose(-metrics["log_likelihood"].sum(), metrics["loss"], rtol=1e-5)
    others = np.setdiff1d(np.arange(N), FIRST)
    assert (np.asarray(state.winners.winner)[others] == UNKNOWN).all() and not state.winners.age[others].any()


def test_one_unknown_winner_makes_all_of_the_batch_choose():
    step, state = step_of(refresh=100), state_of()
    state, _ = step(state, batch_of(FIRST))
    mixed = [0, 1, 3, 5, 8]
    state, _ = step(moved(state, OTHER), batch_of(mixed))
    np.testing.assert_array_equal(state.winners.winner[np.array(mixed)], scores(OTHER, mixed).argmax(0))
    assert state.winners.winner[12] == scores(ADAPTERS, [12]).argmax(0)[0]


def test_the_average_age_decides():
    """An example that an epoch left out does not make the others serve longer, nor shorter."""
    winners = KeptWinners(jnp.zeros(N, jnp.int32), jnp.array([3, 3, 3, 3, 2] + [1] * 8))
    real = jnp.ones(B, bool)
    due = lambda example, refresh, real=real: bool(winners.due(jnp.array(example), real, refresh))
    assert not due([0, 1, 2, 3, 4], 3) and due([0, 1, 2, 3, 3], 3) and not due([0, 1, 2, 3, 3], 4)
    assert due([0, 1, 2, 3, 4], 3, jnp.arange(B) < 4)  # the padding does not count


def test_refresh_at_each_visit_is_the_plain_step():
    plain, every = step_of(objectives.balanced_wta()), step_of(objectives.balanced_wta(), refresh=1)
    one, other = state_of(num_examples=None), state_of()
    for example in (FIRST, FIRST, [1, 2, 3, 4, 5]):
        (one, metrics), (other, same) = plain(one, batch_of(example)), every(other, batch_of(example))
        for name in metrics:
            np.testing.assert_allclose(metrics[name], same[name], rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(one.objective_state, other.objective_state, rtol=1e-6)
        np.testing.assert_allclose(one.opt_state["shift"], other.opt_state["shift"], rtol=1e-6)


PLACES = {
    "micro-batches": {"accumulate": 2},
    "pmap": {"place": mcl.parallel.pmap_step},
    "mesh": {"mesh": True},
}


@pytest.mark.parametrize("name", PLACES)
def test_as_on_one_device(name):
    options = dict(PLACES[name])
    if name == "pmap":
        options["devices"] = tuple(jax.devices()[:2])
    if options.pop("mesh", False):
        options["mesh"] = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    examples = [0, 3, 5, 8, 12, 1], [3, 5, 0, 8, 12, 1], [0, 3, 5, 2, 12, 1], [5, 8, 12, 1, 3, 0]
    one, other = state_of(), state_of()
    for number, example in enumerate(examples):
        adapters = {"shift": ADAPTERS["shift"] * (1 - number)}
        one, metrics = step_of(refresh=2)(moved(one, adapters), batch_of(example))
        other, same = step_of(refresh=2, **options)(moved(other, adapters), batch_of(example))
        for name in metrics:
            np.testing.assert_allclose(metrics[name], same[name], rtol=2e-6, err_msg=name)
        for field in ("winner", "age"):
            np.testing.assert_array_equal(getattr(one.winners, field), getattr(other.winners, field))
        np.testing.assert_allclose(one.opt_state["shift"], other.opt_state["shift"], rtol=1e-5)


def test_padding_on_a_mesh_keeps_no_winner():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    state, _ = step_of(refresh=2, mesh=mesh)(state_of(), batch_of([7, 4, 9]))
    known = np.asarray(state.winners.winner) != UNKNOWN
    assert np.flatnonzero(known).tolist() == [4, 7, 9]


def test_steps_between_run_one_hypothesis_for_each_example():
    calls = []

    def counted(params, adapters_k, batch, rng):
        jax.debug.callback(lambda _: calls.append(1), adapters_k["shift"][0] + batch["x"][0, 0])
        return log_p(params, adapters_k, batch, rng)

    step, state, numbers = mcl.make_train_step(counted, WTA, keep_gradient(), refresh=2), state_of(), []
    for _ in range(3):
        calls.clear()
        state, _ = step(state, batch_of(FIRST))
        jax.effects_barrier()
        numbers.append(len(calls))
    assert numbers[0] == numbers[2] == numbers[1] + K * B


@pytest.mark.parametrize("objective", [objectives.wta(), objectives.relaxed_wta(0.3)], ids=["wta", "relaxed"])
def test_another_function_chooses(objective):
    backward = "winner" if objective.is_hard(K) else "sampled"
    step = step_of(objective, backward, choose_fn=backwards)
    state, metrics = step(state_of(num_examples=None), batch_of(FIRST))
    losers = np.asarray(scores(ADAPTERS, FIRST).argmin(0))
    np.testing.assert_allclose(metrics["win_rate"], np.bincount(losers, minlength=K) / B, rtol=1e-6)
    if backward == "winner":
        gradient = expected_gradient(ADAPTERS, FIRST, losers)["shift"]
        np.testing.assert_allclose(state.opt_state["shift"], gradient, rtol=1e-5)
        values = np.asarray(scores(ADAPTERS, FIRST))[losers, np.arange(B)]
        np.testing.assert_allclose(metrics["loss"], -values.mean(), rtol=1e-5)  # of the function that learns


CANDIDATES = np.array([[0, 2], [2, 1], [1, 0], [1, 0], [0, 1]])  # of the examples of a batch


def among(log_likelihood, candidates):
    """The scores of the candidates, and −inf for the others."""
    out = np.full_like(log_likelihood, -np.inf)
    for b, ks in enumerate(candidates):
        out[ks, b] = np.asarray(log_likelihood)[ks, b]
    return out


@pytest.mark.parametrize("objective", [objectives.wta(), objectives.balanced_wta()], ids=["wta", "balanced"])
def test_candidates_alone_compete(objective):
    step, state = step_of(objective, candidates=2), state_of(num_examples=None)
    bias = np.zeros(K, np.float32)
    if objective != objectives.wta():
        bias = np.array([0.0, 3.0, -3.0], np.float32)
        state = state.replace(objective_state=jnp.asarray(bias))
    all_scores = np.asarray(scores(ADAPTERS, FIRST))
    contest = among(all_scores, CANDIDATES)
    winner = (contest + bias[:, None]).argmax(0)
    assert (winner != (all_scores + bias[:, None]).argmax(0)).any()  # some best ones are no candidates
    state, metrics = step(state, {**batch_of(FIRST), "candidates": CANDIDATES})
    gradient = expected_gradient(ADAPTERS, FIRST, winner)["shift"]
    np.testing.assert_allclose(state.opt_state["shift"], gradient, rtol=1e-5)
    np.testing.assert_allclose(metrics["win_rate"], np.bincount(winner, minlength=K) / B, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], -all_scores[winner, np.arange(B)].mean(), rtol=1e-5)
    own = np.where(np.isneginf(contest), 0.0, contest).sum(1) / B
    np.testing.assert_allclose(metrics["log_likelihood"], own, rtol=1e-5)


def test_random_winners_are_candidates():
    step, numbers = step_of(objectives.random_wta(), candidates=2), []
    for seed in range(5):
        state = state_of(num_examples=None).replace(rng=jax.random.key(seed))
        state, metrics = step(state, {**batch_of(FIRST), "candidates": np.tile([[0, 2]], (B, 1))})
        assert metrics["win_rate"][1] == 0.0 and np.isfinite(metrics["loss"])
        numbers.append(float(metrics["win_rate"][0]))
    assert len(set(numbers)) > 1


def noisy(params, adapters_k, batch, rng):
    noise = 0.0 if rng is None else jax.random.normal(rng, ())
    return log_p(params, adapters_k, batch, rng)[0] + noise * adapters_k["shared_scale"][0], jnp.full(1, 2)


@pytest.mark.parametrize("assign", ["clean", "noisy"])
def test_all_hypotheses_as_candidates_are_the_plain_step(assign):
    adapters = {**ADAPTERS, "shared_scale": jnp.array([2.0])}  # a part that all hypotheses share
    batch = batch_of(FIRST)
    orders = np.stack([np.random.default_rng(b).permutation(K) for b in range(B)])
    results = []
    for options, more in (({}, {}), ({"candidates": K}, {"candidates": orders})):
        step = mcl.make_train_step(noisy, objectives.balanced_wta(), keep_gradient(), assign=assign, **options)
        results.append(step(state_of(adapters, num_examples=None), {**batch, **more}))
    (one, metrics), (other, same) = results
    for name in metrics:
        np.testing.assert_allclose(metrics[name], same[name], rtol=1e-6, err_msg=name)
    for name in adapters:
        np.testing.assert_allclose(one.opt_state[name], other.opt_state[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", PLACES)
def test_candidates_as_on_one_device(name):
    options = dict(PLACES[name])
    if name == "pmap":
        options["devices"] = tuple(jax.devices()[:2])
    if options.pop("mesh", False):
        options["mesh"] = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    batch = {**batch_of([*FIRST, 1]), "candidates": np.concatenate([CANDIDATES, [[2, 0]]])}
    one, metrics = step_of(candidates=2, refresh=2)(state_of(), batch)
    other, same = step_of(candidates=2, refresh=2, **options)(state_of(), batch)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], same[name], rtol=2e-6, err_msg=name)
    np.testing.assert_array_equal(one.winners.winner, other.winners.winner)
    np.testing.assert_allclose(one.opt_state["shift"], other.opt_state["shift"], rtol=1e-5)


def test_only_candidates_run():
    calls = []

    def counted(params, adapters_k, batch, rng):
        jax.debug.callback(lambda _: calls.append(1), adapters_k["shift"][0] + batch["x"][0, 0])
        return log_p(params, adapters_k, batch, rng)

    numbers = {}
    for m in (1, 2, K):
        calls.clear()
        step = mcl.make_train_step(counted, WTA, keep_gradient(), candidates=m)
        step(state_of(num_examples=None), {**batch_of(FIRST), "candidates": np.tile(np.arange(m), (B, 1))})
        jax.effects_barrier()
        numbers[m] = len(calls)
    assert numbers[2] - numbers[1] == B and numbers[K] - numbers[1] == (K - 1) * B


class TestErrors:
    @pytest.mark.parametrize(
        ("candidates", "message"),
        [
            (None, r'needs batch\["candidates"\]'),
            (np.zeros((B, 3), int), r"must have shape \[B, m\] = \(5, 2\), got \(5, 3\)"),
            (np.zeros(B, int), r"must have shape .* got \(5,\)"),
            (np.full((B, 2), K), "must be from 0 to 2, got 3 to 3"),
            (np.full((B, 2), -1), "must be from 0 to 2, got -1 to -1"),
        ],
    )
    def test_candidates(self, candidates, message):
        more = {} if candidates is None else {"candidates": candidates}
        with pytest.raises(ValueError, match=message):
            step_of(candidates=2)(state_of(), {**batch_of(FIRST), **more})

    def test_candidates_of_packed_rows(self):
        texts = {"texts": np.ones((B, D), int), "packed": np.zeros((B, 2), int)}
        batch = {**batch_of(FIRST), "candidates": np.zeros((B, 2), int), **texts}
        with pytest.raises(ValueError, match="one example in each row"):
            step_of(candidates=2)(state_of(), batch)

    def test_more_candidates_than_hypotheses(self):
        with pytest.raises(ValueError, match="candidates=4 must be at most K=3"):
            step_of(candidates=4)(state_of(), {**batch_of(FIRST), "candidates": np.zeros((B, 4), int)})

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"refresh": 0}, "refresh must be at least 1 visit"),
            ({"refresh": 2, "backward": "all"}, 'refresh must .* needs backward="winner", got refresh=2 and .*all'),
            ({"candidates": 0}, "candidates must be at least 1 hypothesis"),
            ({"candidates": 2, "backward": "sampled"}, 'candidates must .* needs backward="winner", got candidates=2'),
            ({"choose_fn": backwards, "backward": "all"}, 'choose_fn needs backward="winner" or "sampled"'),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            mcl.make_train_step(log_p, objectives.wta(), keep_gradient(), **options)

    def test_a_state_without_winners(self):
        with pytest.raises(ValueError, match=r"TrainState\.create\(num_examples=N\)"):
            step_of(refresh=2)(state_of(num_examples=None), batch_of(FIRST))

    def test_a_batch_without_numbers(self):
        with pytest.raises(ValueError, match=r'needs batch\["example"\]'):
            step_of(refresh=2)(state_of(), {"x": VALUES[:B]})

    @pytest.mark.parametrize("example", [[0, 1, 2, 3, N], [-1, 0, 1, 2, 3]])
    def test_numbers_outside(self, example):
        batch = {"x": VALUES[:B], "example": np.array(example)}
        with pytest.raises(ValueError, match=f"must be from 0 to {N - 1}.*got {min(example)} to {max(example)}"):
            step_of(refresh=2)(state_of(), batch)

    def test_no_examples(self):
        with pytest.raises(ValueError, match="num_examples must be at least 1, got 0"):
            state_of(num_examples=0)


def test_winners_are_checkpointed(tmp_path):
    state, _ = step_of(refresh=3)(state_of(), batch_of(FIRST))
    with mcl.checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, config={})
        checkpoints.wait()
        restored, _, _ = checkpoints.restore(state_of())
    np.testing.assert_array_equal(restored.winners.winner, state.winners.winner)
    np.testing.assert_array_equal(restored.winners.age, state.winners.age)
