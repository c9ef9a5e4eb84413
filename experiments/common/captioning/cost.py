"""What the tower costs beside a train step, against K: it is run once a batch, outside of the hypotheses."""

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
    """Floating-point operations of a compiled program, as XLA counts them: a loop's body once (no scanned layers)."""
    return compiled.cost_analysis()["flops"]


def costs(task: Task, ks: Sequence[int] = KS) -> dict[int, tuple[float, float]]:
    """(operations of the tower, of the train step behind it) for a batch, by K."""
    items = task.encode(task.records("train")[: task.config.training.batch_size])
    batch = next(data.train_batches(items.encoded, task.config.batches))
    tower = task.perception.lower([items.records[i] for i in batch["index"]]).compile()
    inputs, found = task.inputs(items, batch), {}
    tokens = inputs["target_mask"].size
    head = 2 * tokens * task.module.unembedding(task.params).size  # operations of the output layer in one pass
    for K in ks:
        config = task.config.replace(num_hypotheses=max(K, 2), num_beams=None)
        of_k, method = dataclasses.replace(task, config=config), "mcl" if K > 1 else "mle_r"
        loss, steps = config.objective_of(method), config.for_epochs_of(1).training.steps
        optimizer = config.optimizer.make(steps)
        backward = config.objective.backward_of(loss, K)
        log_likelihood = of_k.log_likelihood_fn(method, chunk_size=tokens)  # a chunk a hypothesis: one of K is counted
        step = mcl.make_train_step(log_likelihood, loss, optimizer, backward)
        compiled = step.lower(of_k.initial_state(method, optimizer, loss), inputs).compile()
        passes = 2 if backward == "all" else 1  # through the output layer, of a hypothesis that is not counted
        found[K] = flops(tower), flops(compiled) + (K - 1) * passes * head
    return found


def show(config: Config, found: dict[int, tuple[float, float]]) -> None:
    """The table."""
    rows = []
    for K, (tower, step) in found.items():
        share, repeated = tower / (tower + step), K * tower / (K * tower + step)
        rows.append([K, f"{tower / 1e9:.2f}", f"{step / 1e9:.2f}", f"{share:.0%}", f"{repeated:.0%}"])
    columns = ["K", "tower, GFLOP", "step, GFLOP", "tower's share", "if it were run K times"]
    table(f"A batch of {config.training.batch_size}", columns, rows)
