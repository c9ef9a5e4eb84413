"""`python -m experiments.markov.collapse --workdir DIR`: how often does a hypothesis die, and what keeps it alive?

Three chains over three symbols, K=3, several seeds, for each objective: the share of seeds in which a hypothesis wins
(almost) nothing at the end, and in which all chains are covered.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tyro

from experiments.common.figure_files import save
from experiments.markov import theory
from experiments.markov.config import Config, ObjectiveName, objective
from experiments.markov.training import FINAL, Problem, stream, to_numpy
from mcl_jax.command_line import attempt, errors_in_a_line
from mcl_jax.console import table
from mcl_jax.run import Run

THREE_CHAINS = Path(__file__).with_name("three_chains.json")
DEAD = 0.01  # a hypothesis that wins less than this share of the final evaluation is dead


@dataclasses.dataclass(frozen=True)
class CollapseConfig:
    """Share of seeds with a dead hypothesis, for each objective."""

    workdir: Path
    objectives: tuple[ObjectiveName, ...] = ("wta", "relaxed", "annealed", "balanced")
    seeds: int = 5
    transitions: Path = THREE_CHAINS
    steps: int = 301
    batch_size: int = 32
    epsilon: float = 0.05
    temperature: float = 1.0
    temperature_decay: float = 0.97
    learning_rate: float = 1e-3

    def of_seed(self, seed: int, name: ObjectiveName) -> Config:
        """The run of the Markov experiment with this objective and seed."""
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in OWN_FIELDS}
        return Config(seed=(seed,), objective=name, **shared)


OWN_FIELDS = ("objectives", "seeds")


def final_state_of(config: Config) -> dict[str, Any]:
    """Trains one seed and evaluates it: win rate [K], total variation of each chain [N], loss."""
    seed, loss, optimizer = config.seed[0], objective(config, config.objective_name), config.optimizer()
    problem = Problem(config, seed)
    state = problem.initial_state(config.k, optimizer, loss)
    chunk = problem.train_chunk(loss, optimizer, "winner" if loss.is_hard(config.k) else "all")
    state, _ = chunk(state, config.steps)
    final = to_numpy(problem.evaluate(state.params, state.adapters, stream(seed, FINAL), 4000))
    learned = to_numpy(problem.transition_matrices(state.params, state.adapters))
    win_matrix = final["win_matrix"]
    return {
        "seed": seed,
        "objective": config.objective_name,
        "eval_loss": final["eval_loss"],
        "win_rate": win_matrix.sum(0),
        "win_matrix": win_matrix,
        "dead": bool((win_matrix.sum(0) < DEAD).any()),
        # Each chain has a hypothesis of its own that wins most of its sequences.
        "covered": len(set(win_matrix.argmax(1))) == len(win_matrix),
        "purity": win_matrix.max(0).sum(),
        "total_variation": theory.match_chains(learned, config.chains).total_variation,
    }


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares and means over the seeds of one objective."""
    mean = lambda name: float(np.mean([run[name] for run in runs]))
    return {name: mean(name) for name in ("dead", "covered", "purity", "eval_loss")} | {"seeds": len(runs)}


def main(config: CollapseConfig) -> None:
    """The whole study. Finished runs are kept in metrics.jsonl, so that it resumes between them."""
    with Run(config.workdir, config, volatile=("workdir",)) as run:
        if run.finished:
            run.say_finished()
        else:
            runs = [_one(run, config, name, seed) for name in config.objectives for seed in range(config.seeds)]
            by_objective = {name: [r for r in runs if r["objective"] == name] for name in config.objectives}
            summaries = {name: summarise(of_name) for name, of_name in by_objective.items()}
            run.finish({"objectives": summaries, "runs": runs})
            with attempt("figures/collapse.png"):
                draw(run, by_objective)
        summaries = run.results()["objectives"]
        columns = [
            "objective",
            "seeds with a dead hypothesis",
            "seeds covering all chains",
            "purity",
            "loss (nats/token)",
        ]
        rows = [
            [n, f"{s['dead']:.0%}", f"{s['covered']:.0%}", s["purity"], s["eval_loss"]] for n, s in summaries.items()
        ]
        table(f"Collapse, {config.seeds} seeds", columns, rows)


def _one(run: Run, config: CollapseConfig, name: ObjectiveName, seed: int) -> dict[str, Any]:
    if done := run.lines(f"{name}/seed{seed}"):
        return done[-1]["result"]
    if run.stop_requested:
        run.stop()
    result = final_state_of(config.of_seed(seed, name))
    run.log(config.steps, {"result": result}, tag=f"{name}/seed{seed}")
    print(f"{name:10} seed {seed}  win rate {np.round(result['win_rate'], 2)}  loss {float(result['eval_loss']):.4f}")
    jax.clear_caches()
    return result


def draw(run: Run, by_objective: dict[str, list[dict[str, Any]]]) -> None:
    """figures/collapse.png: the win rates of each seed, sorted, for each objective."""
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
        main(tyro.cli(CollapseConfig, description=CollapseConfig.__doc__))
