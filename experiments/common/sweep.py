"""Measures the effect of an option, such as the number of hypotheses: trains LoRA-MCL once per value and seed.

    k            K from 1 to 7: loss inside the theoretical band [MLE − log K, MLE]
    epsilon      ε of the relaxed objective, from 0 (plain winner-takes-all)
    rank         rank r of the adapters, with the same α/r
    objectives   plain, relaxed, annealed and balanced winner-takes-all: purity, and hypotheses that never win
    shared-rank  rank that all hypotheses share, of r·K in all: from 0 to r·K, which is LoRA-MLE
    own-rate     with --shared-rank: how much faster the parts of one hypothesis learn
    own-after    with --shared-rank: the step from which the parts of one hypothesis learn
    shared-after with --shared-rank: the step from which the shared part learns

Each training has its own run directory inside DIR, so the same command resumes a stopped sweep.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from experiments.common.config import Config
from experiments.common.figure_files import save
from experiments.common.groups import ObjectiveName
from experiments.common.held_out import evaluator, summary
from experiments.common.options import C, Presets, parse_both
from experiments.common.task import Task
from experiments.common.training import train
from mcl_jax import hosts, objectives
from mcl_jax.command_line import attempt
from mcl_jax.console import say, table
from mcl_jax.run import Run

Kind = Literal["k", "epsilon", "rank", "objectives", "shared-rank", "own-rate", "own-after", "shared-after"]
LABELS = {  # of the horizontal axis
    "k": "K",
    "epsilon": "ε",
    "rank": "rank r",
    "objectives": "",
    "shared-rank": "rank that all hypotheses share",
    "own-rate": "learning rate of own parts, relative to the shared part",
    "own-after": "step from which own parts learn",
    "shared-after": "step from which the shared part learns",
}
DEAD = 0.01  # share of the wins below which a hypothesis counts as dead


@dataclasses.dataclass(frozen=True)
class Options:
    """The values to compare."""

    kind: Kind = "k"
    """Option that varies.
    k: the number of hypotheses.
    epsilon: ε of the relaxed objective.
    rank: the rank of the adapters.
    objectives: the objective.
    shared-rank: the rank that all hypotheses share, with the same rank in all.
    own-rate, own-after, shared-after: the options of these names, with --shared-rank."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Random seeds; each value is trained once per seed."""
    hypotheses: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7)
    """Numbers of hypotheses for --kind k; 1 is LoRA-MLE."""
    epsilons: tuple[float, ...] = (0.0, 0.01, 0.05, 0.1, 0.3)
    """Values of ε for --kind epsilon."""
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Ranks for --kind rank."""
    objectives: tuple[ObjectiveName, ...] = ("wta", "relaxed", "annealed", "balanced")
    """Objectives for --kind objectives."""
    values: tuple[float, ...] = ()
    """Values for the other kinds.
    The default is 0, 1/4, 1/2, 3/4 and all of the rank for shared-rank; 1, 2, 4 and 8 for own-rate; and 0, 1/10 and
    3/10 of the steps for own-after and shared-after."""

    def __post_init__(self):
        if self.kind == "k" and 1 not in self.hypotheses:
            raise ValueError(f"--hypotheses must include 1, which gives the band of losses, got {self.hypotheses}")
        if min(self.hypotheses, default=1) < 1:
            raise ValueError(f"every value of --hypotheses must be at least 1, got {self.hypotheses}")
        if min(self.ranks, default=1) < 1:
            raise ValueError(f"every value of --ranks must be at least 1, got {self.ranks}")


def variants(config: Config, options: Options) -> dict[str, dict[str, Any]]:
    """Returns the options of each variant by its name; K = 1 is the method mle_r."""
    match options.kind:
        case "k":
            return {
                str(K): dict(num_hypotheses=K, num_beams=None, methods=("mcl",)) if K > 1 else dict(methods=("mle_r",))
                for K in options.hypotheses
            }
        case "epsilon":
            return {f"{e:g}": dict(objective="relaxed", epsilon=e, methods=("mcl",)) for e in options.epsilons}
        case "rank":
            alpha, rank = config.lora.alpha, config.lora.rank
            of = lambda r: None if alpha is None else alpha * r / rank
            return {str(r): dict(rank=r, alpha=of(r), methods=("mcl",)) for r in options.ranks}
        case "objectives":
            return {name: dict(objective=name, methods=("mcl",)) for name in options.objectives}
        case "shared-rank":
            total = config.num_hypotheses * config.lora.rank
            ranks = options.values or [total * quarter // 4 for quarter in range(5)]
            of = lambda shared: dict(methods=("mcl",), shared_rank=_whole(shared, options.kind))
            # Hypotheses that share everything are one model.
            return {f"{shared:g}": dict(methods=("mle_rk",)) if shared == total else of(shared) for shared in ranks}
        case "own-rate":
            return {f"{rate:g}": dict(own_rate=rate, methods=("mcl",)) for rate in options.values or (1, 2, 4, 8)}
        case "own-after" | "shared-after" as kind:
            steps = config.training.steps or 0
            after = [_whole(step, kind) for step in options.values or (0, steps // 10, 3 * steps // 10)]
            return {str(step): {kind.replace("-", "_"): step, "methods": ("mcl",)} for step in after}


def _whole(value: float, kind: str) -> int:
    """Returns a value as an integer; raises a ValueError if it is not whole."""
    if value != int(value):
        raise ValueError(f"--values must be whole numbers for --kind {kind}, got {value:g}")
    return int(value)


def configs(config: Config, options: Options) -> list[tuple[str, Config]]:
    """Returns the name of the variant and the configuration of every training, in order.

    Raises:
      ValueError: if a value is not allowed; before the first training begins.
    """
    return [
        (name, config.replace(workdir=config.workdir / f"{options.kind}-{name}-seed{seed}", seed=seed, **values))
        for seed in options.seeds
        for name, values in variants(config, options).items()
    ]


def sweep(task: Task, options: Options) -> dict[str, list[dict[str, Any]]]:
    """Trains, or reads finished trainings, and draws DIR/KIND.png after each.

    Returns:
      The results of every variant, one per seed.
    """
    workdir, results = task.config.workdir, {}
    for name, config in configs(task.config, options):
        results.setdefault(name, []).append(trained(dataclasses.replace(task, config=config)))
        jax.clear_caches()
        if not hosts.first():
            continue
        with attempt(f"{options.kind}.png"):
            draw(workdir / f"{options.kind}.png", options.kind, results)
    return results


def trained(task: Task) -> dict[str, Any]:
    """Returns the results of one training on the test split, and its curves on the validation split.

    `answer_loss` is the winner-takes-all loss −max_k log p_k in nats per answer, `mixture_loss` that of the uniform
    mixture of the K, −log Σ_k p_k / K; the former is always in [mixture_loss − log K, mixture_loss]. `dead` is the
    share of hypotheses that win less than 1 %.
    """
    config, method = task.config, task.config.methods[0]
    with Run(config.workdir, config, volatile=config.volatile, wandb=config.tracking.wandb) as run:
        if not run.finished:
            evaluate = evaluator(task, method)
            state, seconds = train(run, task, method, evaluate)
            likelihoods = evaluate(state, task.encode(task.records("test", config.evaluation.test_items)))
            log_p, mixture = likelihoods.log_p, objectives.mixture()
            lines = [line for line in run.lines(method) if "purity" in line]
            results = summary(likelihoods, task) | {
                "answer_loss": float(-log_p.max(0).mean()),
                "mixture_loss": float(mixture.example_loss(log_p, mixture.weights(log_p)).mean()),
                "seconds": seconds,
                "steps": [line["step"] for line in lines],
                "curve": [line["purity"] for line in lines],
            }
            run.finish(results | {"dead": float(np.mean(np.array(results["win_rate"]) < DEAD))})
        return run.results()


def mean_and_spread(seeds: Sequence[Mapping[str, Any]], key: str) -> str:
    """Formats the mean over seeds and, for several seeds, the sample standard deviation."""
    if key not in seeds[0]:
        return ""
    values = [seed[key] for seed in seeds]
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def show(results: Mapping[str, list[dict[str, Any]]], kind: Kind) -> None:
    """Prints the table."""
    columns = {
        "nats/token": "eval_loss",
        "nats/answer": "answer_loss",
        "mixture, nats/answer": "mixture_loss",
        "purity": "purity",
        "dead": "dead",
    }
    rows = []
    for name, seeds in results.items():
        cells = [mean_and_spread(seeds, key) for key in columns.values()]
        if kind == "k":
            top = np.mean([seed["answer_loss"] for seed in results["1"]])
            cells.append(f"{top - math.log(int(name)):.3f} to {top:.3f}")
        rows.append([name, *cells, len(seeds)])
    band, note = (["band"], "; band = [MLE − log K, MLE]") if kind == "k" else ([], "")
    table(f"Test split, mean over seeds ± standard deviation{note}", [kind, *columns, *band, "seeds"], rows)
    if any("win_matrix" in seed and "purity" not in seed for seeds in results.values() for seed in seeds):
        say("n/a: purity: all answers have the same mode, so every hypothesis is pure whatever it wins")


def draw(path: Path, kind: Kind, results: Mapping[str, list[dict[str, Any]]]) -> None:
    """Draws the loss of each variant, with the band for K, and the purity, as curves if objectives are compared."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    names = list(results)
    loss = {name: [seed["answer_loss"] for seed in seeds] for name, seeds in results.items()}
    for x, name in enumerate(names):
        left.plot([x] * len(loss[name]), loss[name], ".", color="tab:blue", alpha=0.5)
    means, line = [np.mean(loss[name]) for name in names], "o" if kind == "objectives" else "o-"
    left.plot(range(len(names)), means, line, color="tab:blue", label="LoRA-MCL")
    left.set(xticks=range(len(names)), xticklabels=names, ylabel="test loss (nats per answer)")
    if kind == "k" and "1" in loss:
        top, logs = np.mean(loss["1"]), np.log([int(name) for name in names])
        left.fill_between(range(len(names)), top - logs, [top] * len(names), color="0.9", label="[MLE − log K, MLE]")
        mixture = np.array([np.mean([seed["mixture_loss"] for seed in results[name]]) for name in names])
        left.plot(range(len(names)), mixture, "--", color="tab:orange", label="uniform mixture of K")
        left.plot(range(len(names)), mixture - logs, ":", color="tab:orange", label="mixture − log K")
    left.legend(frameon=False)
    left.set(xlabel=LABELS[kind])
    if kind == "objectives":
        for colour, name in zip(plt.rcParams["axes.prop_cycle"].by_key()["color"], names, strict=False):
            for n, seed in enumerate(results[name]):
                right.plot(seed["steps"], seed["curve"], color=colour, alpha=0.7, label=name if n == 0 else None)
        right.set(xlabel="steps", ylabel="purity on held-out answers", ylim=(0.45, 1.02))
    else:
        with_purity = [
            (x, [seed["purity"] for seed in results[name]])
            for x, name in enumerate(names)
            if "purity" in results[name][0]
        ]
        for x, values in with_purity:
            right.plot([x] * len(values), values, ".", color="tab:green", alpha=0.5)
        right.plot([x for x, _ in with_purity], [np.mean(values) for _, values in with_purity], "o-", color="tab:green")
        right.set(xticks=range(len(names)), xticklabels=names, ylabel="purity", ylim=(0.45, 1.02), xlabel=LABELS[kind])
    if kind == "objectives":
        right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    save(figure, path)


def command_line(config: type[C], presets: Presets, args: Sequence[str] | None = None) -> tuple[C, Options]:
    """Parses the configuration that all trainings share, and the options of the sweep.

    Args:
      config: class of the configuration.
      presets: the presets of the configuration.
      args: the command line without the program; `sys.argv` if None.
    Raises:
      ValueError: if a value is not allowed; before anything is read.
    """
    config_, options = parse_both(config, Options(), args, presets, __doc__)
    configs(config_, options)  # raises the errors
    return config_, options


def main(task: Task, options: Options) -> None:
    """Runs the whole sweep."""
    task.config.workdir.mkdir(parents=True, exist_ok=True)
    results = sweep(task, options)
    if not hosts.first():
        return
    show(results, options.kind)
    say(f"The figure is in {task.config.workdir / options.kind}.png.")
