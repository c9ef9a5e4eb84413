"""`python -m experiments.translation.purity --workdir DIR`: how fast hypotheses specialise under each objective.

Purity of held-out answers against steps, for several objectives and seeds, with every other option of the experiment.
Each training has a run directory of its own in DIR, so a stopped study goes on where it was.
"""

import dataclasses
from typing import Annotated, Any

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tyro

from experiments.language_model.config import ObjectiveName
from experiments.language_model.task import Task, evaluator
from experiments.language_model.training import train
from experiments.translation.config import Config
from experiments.translation.task import load
from mcl_jax.console import table
from mcl_jax.run import Run

COLOURS = {"balanced": "tab:blue", "relaxed": "tab:orange", "annealed": "tab:green", "wta": "0.5", "mixture": "tab:red"}


@dataclasses.dataclass(frozen=True)
class PurityConfig:
    """Purity against steps for several objectives and seeds; `--objective`, `--seed` and `--methods` play no part."""

    of_run: Annotated[Config, tyro.conf.arg(name="")]
    objectives: tuple[ObjectiveName, ...] = ("balanced", "relaxed", "annealed")
    seeds: tuple[int, ...] = (0, 1, 2)

    def run_of(self, name: ObjectiveName, seed: int) -> Config:
        """The training of one objective and seed."""
        workdir = self.of_run.workdir / f"{name}-seed{seed}"
        return dataclasses.replace(self.of_run, workdir=workdir, objective=name, seed=seed, methods=("mcl",))


def curve(task: Task) -> dict[str, Any]:
    """Trains, or reads what was trained: steps, purity, held-out loss and the smallest win rate at each."""
    with Run(task.config.workdir, dataclasses.asdict(task.config), volatile=task.config.VOLATILE) as run:
        if not run.finished:
            train(run, task, "mcl", evaluator(task, "mcl"))
            lines = run.lines("mcl")
            run.finish({name: [line[name] for line in lines] for name in ("step", "purity", "eval_loss", "win_rate")})
        return run.results()


def main(config: PurityConfig) -> None:
    """The whole study."""
    task = load(config.of_run)
    if not task.corpus.modes:
        raise ValueError("--data has no `mode`s, and without them there is no purity")
    curves = {}
    for seed in config.seeds:
        for name in config.objectives:
            curves[name, seed] = curve(dataclasses.replace(task, config=config.run_of(name, seed)))
            jax.clear_caches()
            draw(config, curves)
    rows = [
        [name, seed, f"{found['purity'][-1]:.3f}", first(found), f"{found['eval_loss'][-1]:.3f}", found["win_rate"][-1]]
        for (name, seed), found in sorted(curves.items())
    ]
    columns = ["objective", "seed", "purity", "steps to 0.98", "held-out loss", "win rate"]
    table(f"Specialisation after {config.of_run.steps} steps", columns, rows)
    print(f"The figure is {figure_path(config)}.")


def first(found: dict[str, Any], threshold: float = 0.98) -> str:
    """The first evaluated step of a purity of at least `threshold`."""
    reached = [step for step, purity in zip(found["step"], found["purity"], strict=True) if purity >= threshold]
    return str(reached[0]) if reached else "not reached"


def figure_path(config: PurityConfig):
    """DIR/purity.png."""
    return config.of_run.workdir / "purity.png"


def draw(config: PurityConfig, curves: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Purity and held-out loss against steps: a thin line for each seed, a thick one for their mean."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name in config.objectives:
        of_name = [found for (other, _), found in curves.items() if other == name]
        for axes, key in ((left, "purity"), (right, "eval_loss")):
            for found in of_name:
                axes.plot(found["step"], found[key], color=COLOURS[name], alpha=0.35, linewidth=1)
            if of_name:
                mean = np.mean([found[key] for found in of_name], axis=0)
                axes.plot(of_name[0]["step"], mean, color=COLOURS[name], linewidth=2, label=name)
    left.axhline(0.98, color="0.5", linestyle=":")
    left.set(xlabel="steps", ylabel="purity on held-out answers", ylim=(0.45, 1.02))
    right.set(xlabel="steps", ylabel="held-out WTA loss, nats a token")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    figure.savefig(figure_path(config), dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    try:
        main(tyro.cli(PurityConfig, description=PurityConfig.__doc__))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
