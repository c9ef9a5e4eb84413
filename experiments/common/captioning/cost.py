"""Compares the cost of the tower, which runs once per batch whatever K is, with that of a train step, by K."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import mcl_jax as mcl
from experiments.common.captioning.config import Config
from experiments.common.task import Task
from mcl_jax import data
from mcl_jax.console import table

KS = (1, 2, 3, 5, 8)


def flops(compiled: Any) -> float:
    """Returns the floating-point operations of a program as XLA counts them: once for the body of a loop."""
    return compiled.cost_analysis()["flops"]


def costs(task: Task, ks: Sequence[int] = KS) -> dict[int, tuple[float, float]]:
    """Returns, by K, the floating-point operations of the tower and of the train step for one batch."""
    items = task.encode(task.records("train")[: task.config.training.batch_size])
    batch = next(data.train_batches(items.encoded, task.config.batches))
    tower = task.perception.lower([items.records[i] for i in batch["index"]]).compile()
    inputs, operations = task.inputs(items, batch), {}
    tokens = inputs["target_mask"].size
    head = 2 * tokens * task.module.unembedding(task.params).size  # operations of the output layer in one pass
    for K in ks:
        config = task.config.replace(num_hypotheses=max(K, 2), num_beams=None)
        task_k, method = dataclasses.replace(task, config=config), "mcl" if K > 1 else "mle_r"
        loss, steps = config.objective_of(method), config.for_epochs_of(1).training.steps
        optimizer = config.optimizer.make(steps)
        backward = config.objective.backward_of(loss, K)
        # With one chunk per hypothesis, XLA counts the output layer of one hypothesis; the others are added below.
        log_likelihood = task_k.log_likelihood_fn(method, chunk_size=tokens)
        step = mcl.make_train_step(log_likelihood, loss, optimizer, backward, assign=config.objective.assign)
        compiled = step.lower(task_k.initial_state(method, optimizer, loss), inputs).compile()
        passes = (2 if backward == "all" else 1) + config.chooses_first(
            backward
        )  # through the output layer, for each hypothesis that is not counted
        operations[K] = flops(tower), flops(compiled) + (K - 1) * passes * head
    return operations


def show(config: Config, operations: dict[int, tuple[float, float]]) -> None:
    """Prints the table."""
    rows = []
    for K, (tower, step) in operations.items():
        share, repeated = tower / (tower + step), K * tower / (K * tower + step)
        rows.append([K, f"{tower / 1e9:.2f}", f"{step / 1e9:.2f}", f"{share:.0%}", f"{repeated:.0%}"])
    columns = ["K", "tower (GFLOP)", "step (GFLOP)", "share of the tower", "share if the tower ran K times"]
    table(f"One batch of {config.training.batch_size} examples", columns, rows)
