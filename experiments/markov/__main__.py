"""`python -m experiments.markov --workdir DIR`: trains one and K hypotheses and compares both with the exact theory."""

import dataclasses
from typing import Any

import jax

import mcl_jax as mcl
from experiments.common.options import parse
from experiments.markov import figures, report, theory
from experiments.markov.config import Config
from experiments.markov.training import EVALUATION, FINAL, Problem, stream, to_numpy
from mcl_jax.command_line import attempt, errors_in_a_line
from mcl_jax.console import say, table
from mcl_jax.run import Run

CHECKPOINT_SECONDS = 5.0


def train(run: Run, config: Config, seed: int, method: str) -> dict[str, Any]:
    """Trains a method, from its last checkpoint if it has one; returns final evaluation, matrices and seconds."""
    name, num_hypotheses = ("mle", 1) if method == "mle" else (config.objective.name, config.k)
    problem, loss = Problem(config, seed, shared=method == "mcl"), config.objective.make(name)
    optimizer = config.training.optimizer()
    objective = config.objective if method == "mcl" else dataclasses.replace(config.objective, backward=None)
    backward = objective.backward_of(loss, num_hypotheses, soft="all")

    def on_fresh_sequences(state: mcl.TrainState, key: jax.Array, number: int) -> dict[str, Any]:
        return to_numpy(problem.evaluate(state.params, state.adapters, key, number))

    def evaluate(state: mcl.TrainState) -> dict[str, Any]:
        key = jax.random.fold_in(stream(seed, EVALUATION), state.step)
        evaluation = on_fresh_sequences(state, key, config.evaluation.eval_sequences)
        return {"eval_loss": evaluation["eval_loss"], "win_rate": evaluation["win_matrix"].sum(0)}

    every, steps = config.evaluation.eval_every, config.training.steps
    fitted = mcl.fit(
        problem.train_chunk(loss, optimizer, backward),
        problem.initial_state(num_hypotheses, optimizer, loss),
        lambda step: min(step - step % every + every, steps),  # the step at which the chunk stops
        steps=steps,
        run=run,
        tag=f"seed{seed}/{method}",
        evaluate=evaluate,
        eval_every=every,
        stride=every,
        checkpoint_seconds=CHECKPOINT_SECONDS,
        profile=config.tracking.traced,
    )
    key = jax.random.fold_in(stream(seed, FINAL), 0)
    final = on_fresh_sequences(fitted.state, key, config.evaluation.final_sequences)
    matrices = to_numpy(problem.transition_matrices(fitted.state.params, fitted.state.adapters))
    return final | {"transition_matrices": matrices, "seconds": fitted.seconds}


def main(config: Config) -> None:
    """Runs the whole experiment."""
    chains = config.chains
    config.objective.make().check(config.k)
    settings = dataclasses.asdict(config) | {"chains": chains, "k": config.k}
    with Run(config.workdir, settings, volatile=config.volatile, wandb=config.tracking.wandb) as run:
        if run.finished:
            run.say_finished()
        else:
            bounds = theory.bounds(chains, config.data.seq_len, num_hypotheses=config.k)
            trained = {method: [train(run, config, seed, method) for seed in config.seed] for method in ("mle", "mcl")}
            results = report.summarise(config, bounds, trained)
            run.finish(results)
            with attempt("figures"):
                figures.draw(run, config, run.results())
        results = run.results()
        table(*report.table(results))
        for line in report.verdict(results):
            say(*line)
        say(f"Figures and results.json are in {config.workdir}.")


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse(Config))
