"""The training of one method."""

from collections.abc import Callable
from typing import Any

import jax

import mcl_jax as mcl
from experiments.common.config import COMPETING, Method
from experiments.common.held_out import Likelihoods, summary
from experiments.common.task import Items, Task
from mcl_jax import data, hosts, objectives
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
    task = task.learned(method)
    items = task.encode(task.records("train"))
    encoded = items.encoded.one_target_each() if task.config.training.each_answer else items.encoded
    batches = data.train_batches(encoded, task.config.batches, pack=task.config.training.rows_multiple, **hosts.share())
    config = task.config.for_epochs_of(batches.batches_per_epoch)
    loss, optimizer = config.objective_of(method), config.optimizer_of(method).make(config.training.steps)
    step = make_step(task, method, loss, optimizer)
    choosing = config.choosing_of(method)
    num_examples = None if choosing.refresh is None else encoded.num_examples

    def inputs(batch):
        numbers = {} if choosing.refresh is None else {"example": batch["example"]}
        return choosing.inputs(task.inputs(items, batch), config.batches.lengths) | numbers

    held_out = task.encode(task.records("validation", config.evaluation.eval_items))
    fitted = mcl.fit(
        step,
        task.initial_state(method, optimizer, loss, num_examples),
        batches,
        steps=config.training.steps,
        run=run,
        tag=method,
        inputs=inputs,
        evaluate=lambda state: summary(evaluate(state, held_out), task),
        eval_every=config.evaluation.every(config.training.steps),
        keep_best=config.training.keep == "best",
        patience=config.training.patience,
        profile=config.tracking.traced,
    )
    return fitted.state, fitted.seconds


def costs(state: mcl.TrainState, seconds: float) -> dict[str, float]:
    """Returns the seconds of the training and the number of trained parameters, for the results."""
    return {"seconds": seconds, "trained_parameters": sum(leaf.size for leaf in jax.tree.leaves(state.adapters))}


def make_step(task: Task, method: Method, loss: objectives.Objective, optimizer: Any) -> Any:
    """Makes the train step: by pmap if --mesh only divides the batch of one process, and otherwise on the mesh."""
    config, training, mesh = task.config, task.config.training, task.config.training.device_mesh()
    arguments = (task.log_likelihood_fn(method, train=True), loss, optimizer, config.backward_of(method))
    choosing = config.choosing_of(method)
    assign = config.objective.assign if method in COMPETING else "noisy"  # where nothing is chosen, one pass is enough
    options = {"assign": assign, "accumulate": training.accumulate}
    options |= choosing.options(task.log_likelihood_fn(method, train=True, dtype=choosing.choose_dtype))
    only_data = training.axes.model == 1 and training.batch_size >= training.axes.data
    by_pmap = only_data and not training.fsdp and not hosts.several()
    if mesh is None or not by_pmap:
        return mcl.make_train_step(*arguments, **options, mesh=mesh)
    return mcl.parallel.pmap_step(*arguments, **options, devices=list(mesh.devices.flat))
