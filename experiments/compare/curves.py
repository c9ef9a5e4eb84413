"""Draws the held-out loss and the purity of finished runs against the steps.

The evaluation before the first step is left out, since its loss is so high that the later ones would look alike.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments.common.figure_files import literal
from experiments.common.figures import LABELS
from experiments.compare.runs import FinishedRun, Group, logged

METRICS = {"eval_loss": "held-out loss (nats per token)", "purity": "purity on held-out answers"}
Line = Mapping[str, Any]


def collect(groups: Iterable[Group]) -> dict[str, list[Sequence[Line]]]:
    """Returns the logged evaluations by the name of their curve: for each seed, those of one training in order.

    A curve is a method of a group. A method that several groups trained is named by its group, too.
    """
    found = {(group.name, method): lines for group in groups for method, lines in _trainings(group.runs).items()}
    methods = [method for _, method in found]

    def name(group: str, method: str) -> str:
        label = LABELS.get(method, method)
        return f"{label} ({group})" if methods.count(method) > 1 else label

    return {name(*key): lines for key, lines in found.items()}


def _trainings(runs: Sequence[FinishedRun]) -> dict[str, list[Sequence[Line]]]:
    trainings: dict[str, list[Sequence[Line]]] = {}
    for run in runs:
        of_run: dict[str, list[Line]] = {}
        for line in logged(run.workdir):
            if "eval_loss" in line and line["step"] > 0:
                of_run.setdefault(line["run"], []).append(line)
        for method, lines in of_run.items():
            trainings.setdefault(method, []).append(lines)
    return trainings


def mean(seeds: Sequence[Sequence[Line]], metric: str) -> tuple[list[int], list[float]]:
    """Returns the steps at which all seeds have a metric, and its mean over the seeds."""
    values = [{line["step"]: line[metric] for line in lines if metric in line} for lines in seeds]
    steps = sorted(set.intersection(*map(set, values)))
    return steps, [sum(of_seed[step] for of_seed in values) / len(values) for step in steps]


def draw(curves: Mapping[str, Sequence[Sequence[Line]]]) -> plt.Figure:
    """Draws the mean over seeds of each curve, and a thin line for each seed if there are several."""
    metrics = [key for key in METRICS if any(mean(seeds, key)[0] for seeds in curves.values())]
    size = (5.2 * len(metrics), 3.6)
    figure, axes = plt.subplots(1, len(metrics), figsize=size, layout="constrained", squeeze=False)
    for ax, metric in zip(axes[0], metrics, strict=True):
        for number, (name, seeds) in enumerate(curves.items()):
            colour = f"C{number % 10}"
            if mean(seeds, metric)[0]:
                ax.plot(*mean(seeds, metric), color=colour, label=literal(name), marker=".")
            for lines in seeds if len(seeds) > 1 else ():
                ax.plot(*mean([lines], metric), color=colour, alpha=0.4, linewidth=0.7)
        ax.set(xlabel="steps", ylabel=METRICS[metric])
        ax.grid(alpha=0.3)
    axes[0, 0].legend(frameon=False)
    return figure
