"""One training: a method, from its last checkpoint if it has one."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import mcl_jax as mcl
from experiments.common.config import Config, Method
from experiments.common.task import Items, Likelihoods, Task
from mcl_jax import data, metrics, objectives
from mcl_jax.run import Run


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
    loss, optimizer = config.objective_of(method), config.optimizer.make(config.training.steps)
    step = make_step(config, method, task.log_likelihood_fn(method, train=True), loss, optimizer)
    held_out = task.encode(task.records("validation", config.evaluation.eval_items))
    fitted = mcl.fit(
        step,
        task.initial_state(method, optimizer, loss),
        batches,
        steps=config.training.steps,
        run=run,
        tag=method,
        inputs=lambda batch: task.inputs(items, batch),
        evaluate=lambda state: summary(evaluate(state, held_out), task),
        eval_every=config.evaluation.eval_every,
    )
    return fitted.state, fitted.seconds


def make_step(config: Config, method: Method, log_likelihood: Any, loss: objectives.Objective, optimizer: Any) -> Any:
    """The train step on --devices devices."""
    backward, training = config.objective.backward_of(loss, config.hypotheses_of(method)), config.training
    arguments = log_likelihood, loss, optimizer, backward
    if training.devices == 1:
        return mcl.make_train_step(*arguments, accumulate=training.accumulate)
    devices = jax.local_devices()[: training.devices]
    return mcl.parallel.pmap_step(*arguments, accumulate=training.accumulate, devices=devices)


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
