"""The training loop: what it leaves behind, and that stopping, resuming and bad luck change nothing."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import kill_child
import numpy as np
import pytest
from toys import adam

import mcl_jax as mcl
from mcl_jax.run import Run

STEPS, EVERY = 11, 4
STEP, START, draw = kill_child.build(optimizer=adam(1e-2))


def start():
    """Step 0 in buffers of its own, since steps donate them."""
    copy = jax.tree.map(jnp.copy, START.replace(params=None))
    return copy.replace(params=START.params)


def loss_of(state):
    return {"eval_loss": float(sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(state.adapters)))}


def fit(workdir, batches=draw, step=STEP, **options):
    options = dict(steps=STEPS, evaluate=loss_of, eval_every=EVERY, config={"rank": 2}) | options
    return mcl.fit(step, start(), batches, workdir=workdir, **options)


def straight():
    state = start()
    for number in range(STEPS):
        state, _ = STEP(state, draw(number))
    return state


def same(a, b):
    leaves = lambda state: jax.tree.leaves(state.replace(rng=jax.random.key_data(state.rng)))
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


class Places:
    """Batches with a place, as `data.train_batches` gives them."""

    def __init__(self):
        self.next = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.next += 1
        return draw(self.next - 1)

    def get_state(self):
        return {"next": self.next}

    def set_state(self, state):
        self.next = state["next"]


class Stops:
    """A step that stops the run after a number of calls, by a signal to this process or by an error."""

    def __init__(self, after, error=None):
        self.left, self.error = after, error

    def __call__(self, state, batch):
        self.left -= 1
        if self.left == 0 and self.error:
            raise self.error
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return STEP(state, batch)


def batches_by_name():
    return {"function": lambda: draw, "place": Places, "generator": lambda: (draw(n) for n in range(10**6))}


def test_a_run_leaves_its_log_and_results(tmp_path):
    fitted = fit(tmp_path)
    assert same(fitted.state, straight())
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["steps"] == STEPS and results["eval_loss"] == fitted.evaluation["eval_loss"] > 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 4, 8, 11]
    assert {"eval_loss", "train_loss", "train_win_rate", "train_weight_entropy"} <= lines[1].keys()
    assert "train_loss" not in lines[0]
    again = fit(tmp_path)
    assert same(again.state, fitted.state) and again.evaluation == fitted.evaluation


@pytest.mark.parametrize("batches", ["function", "place", "generator"])
@pytest.mark.parametrize("after", [1, 6])
def test_stopped_by_a_signal_it_goes_on_as_if_it_had_not_been(tmp_path, batches, after, capsys):
    make = batches_by_name()[batches]
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, make(), Stops(after))
    assert stopped.value.code == 143
    assert not (tmp_path / "results.json").exists() and (tmp_path / "checkpoints" / str(after)).exists()
    fitted = fit(tmp_path, make())
    assert same(fitted.state, straight())
    lines = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [0, 4, 8, 11]


def test_an_error_in_a_step_loses_only_what_came_after_the_last_checkpoint(tmp_path):
    with pytest.raises(RuntimeError, match="no luck"):
        fit(tmp_path, step=Stops(7, RuntimeError("no luck")), checkpoint_seconds=0.0)
    assert (tmp_path / "checkpoints" / "6").exists()
    assert same(fit(tmp_path).state, straight())


def test_nan_names_step_and_hypothesis_and_keeps_the_last_good_checkpoint(tmp_path):
    def spoiled(number):
        batch = draw(number)
        return batch | {"x": jnp.where(number >= 6, jnp.nan, batch["x"])}

    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 6 because .* hypotheses 0, 1, 2 .* step 6"):
        fit(tmp_path, spoiled, checkpoint_seconds=0.0)
    assert same(fit(tmp_path).state, straight())


def test_a_gradient_that_is_not_finite_is_named_where_the_loss_does_not_show_it(tmp_path):
    """The batch of step 7, the last before an evaluation: the loss is finite, and adapters are NaN after it."""

    def spoiled(state, batch):
        state, metrics = STEP(state, batch)
        if int(state.step) == 8:
            state = state.replace(adapters=jax.tree.map(lambda x: np.nan * x, state.adapters))
            metrics = metrics | {"gradient_norm": np.nan}
        return state, metrics

    message = r"step 8 is not saved: adapters/.*, after a gradient that was not finite at step 7; .* good .* is step 4"
    with pytest.raises(FloatingPointError, match=message):
        fit(tmp_path, step=spoiled, keep_best=True)
    assert same(fit(tmp_path, keep_best=True).state, fit(tmp_path.with_name("straight"), keep_best=True).state)


def test_a_stop_at_an_evaluation_keeps_its_score(tmp_path):
    """Step 4 is the best, and the run is stopped there."""
    evaluate = lambda state: {"eval_loss": {0: 9.0, 4: 1.0, 8: 3.0, 11: 2.0}[int(state.step)]}
    with pytest.raises(SystemExit):
        fit(tmp_path, step=Stops(EVERY), evaluate=evaluate, keep_best=True)
    fitted = fit(tmp_path, evaluate=evaluate, keep_best=True)
    assert int(fitted.state.step) == 4 and fitted.evaluation == {"eval_loss": 1.0}


def test_a_broken_checkpoint_costs_no_run_even_if_it_is_the_best(tmp_path, capsys):
    with pytest.raises(RuntimeError, match="no luck"):
        fit(tmp_path, step=Stops(9, RuntimeError("no luck")), evaluate=falling, keep_best=True)
    for file in (tmp_path / "checkpoints" / "8").rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    fitted = fit(tmp_path, evaluate=falling, keep_best=True)
    assert "checkpoint 8 in" in capsys.readouterr().out and int(fitted.state.step) == STEPS
    assert same(fitted.state, straight())


def falling(state):
    return {"eval_loss": -float(state.step)}


def test_the_best_evaluation_is_kept(tmp_path):
    """The loss rises after step 4: the state of step 4 comes back, after a resume too."""
    scores = {0: 9.0, 4: 1.0, 8: 3.0, 11: 2.0}
    evaluate = lambda state: {"eval_loss": scores[int(state.step)]}
    for _ in range(2):
        fitted = fit(tmp_path, evaluate=evaluate, keep_best=True)
        assert int(fitted.state.step) == 4 and fitted.evaluation == {"eval_loss": 1.0}


def test_patience_ends_the_training_and_a_resume_takes_no_further_step(tmp_path, capsys):
    """Evaluations every 2 steps: the best at step 4, then two that are not better, the second of them after a stop."""
    scores = {0: 9.0, 2: 5.0, 4: 1.0, 6: 3.0, 8: 2.0}  # a further evaluation would raise a KeyError
    options = dict(
        evaluate=lambda state: {"eval_loss": scores[int(state.step)]}, eval_every=2, keep_best=True, patience=2
    )
    with pytest.raises(RuntimeError, match="no luck"):
        fit(tmp_path, step=Stops(7, RuntimeError("no luck")), checkpoint_seconds=0.0, **options)
    for _ in range(2):
        fitted = fit(tmp_path, **options)
        assert int(fitted.state.step) == 4 and fitted.evaluation == {"eval_loss": 1.0}
    assert "ends at step 8 of 11: 2 evaluations in a row had no validation loss below 1.0000" in " ".join(
        capsys.readouterr().out.split()
    )


def test_steps_in_strides(tmp_path):
    """A compiled loop of up to `stride` steps for each call, and a batch that says where it stops."""

    def chunk(state, stop):
        while int(state.step) < stop:
            state, metrics = STEP(state, draw(int(state.step)))
        return state, metrics

    fitted = fit(tmp_path, lambda number: min(number - number % EVERY + EVERY, STEPS), chunk, stride=EVERY)
    assert same(fitted.state, straight())


def test_several_trainings_in_one_run(tmp_path):
    with Run(tmp_path, {}) as run:
        for tag in ("a", "b/c"):
            assert same(mcl.fit(STEP, start(), draw, steps=STEPS, run=run, tag=tag).state, straight())
        assert not run.lines("a")[-1].keys() & {"eval_loss"}
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"a", "b"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(run=object()), "either a workdir or a run"),
        (dict(steps=0), "steps, eval_every and stride must be at least 1, got 0"),
        (dict(evaluate=None, keep_best=True), "keep_best needs a function `evaluate`"),
        (dict(patience=2), "patience must be at least 1 and needs keep_best=True, got 2 and False"),
        (dict(patience=0, keep_best=True), "patience must be at least 1 and needs keep_best=True, got 0 and True"),
        (dict(batches=[draw(0), draw(1)]), "batches ended after 2 of 11 steps"),
    ],
)
def test_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, **options)


def test_another_config_is_another_run(tmp_path):
    fit(tmp_path)
    with pytest.raises(ValueError, match="rank: 2 in the file, 3 now"):
        fit(tmp_path, config={"rank": 3})
