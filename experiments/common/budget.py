"""Draws quality and diversity against the budget of decoding: the rows that are decoded side by side for a source.

Every row costs a forward pass for each token. The methods are those of a run, which is trained first if it is not: give
the same options and the same --workdir. DIR/budget.json and DIR/budget.png hold the curves.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments.common.config import Config
from experiments.common.decoders import AnyDecoder
from experiments.common.decoding import Answers, answer
from experiments.common.experiment import Columns
from experiments.common.figure_files import save
from experiments.common.figures import COLOURS, LABELS, marker_of
from experiments.common.held_out import evaluator
from experiments.common.options import C, Presets, parse_both
from experiments.common.task import Task
from experiments.common.training import train
from mcl_jax import data, hosts
from mcl_jax.command_line import attempt
from mcl_jax.console import say, table
from mcl_jax.json_io import to_json, write_json
from mcl_jax.run import Run

MOST = 25  # beams in all of the paper's largest budget
Score = Callable[[Answers, tuple[data.Record, ...]], Mapping[str, Any]]
Curves = dict[str, list[dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Options:
    """The budgets to compare."""

    budgets: tuple[int, ...] = ()
    """Numbers of beams in all, multiples of --num-hypotheses. The default is all multiples up to 25."""


def beams(options: Options, num_hypotheses: int) -> tuple[int, ...]:
    """Returns the numbers of beams in all, for K hypotheses."""
    return options.budgets or tuple(range(num_hypotheses, max(MOST, num_hypotheses) + 1, num_hypotheses))


def configs(config: Config, options: Options) -> list[Config]:
    """Returns the configuration of each budget. Raises a ValueError if one is not allowed."""
    return [config.replace(num_beams=number) for number in beams(options, config.num_hypotheses)]


def decoders(configs_: Sequence[Config], method: str) -> list[tuple[str, Config, AnyDecoder]]:
    """Returns (name, configuration, decoder) of each point; a decoder that does not depend on beams has one point."""
    points: dict[tuple[str, AnyDecoder], Config] = {}
    for config in configs_:
        for name, decoder in config.decoders(method).items():
            points.setdefault((name, decoder), config)
    return [(name, config, decoder) for (name, decoder), config in points.items()]


def curves(task: Task, options: Options, score: Score) -> Curves:
    """Returns the scores of each decoder at each budget, with its `decode_rows`; writes budget.json after each."""
    config, found = task.config, {}
    records = task.records("test", config.evaluation.decode_items)
    with Run(config.workdir, config, volatile=config.volatile) as run:
        for method in config.methods:
            state, _ = train(run, task, method, evaluator(task, method))
            for name, at, decoder in decoders(configs(config, options), method):
                answers = answer(dataclasses.replace(task, config=at), run, name, state, records, decoder)
                found.setdefault(name, []).append({**score(answers, records), **answers.costs})
                if hosts.first():
                    write_json(config.workdir / "budget.json", to_json(found, "budget", non_finite="null"))
    return found


def draw(found: Curves, columns: Columns) -> plt.Figure:
    """Draws quality and diversity against the rows."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, points in found.items():
        method, _, decoder = name.partition("/")
        points = sorted(points, key=lambda point: point["decode_rows"])
        for ax, (_, key) in zip(axes, (columns.quality, columns.diversity), strict=True):
            known = [point for point in points if point.get(key) is not None]
            ax.plot(
                [point["decode_rows"] for point in known],
                [point[key] for point in known],
                marker=marker_of(decoder),
                color=COLOURS[method],
                label=f"{LABELS[method]} {decoder}".strip(),
            )
    for ax, (title, _) in zip(axes, (columns.quality, columns.diversity), strict=True):
        ax.set(xlabel="forward passes per token (rows in all)", ylabel=title)
        ax.grid(alpha=0.3)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def show(found: Curves, columns: Columns) -> None:
    """Prints the table."""
    keys = {title: key for title, key in (columns.quality, columns.diversity)}
    shown = lambda value: "n/a" if value is None else f"{value:.3f}"
    rows = [
        [
            name,
            point["decode_rows"],
            *[shown(point.get(key)) for key in keys.values()],
            f"{point['decode_seconds']:.1f}",
        ]
        for name, points in found.items()
        for point in points
    ]
    table("Answers at each budget", ["", "rows", *keys, "seconds"], rows)


def command_line(config: type[C], presets: Presets, args: Sequence[str] | None = None) -> tuple[C, Options]:
    """Parses the configuration of the run, and the budgets. The arguments and errors are those of the sweep."""
    config_, options = parse_both(config, Options(), args, presets, __doc__)
    configs(config_, options)  # raises the errors
    return config_, options


def main(task: Task, options: Options, score: Score, columns: Columns) -> None:
    """Decodes at all budgets, and shows the curves."""
    found = curves(task, options, score)
    if not hosts.first():
        return
    with attempt("budget.png"):
        save(draw(found, columns), task.config.workdir / "budget.png")
    show(found, columns)
    say(f"budget.json and budget.png are in {task.config.workdir}.")
