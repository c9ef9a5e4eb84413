"""`python -m experiments.markov.collapse --workdir DIR`: measures how often a hypothesis dies under each objective.

With three chains over three symbols, K=3 and several seeds, it reports for each objective the share of seeds in which a
hypothesis wins almost nothing at the end, and the share in which all chains are covered.
"""

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Any

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from experiments.common.figure_files import save
from experiments.common.options import COUNT, VOLATILE, Options, parse
from experiments.markov import theory
from experiments.markov.config import Config, ObjectiveName
from experiments.markov.training import FINAL, Problem, stream, to_numpy
from mcl_jax.command_line import attempt, errors_in_a_line
from mcl_jax.console import table
from mcl_jax.run import Run

THREE_CHAINS = Path(__file__).with_name("three_chains.json")
DEAD = 0.01  # share of wins in the final evaluation below which a hypothesis is dead


@dataclasses.dataclass(frozen=True)
class CollapseConfig(Options):
    """Measures the share of seeds with a dead hypothesis, for each objective."""

    workdir: Path = field(metadata=VOLATILE)
    """Run directory. The same command again resumes the run."""
    objectives: tuple[ObjectiveName, ...] = ("wta", "relaxed", "annealed", "balanced")
    """Objectives to compare."""
    seeds: int = field(default=5, metadata=COUNT)
    """Number of random seeds; the first is 0."""
    transitions: Path = THREE_CHAINS
    """JSON file with a list of row-stochastic matrices."""
    steps: int = field(default=301, metadata=COUNT)
    """Number of training steps."""
    batch_size: int = field(default=32, metadata=COUNT)
    """Number of sequences per step."""
    epsilon: float = 0.05
    """Share of the gradient that the losing hypotheses get together under the relaxed objective."""
    temperature: float = 1.0
    """Temperature τ(0) at which the annealed objective starts."""
    temperature_decay: float = 0.97
    """Factor ρ per step of the annealed temperature: τ(t) = τ(0) ρ^t."""
    learning_rate: float = 1e-3
    """Highest learning rate."""

    def __post_init__(self):
        self.check()

    def with_seed(self, seed: int, name: ObjectiveName) -> Config:
        """Returns the configuration of the Markov experiment with this objective and seed."""
        own = ("objectives", "seeds")  # the Markov experiment has all other options too
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in own}
        return Config.from_options(seed=(seed,), objective=name, **shared)


def final_state_of(config: Config) -> dict[str, Any]:
    """Trains one seed and evaluates it: win rate [K], total variation of each chain [N], loss and more."""
    seed, loss, optimizer = config.seed[0], config.objective.make(), config.training.optimizer()
    problem = Problem(config, seed)
    state = problem.initial_state(config.k, optimizer, loss)
    chunk = problem.train_chunk(loss, optimizer, config.objective.backward_of(loss, config.k, soft="all"))
    state, _ = chunk(state, config.training.steps)
    final = to_numpy(problem.evaluate(state.params, state.adapters, stream(seed, FINAL), 4000))
    learned = to_numpy(problem.transition_matrices(state.params, state.adapters))
    win_matrix = final["win_matrix"]
    return {
        "seed": seed,
        "objective": config.objective.name,
        "eval_loss": final["eval_loss"],
        "win_rate": win_matrix.sum(0),
        "win_matrix": win_matrix,
        "dead": bool((win_matrix.sum(0) < DEAD).any()),
        # Each chain has its own hypothesis, which wins most of its sequences.
        "covered": len(set(win_matrix.argmax(1))) == len(win_matrix),
        "purity": win_matrix.max(0).sum(),
        "total_variation": theory.match_chains(learned, config.chains).total_variation,
    }


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns shares and means over the seeds of one objective."""
    mean = lambda name: float(np.mean([run[name] for run in runs]))
    return {name: mean(name) for name in ("dead", "covered", "purity", "eval_loss")} | {"seeds": len(runs)}


def main(config: CollapseConfig) -> None:
    """Runs the whole study. Finished seeds are kept in metrics.jsonl, so the study resumes at the next one."""
    with Run(config.workdir, config, volatile=config.volatile) as run:
        if run.finished:
            run.say_finished()
        else:
            runs = [_one(run, config, name, seed) for name in config.objectives for seed in range(config.seeds)]
            by_objective = {name: [r for r in runs if r["objective"] == name] for name in config.objectives}
            summaries = {name: summarise(seeds) for name, seeds in by_objective.items()}
            run.finish({"objectives": summaries, "runs": runs})
            with attempt("figures/collapse.png"):
                draw(run, by_objective)
        summaries = run.results()["objectives"]
        columns = [
            "objective",
            "seeds with a dead hypothesis",
            "seeds covering all chains",
            "purity",
            "loss (nats per token)",
        ]
        rows = [
            [n, f"{s['dead']:.0%}", f"{s['covered']:.0%}", s["purity"], s["eval_loss"]] for n, s in summaries.items()
        ]
        table(f"Collapse over {config.seeds} seeds", columns, rows)


def _one(run: Run, config: CollapseConfig, name: ObjectiveName, seed: int) -> dict[str, Any]:
    if done := run.lines(f"{name}/seed{seed}"):
        return done[-1]["result"]
    if run.stop_requested:
        run.stop()
    result = final_state_of(config.with_seed(seed, name))
    run.log(config.steps, {"result": result}, tag=f"{name}/seed{seed}")
    print(f"{name:10} seed {seed}  win rate {np.round(result['win_rate'], 2)}  loss {float(result['eval_loss']):.4f}")
    jax.clear_caches()
    return result


def draw(run: Run, by_objective: dict[str, list[dict[str, Any]]]) -> None:
    """Draws figures/collapse.png: the sorted win rates of each seed, for each objective."""
    figure, grid = plt.subplots(
        1, len(by_objective), figsize=(3 * len(by_objective), 3), layout="constrained", sharey=True
    )
    for axes, (name, runs) in zip(np.atleast_1d(grid), by_objective.items(), strict=True):
        rates = np.array([sorted(r["win_rate"], reverse=True) for r in runs])
        bottom = np.zeros(len(runs))
        for column in rates.T:
            axes.bar(range(len(runs)), column, bottom=bottom)
            bottom += column
        axes.set(title=name, xlabel="seed", ylim=(0, 1), xticks=range(len(runs)))
    np.atleast_1d(grid)[0].set_ylabel("share of wins of each hypothesis")
    save(figure, run.figure_path("collapse.png"))


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse(CollapseConfig))
