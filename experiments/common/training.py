"""The training of one method, and the numbers of an evaluation."""

from collections.abc import Callable
from typing import Any

import numpy as np

import mcl_jax as mcl
from experiments.common.config import Config, Method
from experiments.common.task import Items, Likelihoods, Task
from mcl_jax import data, hosts, metrics, objectives
from mcl_jax.run import Run


def train(
    run: Run, task: Task, method: Method, evaluate: Callable[[mcl.TrainState, Items], Likelihoods]
) -> tuple[mcl.TrainState, float]:
    """Trains a method, from its last checkpoint if it has one.

    Args:
      run: the run.
      task: the task.
      method: the method.
      evaluate: the `evaluator` of the method.
    Returns:
      The state after the last step, and the seconds that it took, with evaluations and compilation.
    """
    items = task.encode(task.records("train"))
    batches = data.train_batches(items.encoded, task.config.batches, **hosts.share())
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
    """Makes the train step: by pmap if --mesh only divides the batch of one process, and otherwise on the mesh."""
    backward, training = config.objective.backward_of(loss, config.hypotheses_of(method)), config.training
    arguments, mesh = (log_likelihood, loss, optimizer, backward), training.device_mesh()
    only_data = training.axes.model == 1 and training.batch_size >= training.axes.data
    by_pmap = only_data and not training.fsdp and not hosts.several()
    if mesh is None or not by_pmap:
        return mcl.make_train_step(*arguments, accumulate=training.accumulate, mesh=mesh)
    return mcl.parallel.pmap_step(*arguments, accumulate=training.accumulate, devices=list(mesh.devices.flat))


def summary(likelihoods: Likelihoods, task: Task) -> dict[str, Any]:
    """Returns loss and win rates, and more if modes are known.

    Known modes give the loss of each mode and, for several hypotheses, the win matrix [mode, k]. If there are several
    modes, purity and mutual information are added.
    """
    num_hypotheses, known = len(likelihoods.log_p), likelihoods.mode != data.NO_MODE
    modes = [task.corpus.modes[mode] for mode in likelihoods.mode[known]]
    wins = np.bincount(likelihoods.winner, minlength=num_hypotheses)
    scores = {"eval_loss": likelihoods.loss, "win_rate": wins / wins.sum()}
    if modes and num_hypotheses > 1:
        winner = likelihoods.winner[known].tolist()
        wins = metrics.win_matrix(winner, modes, num_hypotheses)
        scores |= {"win_matrix": wins.counts, "modes": wins.modes}
        if len(wins.modes) > 1:  # with one mode, each hypothesis is pure whatever it wins
            scores["purity"] = metrics.purity(winner, modes, num_hypotheses).mean
            scores["mutual_information"] = metrics.normalized_mutual_information(winner, modes).mean
    if modes:
        losses, mode = likelihoods.losses[known], np.array(modes)
        scores["loss_of_mode"] = {name: float(losses[mode == name].mean()) for name in sorted(set(modes))}
    return scores


def gap(likelihoods: Likelihoods, mcl_likelihoods: Likelihoods) -> dict[str, Any]:
    """Returns how much higher the loss of a method is than that of LoRA-MCL on the same answers.

    `loss_above_mcl` is in nats per token, as the losses are, and `answer_loss_above_mcl` in nats per answer: K modes
    that one model cannot tell apart cost it log K of these. Each is a mean with its 95 % interval, which resamples
    sources. With a single source there is no interval.
    """
    above = likelihoods.losses - mcl_likelihoods.losses
    per_token, per_answer = (
        metrics.Bootstrap().mean(likelihoods.mean_per_record(values)) for values in (above, above * likelihoods.tokens)
    )
    with_ends = lambda score: {"mean": score.mean, "low": score.low, "high": score.high}
    return {
        name: with_ends(score) if np.isfinite(score.low) else score.mean
        for name, score in (("loss_above_mcl", per_token), ("answer_loss_above_mcl", per_answer))
    }
