"""A whole experiment: every method trained, scored on held-out items, shown and drawn."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.common import decoding, figures, page
from experiments.common.config import Config
from experiments.common.decoding import Answers
from experiments.common.task import Task, evaluator
from experiments.common.training import gap, summary, train
from mcl_jax import data
from mcl_jax.command_line import attempt
from mcl_jax.console import plain, say, table
from mcl_jax.json_io import to_json
from mcl_jax.run import Run

SHOWN = 5
SPECIALISATION = ("purity", "mutual_information")


@dataclasses.dataclass(frozen=True)
class Report:
    """How the answers of an experiment are scored and shown.

    Attributes:
      scores: (answers, their records, all records of the test split) -> numbers by name, with 95 % intervals under
        `intervals`.
      columns: of the table: title and key of the results.
      quality, diversity: title and key of the two axes of the figure.
    """

    scores: Callable[[Answers, tuple[data.Record, ...], tuple[data.Record, ...]], dict[str, Any]]
    columns: Mapping[str, str]
    quality: tuple[str, str]
    diversity: tuple[str, str]


def evaluate(task: Task, run: Run, report: Report) -> dict[str, Any]:
    """Trains and scores every method: the `methods` of results.json. Samples are in the first, mcl if it is there."""
    config = task.config
    test, asked = task.encode(task.records("test", config.test_items)), task.records("test", config.decode_items)
    found, answers, likelihoods = {}, {}, {}
    for method in config.methods:
        likelihoods_of = evaluator(task, method)
        state, seconds = train(run, task, method, likelihoods_of)
        likelihoods[method] = likelihoods_of(state, test)
        held_out = summary(likelihoods[method], task)
        held_out["test_loss"] = held_out.pop("eval_loss")
        for name, decoder in config.decoders(method).items():
            answers[name] = decoding.answer(task, run, name, state, asked, decoder)
            found[name] = held_out | report.scores(answers[name], asked, task.records("test"))
            found[name] |= {"seconds": seconds, "decode_seconds": answers[name].seconds}
    for name in found if "mcl" in likelihoods else ():
        if (method := name.partition("/")[0]) != "mcl":
            found[name] |= gap(likelihoods[method], likelihoods["mcl"])
    for of in found.values():
        _say_what_one_mode_hides(of)
    found["mcl" if "mcl" in found else next(iter(found))]["samples"] = decoding.samples(asked, answers)
    return {"methods": found}


def _say_what_one_mode_hides(found: dict[str, Any]) -> None:
    """Where all answers are of one mode, that there is no purity, and why."""
    if "win_matrix" in found and "purity" not in found:
        why = f"all answers are of one mode, {found['modes'][0]!r}: each hypothesis is pure whatever it wins"
        found |= {name: None for name in SPECIALISATION}
        found["not_available"] = found.get("not_available", {}) | dict.fromkeys(SPECIALISATION, why)


def show(results: dict[str, Any], columns: Mapping[str, str]) -> None:
    """Prints a few sources with the answers of every method, and the table."""
    for sample in next(of["samples"] for of in results["methods"].values() if "samples" in of)[:SHOWN]:
        say("\n", plain(sample["source"] or sample["id"], "bold"))
        for name, texts in sample["answers"].items():
            for k, text in enumerate(texts):
                say("  ", plain(f"{name} {k}", "cyan"), f"  {text}")
    methods = results["methods"]
    rows = [[name, *[_shown(of[key]) if key in of else "" for key in columns.values()]] for name, of in methods.items()]
    table("Held-out answers", ["", *columns], rows)
    titles, reasons = {key: title for title, key in columns.items()}, {}
    for of in methods.values():
        reasons |= {key: reason for key, reason in of.get("not_available", {}).items() if key in titles}
    for key, reason in reasons.items():
        say(f"n/a: {titles[key]}: {reason}")


def _shown(value: Any) -> str:
    """A number, a list of them, or a mean with its interval."""
    match value:
        case None:
            return "n/a"
        case {"mean": mean, "low": low, "high": high}:
            return f"{mean:.3f} ({low:.3f} to {high:.3f})"
        case list():
            return " ".join("n/a" if v is None else f"{v:.2f}" for v in value)
        case _:
            return f"{value:.3f}"


def main(config: Config, load: Callable[[Any], Task], report: Report) -> None:
    """The whole experiment.

    Args:
      config: of the experiment.
      load: from it, the base model and the data.
      report: how its answers are scored and shown.
    """
    with Run(config.workdir, dataclasses.asdict(config), volatile=config.VOLATILE) as run:
        if run.finished:
            run.say_finished()
            illustrate(run, config, report, lambda: load(config))
        else:
            for old in run.workdir.glob("page.html"):  # of a time when it came before the results
                old.unlink()
            task = load(config)
            _finish(run, evaluate(task, run, report))
            illustrate(run, config, report, lambda: task)
        show(run.results(), report.columns)
        there = "page.html, figures and results.json are" if _page(run).exists() else "results.json is"
        say(f"{there} in {config.workdir}.")


def _finish(run: Run, results: dict[str, Any]) -> None:
    """Writes results.json; a number that is not finite is none in it, and does not cost the others."""
    try:
        run.finish(results)
    except ValueError as error:
        say(f"n/a: {error}")
        run.finish(to_json(results, "results", non_finite="null"))


def illustrate(run: Run, config: Config, report: Report, load: Callable[[], Task]) -> None:
    """Draws the figures and makes the page of a finished run, if they are not there; what fails costs itself alone."""
    if _page(run).exists():
        return
    results = run.results()
    trained = tuple(dict.fromkeys(name.partition("/")[0] for name in results["methods"]))
    figures.draw(run, dataclasses.replace(config, methods=trained), results, report.quality, report.diversity)
    with attempt("page.html"):
        page.write(run, results, load().records("test"), report.columns)


def _page(run: Run) -> Path:
    return run.workdir / "page.html"
