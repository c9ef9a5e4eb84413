"""Steps at the end of an experiment: results.json, the table, the figures and the page."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common import figures, page
from experiments.common.config import Config
from experiments.common.task import Likelihoods, Task
from experiments.common.training import gap, summary
from mcl_jax import data
from mcl_jax.console import plain, say, table
from mcl_jax.json_io import to_json
from mcl_jax.run import Run

SHOWN = 5
SPECIALISATION = ("purity", "mutual_information")


@dataclasses.dataclass(frozen=True)
class Columns:
    """What is shown of the results.

    Attributes:
      table: title and key of each column.
      quality, diversity: title and key of the two axes of the figure.
    """

    table: Mapping[str, str]
    quality: tuple[str, str]
    diversity: tuple[str, str]


def on_test(likelihoods: Likelihoods, task: Task) -> dict[str, Any]:
    """The `summary` of a method on the test split, its loss as `test_loss`."""
    found = summary(likelihoods, task)
    found["test_loss"] = found.pop("eval_loss")
    return found


def finish(
    run: Run,
    methods: dict[str, dict[str, Any]],
    likelihoods: Mapping[str, Likelihoods],
    samples: Sequence[Mapping[str, Any]],
) -> None:
    """Writes results.json: every method, with its distance to LoRA-MCL; a number that is not finite is none.

    Args:
      methods: results by the name of the method and decoder. Samples go to the first of them, mcl if it is there.
      likelihoods: on the test split, by method.
    """
    for name, found in methods.items():
        if (method := name.partition("/")[0]) != "mcl" and "mcl" in likelihoods:
            found |= gap(likelihoods[method], likelihoods["mcl"])
        _say_what_one_mode_hides(found)
    methods["mcl" if "mcl" in methods else next(iter(methods))]["samples"] = samples
    results = {"methods": methods}
    try:
        run.finish(results)
    except ValueError as error:  # one number does not cost the others
        say(f"n/a: {error}")
        run.finish(to_json(results, "results", non_finite="null"))


def _say_what_one_mode_hides(found: dict[str, Any]) -> None:
    """Where all answers are of one mode, that there is no purity, and why."""
    if "win_matrix" in found and "purity" not in found:
        why = f"all answers are of one mode, {found['modes'][0]!r}: each hypothesis is pure whatever it wins"
        found |= {name: None for name in SPECIALISATION}
        found["not_available"] = found.get("not_available", {}) | dict.fromkeys(SPECIALISATION, why)


def results_of(run: Run) -> dict[str, Any]:
    """The results of a finished run.

    Raises:
      ValueError: if results.json does not hold what a run of this kind writes; names the file.
    """
    results = run.results()
    methods = results.get("methods")
    methods = list(methods.values()) if isinstance(methods, dict) else []
    sound = methods and all(isinstance(method, dict) for method in methods)
    if not sound or not any(isinstance(method.get("samples"), list) for method in methods):
        raise ValueError(
            f"{run.workdir / 'results.json'} must hold methods, one of them with samples: move it away, and the same "
            "command scores the answers again"
        )
    return results


def show(run: Run, columns: Columns) -> None:
    """Prints a few sources with the answers of every method, the table, and where everything is."""
    show_results(results_of(run), columns.table)
    there = "page.html, figures and results.json are" if page_of(run).exists() else "results.json is"
    say(f"{there} in {run.workdir}.")


def show_results(results: dict[str, Any], columns: Mapping[str, str]) -> None:
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


def page_of(run: Run) -> Path:
    """The page of a run, which is made last."""
    return run.workdir / "page.html"


def draw(run: Run, config: Config, columns: Columns) -> None:
    """The figures of a finished run; what fails costs itself alone."""
    results = results_of(run)
    trained = tuple(dict.fromkeys(name.partition("/")[0] for name in results["methods"]))
    figures.draw(run, config.replace(methods=trained), results, columns.quality, columns.diversity)


def write_page(run: Run, records: Sequence[data.Record], columns: Columns) -> None:
    """The page of a finished run, with the pictures and clips of the records."""
    page.write(run, results_of(run), records, columns.table)
