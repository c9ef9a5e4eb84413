"""What the number of hypotheses and the objective do: LoRA-MCL trained once for each value and seed.

    k            K from 1 to 7: the loss inside the band that theory gives, [MLE − log K, MLE]
    epsilon      of the relaxed objective, from 0 (plain winner-takes-all)
    objectives   plain, relaxed, annealed and balanced winner-takes-all: purity, and hypotheses that never win

Each training has a run directory of its own in DIR, so a stopped sweep goes on where it was.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tyro

from experiments.common.config import Config, ObjectiveName
from experiments.common.figure_files import save
from experiments.common.task import Task, evaluator
from experiments.common.training import summary, train
from mcl_jax import objectives
from mcl_jax.command_line import attempt
from mcl_jax.console import say, table
from mcl_jax.run import Run

Kind = Literal["k", "epsilon", "objectives"]
DEAD = 0.01  # share of the wins below which a hypothesis counts as dead


@dataclasses.dataclass(frozen=True)
class Options:
    """What is varied."""

    kind: Kind = "k"
    """k: the number of hypotheses. epsilon: of the relaxed objective. objectives: one against the other."""
    seeds: tuple[int, ...] = (0, 1, 2)
    hypotheses: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7)
    """Of --kind k; 1 is LoRA-MLE."""
    epsilons: tuple[float, ...] = (0.0, 0.01, 0.05, 0.1, 0.3)
    """Of --kind epsilon."""
    objectives: tuple[ObjectiveName, ...] = ("wta", "relaxed", "annealed", "balanced")
    """Of --kind objectives."""

    def __post_init__(self):
        if self.kind == "k" and 1 not in self.hypotheses:
            raise ValueError(f"--hypotheses needs 1, the upper end of the band, got {self.hypotheses}")
        if min(self.hypotheses, default=1) < 1:
            raise ValueError(f"--hypotheses must be at least 1 each, got {self.hypotheses}")


def variants(config: Config, options: Options) -> dict[str, dict[str, Any]]:
    """Fields of the configuration by the name of the variant; K = 1 is the method mle_r."""
    match options.kind:
        case "k":
            of = lambda K: dict(num_hypotheses=K, num_beams=None, methods=("mcl",))
            return {str(K): of(K) if K > 1 else dict(methods=("mle_r",)) for K in options.hypotheses}
        case "epsilon":
            return {f"{e:g}": dict(objective="relaxed", epsilon=e, methods=("mcl",)) for e in options.epsilons}
        case "objectives":
            return {name: dict(objective=name, methods=("mcl",)) for name in options.objectives}


def configs(config: Config, options: Options) -> list[tuple[str, Config]]:
    """The name of the variant and the configuration of every training, in order.

    Raises:
      ValueError: for a value that no training can have, before the first begins.
    """
    return [
        (
            name,
            dataclasses.replace(config, workdir=config.workdir / f"{options.kind}-{name}-seed{seed}", seed=seed, **of),
        )
        for seed in options.seeds
        for name, of in variants(config, options).items()
    ]


def sweep(task: Task, options: Options) -> dict[str, list[dict[str, Any]]]:
    """Trains, or reads what was trained: results of every variant, one a seed; draws DIR/KIND.png after each."""
    workdir, found = task.config.workdir, {}
    for name, config in configs(task.config, options):
        found.setdefault(name, []).append(trained(dataclasses.replace(task, config=config)))
        jax.clear_caches()
        with attempt(f"{options.kind}.png"):
            draw(workdir / f"{options.kind}.png", options.kind, found)
    return found


def trained(task: Task) -> dict[str, Any]:
    """Results of one training on the test split, and its curves on the validation split.

    `answer_loss` is the winner-takes-all loss −max_k log p_k in nats an answer, `mixture_loss` that of the uniform
    mixture of the K, −log Σ_k p_k / K: the first lies in [mixture_loss − log K, mixture_loss] whatever was learned.
    `dead` is the share of hypotheses that win less than 1 %.
    """
    config, method = task.config, task.config.methods[0]
    with Run(config.workdir, dataclasses.asdict(config), volatile=config.VOLATILE) as run:
        if not run.finished:
            evaluate = evaluator(task, method)
            state, seconds = train(run, task, method, evaluate)
            likelihoods = evaluate(state, task.encode(task.records("test", config.test_items)))
            log_p, mixture = likelihoods.log_p, objectives.mixture()
            lines = [line for line in run.lines(method) if "purity" in line]
            found = summary(likelihoods, task) | {
                "answer_loss": float(-log_p.max(0).mean()),
                "mixture_loss": float(mixture.example_loss(log_p, mixture.weights(log_p)).mean()),
                "seconds": seconds,
                "steps": [line["step"] for line in lines],
                "curve": [line["purity"] for line in lines],
            }
            run.finish(found | {"dead": float(np.mean(np.array(found["win_rate"]) < DEAD))})
        return run.results()


def mean_and_spread(found: Sequence[Mapping[str, Any]], key: str) -> str:
    """Mean over seeds and, of several, the sample standard deviation."""
    if key not in found[0]:
        return ""
    values = [of[key] for of in found]
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def show(found: Mapping[str, list[dict[str, Any]]], kind: Kind) -> None:
    """The table."""
    columns = {
        "nats a token": "eval_loss",
        "nats an answer": "answer_loss",
        "of the mixture": "mixture_loss",
        "purity": "purity",
        "dead": "dead",
    }
    rows = []
    for name, of in found.items():
        cells = [mean_and_spread(of, key) for key in columns.values()]
        if kind == "k":
            top = np.mean([seed["answer_loss"] for seed in found["1"]])
            cells.append(f"{top - math.log(int(name)):.3f} to {top:.3f}")
        rows.append([name, *cells, len(of)])
    band = ["band [MLE − log K, MLE]"] if kind == "k" else []
    table("Test split, mean over seeds ± standard deviation", [kind, *columns, *band, "seeds"], rows)
    if any("win_matrix" in seed and "purity" not in seed for of in found.values() for seed in of):
        say("n/a: purity: all answers are of one mode, and each hypothesis is pure whatever it wins")


def draw(path: Path, kind: Kind, found: Mapping[str, list[dict[str, Any]]]) -> None:
    """Loss against the variant, within the band for K; and purity, as curves where objectives are compared."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    names, loss = list(found), {name: [of["answer_loss"] for of in seeds] for name, seeds in found.items()}
    for x, name in enumerate(names):
        left.plot([x] * len(loss[name]), loss[name], ".", color="tab:blue", alpha=0.5)
    means, line = [np.mean(loss[name]) for name in names], "o" if kind == "objectives" else "o-"
    left.plot(range(len(names)), means, line, color="tab:blue", label="LoRA-MCL")
    left.set(xticks=range(len(names)), xticklabels=names, ylabel="test loss, nats an answer")
    if kind == "k" and "1" in loss:
        top, logs = np.mean(loss["1"]), np.log([int(name) for name in names])
        left.fill_between(range(len(names)), top - logs, [top] * len(names), color="0.9", label="[MLE − log K, MLE]")
        mixture = np.array([np.mean([of["mixture_loss"] for of in found[name]]) for name in names])
        left.plot(range(len(names)), mixture, "--", color="tab:orange", label="uniform mixture of the K")
        left.plot(range(len(names)), mixture - logs, ":", color="tab:orange", label="mixture − log K")
    left.legend(frameon=False)
    left.set(xlabel={"k": "K", "epsilon": "ε", "objectives": ""}[kind])
    if kind == "objectives":
        for colour, name in zip(plt.rcParams["axes.prop_cycle"].by_key()["color"], names, strict=False):
            for n, of in enumerate(found[name]):
                right.plot(of["steps"], of["curve"], color=colour, alpha=0.7, label=name if n == 0 else None)
        right.set(xlabel="steps", ylabel="purity on held-out answers", ylim=(0.45, 1.02))
    else:
        having = [
            (x, [of["purity"] for of in found[name]]) for x, name in enumerate(names) if "purity" in found[name][0]
        ]
        for x, values in having:
            right.plot([x] * len(values), values, ".", color="tab:green", alpha=0.5)
        right.plot([x for x, _ in having], [np.mean(values) for _, values in having], "o-", color="tab:green")
        right.set(xticks=range(len(names)), xticklabels=names, ylabel="purity", ylim=(0.45, 1.02))
    right.legend(frameon=False) if kind == "objectives" else None
    for axes in (left, right):
        axes.grid(alpha=0.3)
    save(figure, path)


def command_line(
    config: type[Config], preset: Mapping[str, Any], args: Sequence[str] | None = None
) -> tuple[Any, Options]:
    """(configuration of each training, what is varied) of a command line; the preset's values are the defaults."""
    given = Annotated[config, tyro.conf.arg(name="")]
    line = dataclasses.make_dataclass(
        "Sweep", [("options", Annotated[Options, tyro.conf.arg(name="")]), ("config", given)], frozen=True
    )
    default = line(Options(), config(workdir=tyro.MISSING, **preset))
    found = tyro.cli(line, args=args, description=__doc__, default=default)
    configs(found.config, found.options)  # refuses what cannot be before anything is read
    return found.config, found.options


def main(task: Task, options: Options) -> None:
    """The whole sweep."""
    task.config.workdir.mkdir(parents=True, exist_ok=True)
    show(sweep(task, options), options.kind)
    say(f"The figure is {task.config.workdir / options.kind}.png.")
