"""Compares finished runs: `python -m experiments.compare --workdirs RUN [RUN ...] --out DIR`."""

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path

from experiments.common.figure_files import save
from experiments.common.options import parse_line, print_and_exit
from experiments.compare import answers, columns, curves, figure, tables
from experiments.compare.aggregate import fold
from experiments.compare.runs import FinishedRun, Group, group, read
from mcl_jax.command_line import attempt, errors_in_a_line
from mcl_jax.console import say
from mcl_jax.json_io import write_text


@dataclasses.dataclass(frozen=True)
class Config:
    """Writes tables (console, CSV, Markdown, LaTeX) of finished runs, and two figures.

    One figure shows quality against diversity, the other the held-out loss and the purity against the steps.

    Of several runs with the same test sources, answers.html also shows their answers side by side.

    Runs that differ only in the seed share one row per method, with mean ± sample standard deviation (number of seeds).
    A single seed gives the value with its 95 % bootstrap interval. Other runs are named by the options in which they
    differ.
    """

    workdirs: tuple[Path, ...]
    """Run directories of experiments that compare methods, such as translation."""
    out: Path
    """Folder for table.csv, table.md, table.tex, quality_diversity and curves (PNG, PDF), and, of several runs,
    answers.html."""
    columns: tuple[str, ...] = ()
    """Metrics to show, by their names in results.json, such as loss_of_mode.MODE.
    The default is all of them in the files and a few on the console."""
    names: tuple[str, ...] = ()
    """Names of the runs, one for each of --workdirs. Runs with the same name form a group of seeds."""
    quality: str | None = None
    """Metric of the vertical axis.
    The default is the first that all runs have: oracle_bleu, oracle_spider, oracle_cider_d or oracle_similarity."""
    diversity: str = "div_2"
    """Metric of the horizontal axis."""


def parse(args: Sequence[str] | None = None) -> Config:
    """Parses a command line. With --print-config, the configuration is printed as JSON, and the program ends."""
    line, printed = parse_line(Config, args, description=inspect.getdoc(Config), prog="python -m experiments.compare")
    if printed:
        print_and_exit(line.config)
    return line.config


def main(config: Config) -> None:
    """Runs the whole comparison.

    Raises:
      ValueError: if runs or options are wrong; before anything is written.
    """
    if not config.workdirs:
        raise ValueError("--workdirs needs at least one run directory")
    groups = group([read(workdir) for workdir in config.workdirs], config.names)
    rows = [row for runs in groups for row in fold(runs)]
    metrics = columns.choose(rows, config.columns)
    quality = columns.axis(rows, "--quality", config.quality, columns.QUALITY_AXES)
    diversity = columns.axis(rows, "--diversity", config.diversity)
    drawn = figure.drawable(rows, quality, diversity)
    if not drawn:
        raise ValueError(
            f"no method has both {quality} and {diversity}; choose other metrics with --quality and --diversity"
        )

    evaluations = curves.collect(groups)

    config.out.mkdir(parents=True, exist_ok=True)
    table = tables.lay_out(rows, metrics)
    write_text(config.out / "table.csv", tables.to_csv(rows, metrics))
    write_text(config.out / "table.md", tables.markdown(table))
    write_text(config.out / "table.tex", tables.latex(table))
    for kind in ("png", "pdf"):
        with attempt(f"quality_diversity.{kind}"):
            save(figure.draw(drawn, quality, diversity), config.out / f"quality_diversity.{kind}")
        if evaluations:
            with attempt(f"curves.{kind}"):
                save(curves.draw(evaluations), config.out / f"curves.{kind}")

    if len(config.workdirs) > 1:
        with attempt("answers.html"):
            answers.write(config.out / "answers.html", *_with_names(groups), (quality, diversity))

    short = metrics if config.columns else columns.shortened(metrics, quality, diversity)
    tables.show(tables.lay_out(rows, short), "Finished runs (* marks the best value of each column)")
    for row in rows:
        if row not in drawn:
            say(f"Not in the figure because it lacks {quality} or {diversity}: {tables.where(row)}")
    say(f"The tables and the figures are in {config.out}.")


def _with_names(groups: Sequence[Group]) -> tuple[list[FinishedRun], list[str]]:
    """Returns the runs, and the names of their groups, with the seed if a group has several."""
    runs, names = [], []
    for formed in groups:
        for run in formed.runs:
            seed = f"seed {run.config.get('seed')}" if len(formed.runs) > 1 else ""
            runs.append(run)
            names.append(", ".join(filter(None, (formed.name, seed))))
    return runs, names


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse())
