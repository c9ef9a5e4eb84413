"""The training loop: a run directory, checkpoints, resume, a guard against NaN losses, progress, and signals.

    fitted = mcl.fit(step, state, batches, steps=1000, workdir="runs/mine", evaluate=evaluate, eval_every=50)
    fitted.state.adapters

The same call again resumes from the last checkpoint, with the same numbers as a run that never stopped. A finished run
is read back. SIGTERM and Ctrl-C save a checkpoint and exit with status 143. A NaN loss stops the training with an error
that names the step and the hypothesis, and the last good checkpoint stays.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mcl_jax import hosts
from mcl_jax.checkpoint import Checkpoints, NotFinite
from mcl_jax.console import say
from mcl_jax.json_io import to_json
from mcl_jax.loss_guard import LossGuard, describe_kept
from mcl_jax.profiling import Profiler
from mcl_jax.run import Run
from mcl_jax.train_state import TrainState

Batch = Any
TRAIN_METRICS = ("loss", "win_rate", "weight_entropy")  # written to metrics.jsonl as train_loss, ...


class Fitted(NamedTuple):
    """The result of `fit`.

    Attributes:
      state: the state after the last step; with `keep_best`, the state at the best evaluation.
      seconds: time of the training over all resumes, with evaluation and compilation.
      evaluation: the result of `evaluate` for that state; {} without `evaluate`.
    """

    state: TrainState
    seconds: float
    evaluation: dict[str, Any]


def fit(
    step: Callable[[TrainState, Batch], tuple[TrainState, Mapping[str, Any]]],
    state: TrainState,
    batches: Iterable[Batch] | Callable[[int], Batch],
    *,
    steps: int,
    workdir: Path | str | None = None,
    run: Run | None = None,
    tag: str = "",
    config: Mapping[str, Any] | None = None,
    inputs: Callable[[Batch], Batch] | None = None,
    evaluate: Callable[[TrainState], Mapping[str, Any]] | None = None,
    eval_every: int = 100,
    stride: int = 1,
    checkpoint_seconds: float = 60.0,
    keep_best: bool = False,
    patience: int | None = None,
    wandb: str | None = None,
    profile: int = 0,
) -> Fitted:
    """Trains for `steps` steps, from the last checkpoint if there is one.

    Args:
      step: the result of `make_train_step`, or any function (state, batch) -> (state, metrics with a "loss").
      state: the state at step 0.
      batches: an iterable that does not end before the training, or a function of the number of steps taken so far. An
        iterator with `get_state` and `set_state`, such as `data.train_batches`, resumes at its place. Any other
        iterable must give the same batches again, and `fit` skips those that were used.
      steps: number of steps in all, including those before a resume.
      workdir: directory of a run that holds only this training; at the end `fit` writes its results.json.
      run: an open `Run` that may hold several trainings, instead of workdir.
      tag: name of the training within the run.
      config: settings that decide the result, for config.json in workdir. A resumed run must have the same settings.
      inputs: function that turns a batch into the input of `step`, for example by adding features.
      evaluate: function from a state to numbers by name; "eval_loss" (nats) is one of them.
      eval_every: steps between evaluations and log lines. `fit` also evaluates at step 0 and at the end.
      stride: number of steps that one call of `step` takes, for compiled loops of steps. A call ends at the next
        multiple of it.
      checkpoint_seconds: seconds between checkpoints. `fit` also saves one at the end.
      keep_best: also save at each evaluation, and return the state with the lowest eval_loss.
      patience: end the training after this number of evaluations in a row without a lower eval_loss; needs keep_best.
        None takes all steps.
      wandb: project in Weights & Biases that gets the log and the results too; with workdir.
      profile: number of calls of `step` to trace with jax.profiler, after their compilation, into DIR/profile/TAG; a
        line on the console says how to open the trace. See `mcl_jax.profiling`.
    Returns:
      The state, the seconds and the last (or best) evaluation.
    Raises:
      ValueError: unless exactly one of workdir and run is given; if batches end too early; if workdir holds a run with
        another config, or a checkpoint with other shapes.
      FloatingPointError: for a loss, or for adapters, that are not finite; names the step, the hypotheses, the step of
        a gradient that was not finite, and the last good checkpoint.
      SystemExit: after SIGTERM or SIGINT, once everything is saved. If one of several processes gets a signal, all
        of them stop.
    """
    if (workdir is None) == (run is None):
        raise ValueError(f"fit needs either a workdir or a run, got workdir={workdir!r} and run={run!r}")
    if wandb and run is not None:
        raise ValueError(f"fit takes wandb only with a workdir, got {wandb!r} and a run; give it to Run(..., wandb=)")
    if profile < 0:
        raise ValueError(f"profile must be a number of calls of at least 0, got {profile}")
    if steps < 1 or eval_every < 1 or stride < 1:
        raise ValueError(f"steps, eval_every and stride must be at least 1, got {steps}, {eval_every} and {stride}")
    if keep_best and evaluate is None:
        raise ValueError("keep_best needs a function `evaluate` that returns eval_loss")
    if patience is not None and (patience < 1 or not keep_best):
        raise ValueError(f"patience must be at least 1 and needs keep_best=True, got {patience} and {keep_best}")
    options = (step, state, batches, steps, tag, inputs, evaluate, eval_every, stride, checkpoint_seconds)
    options = (*options, keep_best, patience, profile)
    if run is not None:
        return _Training(run, *options).go()
    with Run(workdir, {"steps": steps, **(config or {})}, wandb=wandb) as own:
        fitted = _Training(own, *options).go()
        if own.finished:
            own.say_finished()
        else:
            own.finish({"steps": steps, "seconds": fitted.seconds, **fitted.evaluation})
        return fitted


class _Training:
    """One call of `fit`."""

    def __init__(
        self,
        run,
        step,
        state,
        batches,
        steps,
        tag,
        inputs,
        evaluate,
        eval_every,
        stride,
        checkpoint_seconds,
        keep_best,
        patience,
        profile,
    ):
        self.run, self.state, self.steps, self.tag = run, state, steps, tag
        self.step = Profiler(step, profile, run.profile_dir(tag))
        self.batches = batches if callable(batches) else iter(batches)
        self.inputs, self.evaluate, self.eval_every, self.stride = inputs, evaluate, eval_every, stride
        self.checkpoint_seconds, self.keep_best, self.patience = checkpoint_seconds, keep_best, patience
        self.lowest, self.waited = math.inf, 0  # eval_loss at the best evaluation, and evaluations since
        self.number, self.evaluation, self.guard = 0, {}, LossGuard()
        self.spent, self.started = 0.0, time.monotonic()

    def go(self) -> Fitted:
        with Checkpoints(self.run.checkpoint_dir(self.tag)) as self.checkpoints:
            self._resume()
            with self.run.progress(self.steps, self.number, self.tag or "train") as self.progress:
                try:
                    self._train()
                finally:
                    self.step.end()
            if self.keep_best:
                self.state, _, best = self.checkpoints.restore(self.state, "best")
                self.evaluation = best["metrics"]
        return Fitted(self.state, self._seconds(), self.evaluation)

    def _train(self) -> None:
        if self.number == 0:
            self._log({})
        saved, agreed = time.monotonic(), hosts.Rounds()
        while self.number < self.steps and not self._lost_patience():
            metrics = self._advance()
            evaluated = self.number % self.eval_every == 0 or self.number == self.steps
            if evaluated:
                self.guard.check(self.checkpoints.latest_step())
                self._log({f"train_{name}": metrics[name] for name in TRAIN_METRICS if name in metrics})
                self._wait()
            overdue = time.monotonic() - saved > self.checkpoint_seconds
            stop, overdue = agreed(self.number, self.run.stop_requested, overdue)
            if stop:
                self._save(evaluated)
                self.checkpoints.wait()
                self.run.stop()
            if overdue or self.number == self.steps or (evaluated and self.keep_best):
                self._save(evaluated)
                saved = time.monotonic()

    def _wait(self) -> None:
        """Counts the evaluations since the best one."""
        loss = self.evaluation.get("eval_loss", math.inf)
        self.waited = 0 if loss < self.lowest else self.waited + 1
        self.lowest = min(self.lowest, loss)

    def _lost_patience(self) -> bool:
        """Whether the training ends before its last step; says so."""
        lost = self.patience is not None and self.waited >= self.patience
        if lost:
            say(
                f"{self.tag or 'The training'} ends at step {self.number} of {self.steps}: {self.waited} evaluations "
                f"in a row had no validation loss below {self.lowest:.4f}."
            )
        return lost

    def _advance(self) -> Mapping[str, Any]:
        """One call of the step."""
        before = self.number
        batch = self.batches(before) if callable(self.batches) else self._next()
        self.state, metrics = self.step(before, self.state, batch if self.inputs is None else self.inputs(batch))
        self.number = min((before // self.stride + 1) * self.stride, self.steps)
        self.guard.add(before, metrics)
        self._show(metrics)
        return metrics

    def _next(self) -> Batch:
        try:
            return next(self.batches)
        except StopIteration:
            raise ValueError(
                f"batches ended after {self.number} of {self.steps} steps; give an iterable that does not end earlier"
            ) from None

    def _show(self, metrics: Mapping[str, Any]) -> None:
        """Shows the metrics of the step before, so that nothing waits for a device that is still at work."""
        shown = getattr(self, "_previous", {})
        several = np.size(metrics.get("win_rate", ())) > 1  # one hypothesis wins everything
        self._previous = {name: metrics[name] for name in (("loss", "win_rate") if several else ("loss",))}
        self.progress.update(self.number, **shown)

    def _log(self, values: dict[str, Any]) -> None:
        """Evaluates the state and writes a log line."""
        if self.evaluate is not None:
            self.evaluation = dict(self.evaluate(self.state))
        if line := self.evaluation | values:
            self.run.log(self.number, line, tag=self.tag)
        shown = {name: self.evaluation.get(key) for name, key in (("loss", "eval_loss"), ("win_rate", "win_rate"))}
        if np.size(shown["win_rate"]) < 2:  # one hypothesis wins everything
            del shown["win_rate"]
        self.progress.update(self.number, **shown)

    def _save(self, evaluated: bool = False) -> None:
        self.guard.check(self.checkpoints.latest_step())
        evaluation = to_json(self.evaluation, "evaluation", non_finite="null")
        place = {"seconds": self._seconds(), "evaluation": evaluation, "waited": self.waited}
        place["lowest"] = self.lowest if math.isfinite(self.lowest) else None
        if hasattr(self.batches, "get_state"):
            place["batches"] = self.batches.get_state()
        metrics = self.evaluation if evaluated and self.keep_best else None
        last_good = self.checkpoints.latest_step()
        try:
            self.checkpoints.save(self.state, metrics=metrics, data=place, config=self.run.config)
        except NotFinite as error:
            first = self.guard.bad_gradient
            why = "" if first is None else f", after a gradient that was not finite at step {first}"
            raise FloatingPointError(f"{error}{why}; {describe_kept(last_good)}") from None
        self.guard.bad_gradient = None

    def _resume(self) -> None:
        if self.checkpoints.latest_step() is not None:
            self.state, place, _ = self.checkpoints.restore(self.state)
            self.number, self.spent = int(self.state.step), place["seconds"]
            if not hosts.same(self.number):
                raise RuntimeError(f"the processes read different checkpoints in {self.checkpoints.directory}")
            self.evaluation = place.get("evaluation") or {}
            lowest = place.get("lowest")
            self.lowest, self.waited = math.inf if lowest is None else lowest, place.get("waited", 0)
            self._place_batches(place)
        self.run.rewind(self.tag, self.number or None)

    def _place_batches(self, place: Mapping[str, Any]) -> None:
        if callable(self.batches) or self.number == self.steps:
            return
        if hasattr(self.batches, "set_state"):
            self.batches.set_state(place["batches"])
            return
        for _ in range(-(-self.number // self.stride)):  # an iterator without a state: skip the batches already used
            self._next()

    def _seconds(self) -> float:
        return self.spent + time.monotonic() - self.started
