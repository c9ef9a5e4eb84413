"""One training: a method, from its last checkpoint if it has one."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import mcl_jax as mcl
from experiments.common.config import Config, Method
from experiments.common.task import Items, Likelihoods, Task
from mcl_jax import data, metrics, objectives
from mcl_jax.checkpoint import Checkpoints
from mcl_jax.run import LossGuard, Run

CHECKPOINT_SECONDS = 60.0


def train(
    run: Run, task: Task, method: Method, evaluate: Callable[[mcl.TrainState, Items], Likelihoods]
) -> tuple[mcl.TrainState, float]:
    """The state after the last step, and the seconds that it took, with evaluations and compiling.

    Args:
      evaluate: the `evaluator` of the method.
    """
    items = task.encode(task.records("train"))
    batches = data.train_batches(items.encoded, task.config.batches)
    config = task.config.for_epochs_of(batches.batches_per_epoch)
    loss, optimizer = config.loss(method), config.optimizer()
    step = make_step(config, method, task.log_likelihood_fn(method, train=True), loss, optimizer)
    state = task.initial_state(method, optimizer)
    held_out = task.encode(task.records("validation", config.eval_items))
    spent, started, guard = 0.0, time.monotonic(), LossGuard()

    def log(values: dict[str, Any]) -> None:
        found = summary(evaluate(state, held_out), task)
        run.log(int(state.step), found | values, tag=method)
        shown = {"win_rate": found["win_rate"]} if config.hypotheses_of(method) > 1 else {}
        progress.update(int(state.step), loss=found["eval_loss"], **shown)

    with Checkpoints(run.checkpoint_dir(method)) as checkpoints:

        def save() -> None:
            place = {"batches": batches.get_state(), "seconds": spent + time.monotonic() - started}
            checkpoints.save(state, data=place, config=run.config)

        if checkpoints.latest_step() is not None:
            state, place, _ = checkpoints.restore(state)
            batches.set_state(place["batches"])
            spent = place["seconds"]
        run.rewind(method, int(state.step) if int(state.step) else None)
        saved = time.monotonic()
        with run.progress(config.steps, int(state.step), method) as progress:
            if int(state.step) == 0:
                log({})
            while (number := int(state.step)) < config.steps:
                state, found = step(state, task.inputs(items, next(batches)))
                guard.add(number, found)
                last = number + 1 == config.steps
                if (number + 1) % config.eval_every == 0 or last:
                    guard.check(checkpoints.latest_step())
                    log({f"train_{name}": found[name] for name in ("loss", "win_rate", "weight_entropy")})
                else:
                    progress.update(number + 1, loss=found["loss"], win_rate=found["win_rate"])
                if run.stop_requested:
                    save()
                    checkpoints.wait()
                    run.stop()
                if last or time.monotonic() - saved > CHECKPOINT_SECONDS:
                    save()
                    saved = time.monotonic()
    return state, spent + time.monotonic() - started


def make_step(config: Config, method: Method, log_likelihood: Any, loss: objectives.Objective, optimizer: Any) -> Any:
    """The train step on `config.devices` devices."""
    arguments = log_likelihood, loss, optimizer, config.backward_of(loss, config.hypotheses_of(method))
    if config.devices == 1:
        return mcl.make_train_step(*arguments, accumulate=config.accumulate)
    devices = jax.local_devices()[: config.devices]
    return mcl.parallel.pmap_step(*arguments, accumulate=config.accumulate, devices=devices)


def summary(likelihoods: Likelihoods, task: Task) -> dict[str, Any]:
    """Loss, win rates and, of answers whose mode is known, the win matrix [mode, k] and, of several modes, purity and
    mutual information."""
    num_hypotheses, known = len(likelihoods.log_p), likelihoods.mode != data.NO_MODE
    modes = [task.corpus.modes[mode] for mode in likelihoods.mode[known]]
    wins = np.bincount(likelihoods.winner, minlength=num_hypotheses)
    found = {"eval_loss": likelihoods.loss, "win_rate": wins / wins.sum()}
    if modes and num_hypotheses > 1:
        winner = likelihoods.winner[known].tolist()
        wins = metrics.win_matrix(winner, modes, num_hypotheses)
        found |= {"win_matrix": wins.counts, "modes": wins.modes}
        if len(wins.modes) > 1:  # of one mode each hypothesis is pure, whatever it wins
            found["purity"] = metrics.purity(winner, modes, num_hypotheses).mean
            found["mutual_information"] = metrics.normalized_mutual_information(winner, modes).mean
    if modes:
        losses, of = likelihoods.losses[known], np.array(modes)
        found["loss_of_mode"] = {name: float(losses[of == name].mean()) for name in sorted(set(modes))}
    return found


def gap(likelihoods: Likelihoods, mcl_likelihoods: Likelihoods) -> dict[str, Any]:
    """By how much the loss of a method lies above that of LoRA-MCL on the same answers: mean, and its 95 % interval.

    `loss_above_mcl` in nats a token, as the losses; `answer_loss_above_mcl` in nats an answer, of which K modes that
    one model cannot tell apart cost it log K. The interval resamples sources; of a single one there is none.
    """
    above = likelihoods.losses - mcl_likelihoods.losses
    of_token, of_answer = (
        metrics.Bootstrap().mean(likelihoods.of_records(values)) for values in (above, above * likelihoods.tokens)
    )
    with_ends = lambda score: {"mean": score.mean, "low": score.low, "high": score.high}
    return {
        name: with_ends(score) if np.isfinite(score.low) else score.mean
        for name, score in (("loss_above_mcl", of_token), ("answer_loss_above_mcl", of_answer))
    }
