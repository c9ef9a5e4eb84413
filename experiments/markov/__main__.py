"""`python -m experiments.markov --workdir DIR`: train K=1 and K hypotheses, and compare them with the exact theory."""

import dataclasses
import time
from typing import Any

import jax
import tyro

from experiments.markov import figures, report, theory
from experiments.markov.config import Config, objective
from experiments.markov.training import EVALUATION, FINAL, Problem, stream, to_numpy
from mcl_jax.checkpoint import Checkpoints
from mcl_jax.command_line import attempt, errors_in_a_line
from mcl_jax.console import say, table
from mcl_jax.run import Run, check_finite

# Fields that change where and how fast a run goes, not what it finds.
VOLATILE = ("workdir", "devices")
CHECKPOINT_SECONDS = 5.0


def train(run: Run, config: Config, seed: int, method: str) -> dict[str, Any]:
    """One training, from its last checkpoint if it has one: final evaluation, matrices and seconds."""
    name, num_hypotheses = ("mle", 1) if method == "mle" else (config.objective_name, config.k)
    problem, loss, optimizer = Problem(config, seed), objective(config, name), config.optimizer()
    exact = "winner" if loss.is_hard(num_hypotheses) else "all"
    backward = config.backward if config.backward and method == "mcl" else exact
    state = problem.initial_state(num_hypotheses, optimizer)
    chunk = problem.train_chunk(loss, optimizer, backward)
    tag, spent, started = f"seed{seed}/{method}", 0.0, time.monotonic()

    def evaluate(stream_index: int, step: int, num_sequences: int) -> dict[str, Any]:
        key = jax.random.fold_in(stream(seed, stream_index), step)
        return to_numpy(problem.evaluate(state.params, state.adapters, key, num_sequences))

    def log(metrics: dict[str, Any]) -> None:
        evaluation = evaluate(EVALUATION, int(state.step), config.eval_sequences)
        win_rate = evaluation["win_matrix"].sum(0)
        values = {"eval_loss": evaluation["eval_loss"], "win_rate": win_rate}
        values |= {f"train_{key}": metrics[key] for key in ("loss", "win_rate", "weight_entropy") if key in metrics}
        run.log(int(state.step), values, tag=tag)
        progress.update(int(state.step), loss=evaluation["eval_loss"], win_rate=win_rate)

    with Checkpoints(run.checkpoint_dir(tag)) as checkpoints:

        def save() -> None:
            checkpoints.save(state, data={"seconds": spent + time.monotonic() - started}, config=run.config)

        if checkpoints.latest_step() is not None:
            state, data, _ = checkpoints.restore(state)
            spent = data["seconds"]
        run.rewind(tag, int(state.step) if int(state.step) else None)
        saved = time.monotonic()
        with run.progress(config.steps, int(state.step), tag) as progress:
            if int(state.step) == 0:
                log({})
            while (step := int(state.step)) < config.steps:
                state, metrics = chunk(state, min(step - step % config.eval_every + config.eval_every, config.steps))
                if (bad := int(metrics["first_bad_step"])) >= 0:
                    check_finite([bad], [metrics["first_bad"]], checkpoints.latest_step())
                log(metrics)
                if run.stop_requested:
                    save()
                    checkpoints.wait()
                    run.stop()
                if time.monotonic() - saved > CHECKPOINT_SECONDS or int(state.step) == config.steps:
                    save()
                    saved = time.monotonic()
    final = evaluate(FINAL, 0, config.final_sequences)
    matrices = to_numpy(problem.transition_matrices(state.params, state.adapters))
    return final | {"transition_matrices": matrices, "seconds": spent + time.monotonic() - started}


def main(config: Config) -> None:
    """The whole experiment."""
    chains = config.chains
    objective(config, config.objective_name).check(config.k)
    settings = dataclasses.asdict(config) | {"chains": chains, "k": config.k, "objective": config.objective_name}
    with Run(config.workdir, settings, volatile=VOLATILE) as run:
        if run.finished:
            run.say_finished()
        else:
            bounds = theory.bounds(chains, config.seq_len, num_hypotheses=config.k)
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
        main(tyro.cli(Config, description=Config.__doc__))
