"""`python -m experiments.markov.steps --out docs/theory/recorded.json`: records what each objective does step by step.

It trains three hypotheses on three chains over three symbols, once for each objective from the same start, and writes
the loss, the wins and the learned chains at every few steps. The page of docs on the theory shows the file.
"""

import dataclasses
import json
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.options import COUNT, Options, parse
from experiments.markov import theory
from experiments.markov.collapse import CollapseConfig
from experiments.markov.config import Config, ObjectiveName
from experiments.markov.training import EVALUATION, Problem, stream, to_numpy
from mcl_jax.command_line import errors_in_a_line
from mcl_jax.console import say
from mcl_jax.json_io import to_json

DIGITS = 4


@dataclasses.dataclass(frozen=True)
class StepsConfig(Options):
    """Records the training of three hypotheses on three chains, for each objective."""

    out: Path
    """JSON file to write."""
    objectives: tuple[ObjectiveName, ...] = ("wta", "relaxed", "annealed", "balanced")
    """Objectives to record."""
    seed: int = 0
    """Random seed of the base, the adapters and the sequences."""
    steps: int = field(default=120, metadata=COUNT)
    """Number of training steps."""
    every: int = field(default=5, metadata=COUNT)
    """Number of steps between two records."""
    sequences: int = field(default=1000, metadata=COUNT)
    """Number of fresh sequences, the same at every record, on which losses and wins are measured."""

    def __post_init__(self):
        self.check()

    def of(self, name: ObjectiveName) -> Config:
        """Returns the configuration of the Markov experiment with one of the objectives, as `collapse` has it."""
        return CollapseConfig(workdir=self.out.parent, steps=self.steps).with_seed(self.seed, name)


def record(config: StepsConfig, problem: Problem, name: ObjectiveName) -> list[dict[str, Any]]:
    """Trains under one objective; returns its states: step, loss (nats per token), wins [N, K], hypotheses [K, V, V].

    Args:
      config: what to record.
      problem: base, data and evaluation, which all objectives share.
      name: the objective.
    """
    run = config.of(name)
    loss, optimizer = run.objective.make(), run.training.optimizer()
    backward = run.objective.backward_of(loss, run.k, soft="all")
    train, state = problem.train_chunk(loss, optimizer, backward), problem.initial_state(run.k, optimizer, loss)
    states = []
    for step in [*range(0, config.steps, config.every), config.steps]:
        if step:
            state, _ = train(state, step)
        key = stream(config.seed, EVALUATION)
        found = to_numpy(problem.evaluate(state.params, state.adapters, key, config.sequences))
        learned = to_numpy(problem.transition_matrices(state.params, state.adapters))
        states.append({"step": step, "loss": found["eval_loss"], "wins": found["win_matrix"], "hypotheses": learned})
    return states


def rounded(value: Any) -> Any:
    """Returns the same JSON with numbers of a few digits, which is as fine as a drawing shows."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return round(value, DIGITS) if isinstance(value, float) else value


def main(config: StepsConfig) -> None:
    """Records all objectives and writes the file."""
    config.out.parent.mkdir(parents=True, exist_ok=True)
    first = config.of(config.objectives[0])
    problem, chains, length = Problem(first, config.seed), first.chains, first.data.seq_len
    objectives = {}
    for name in config.objectives:
        objectives[name] = record(config, problem, name)
        last = objectives[name][-1]
        say(f"{name}: loss {last['loss']:.4f} nats per token, wins {np.round(last['wins'].sum(0), 3)}")
    bounds = theory.bounds(chains, length, num_hypotheses=first.k)
    content = {"chains": chains, "length": length, "bounds": bounds, "objectives": objectives}
    config.out.write_text(json.dumps(rounded(to_json(content)), separators=(",", ":")) + "\n", encoding="utf-8")
    say(f"Wrote {config.out}.")


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse(StepsConfig))
