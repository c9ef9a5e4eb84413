"""The last steps of an experiment: results.json, the table, the figures and the page."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from experiments.common import figures, page, usage
from experiments.common.config import Config, Method
from experiments.common.decoding import Answers
from experiments.common.held_out import Likelihoods, gap, summary, with_interval
from experiments.common.task import Task
from mcl_jax import data, metrics
from mcl_jax.console import plain, say, table
from mcl_jax.json_io import to_json
from mcl_jax.run import Run

SHOWN = 5
SPECIALISATION = ("purity", "mutual_information")
SELECTOR = ("accuracy", "density_loss")
DIVERSITY = ("div_1", "div_2")  # those that have a value for a single answer, which would look diverse


@dataclasses.dataclass(frozen=True)
class Columns:
    """The results that the table and the figure show.

    Attributes:
      table: title and key of each column.
      quality, diversity: title and key of the two axes of the figure.
      errors: titles and keys, lower is better, in which LoRA-MCL is compared with each method in addition to these.
    """

    table: Mapping[str, str]
    quality: tuple[str, str]
    diversity: tuple[str, str]
    errors: Mapping[str, str] = dataclasses.field(default_factory=dict)


def on_test(
    likelihoods: Likelihoods, task: Task, merged: Mapping[usage.Pair, np.ndarray] | None = None
) -> dict[str, Any]:
    """Returns the `summary` of a method on the test split, with its loss as `test_loss`, also that of each source.

    Several hypotheses also have the use of each, under `hypotheses`.

    Args:
      likelihoods: likelihoods on the test split.
      task: the task.
      merged: those under the mean of each pair of hypotheses, from `usage.merged_pairs`, if they were computed.
    """
    scores = summary(likelihoods, task)
    scores["test_loss"] = scores.pop("eval_loss")
    scores["per_item"] = {"test_loss": likelihoods.mean_per_record(likelihoods.losses).tolist()}
    if len(likelihoods.log_p) > 1:
        scores["hypotheses"] = usage.hypotheses(likelihoods, merged or {})
    return scores


def probe_chance(answers: Answers) -> dict[str, float]:
    """Returns the accuracy of a probe that guesses which of the K answers a text is, beside `probe_accuracy`."""
    return {"probe_chance": 1 / len(answers.texts[0])}


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Joins results of one method; their `intervals`, `not_available` and `per_item` are joined too."""
    joined: dict[str, Any] = {}
    for part in parts:
        inner = {
            name: joined.get(name, {}) | part[name]
            for name in ("intervals", "not_available", "per_item")
            if name in part
        }
        joined |= part | inner
    return joined


def finish(
    run: Run,
    methods: dict[str, dict[str, Any]],
    likelihoods: Mapping[str, Likelihoods],
    samples: Sequence[Mapping[str, Any]],
) -> None:
    """Writes results.json with all methods and their distance to LoRA-MCL. Numbers that are not finite become null.

    Args:
      run: the run.
      methods: results by the name of the method and decoder, and of baselines. The samples are added to mcl, or to the
        first of them.
      likelihoods: likelihoods on the test split, by method.
      samples: some sources with the answers of all methods.
    """
    of_mcl = next((scores for name, scores in methods.items() if name.partition("/")[0] == "mcl"), None)
    for name, scores in methods.items():
        method = name.partition("/")[0]
        if method != "mcl" and {"mcl", method} <= likelihoods.keys():
            scores |= gap(likelihoods[method], likelihoods["mcl"])
        _explain_missing_purity(scores)
        if samples and all(len(sample["answers"].get(name, ())) == 1 for sample in samples):
            _without(scores, DIVERSITY, "a single answer has no diversity")
        if method != "mcl" and of_mcl:
            scores["below_mcl"] = below(scores, of_mcl)
    methods["mcl" if "mcl" in methods else next(iter(methods))]["samples"] = samples
    results = {"methods": methods}
    try:
        run.finish(results)
    except ValueError as error:  # the other numbers are kept
        say(f"n/a: {error}")
        run.finish(to_json(results, "results", non_finite="null"))


def below(scores: Mapping[str, Any], of_mcl: Mapping[str, Any]) -> dict[str, Any]:
    """Returns, for each metric of the answers, LoRA-MCL's value minus this one, with the 95 % interval over items.

    LoRA-MCL's value is that of its first decoder. The same items are drawn for both methods.

    Args:
      scores: results of a method, with `per_item`.
      of_mcl: results of LoRA-MCL for the same items.
    """
    known, others = scores.get("per_item", {}), of_mcl.get("per_item", {})
    values = lambda values: metrics.Bootstrap().mean([np.nan if value is None else value for value in values])
    differences = {
        name: metrics.difference(values(others[name]), values(known[name]))
        for name in known.keys() & others.keys() - {"test_loss"}  # which `gap` compares
        if scores.get(name, 0.0) is not None  # such as the diversity of a single answer
    }
    # Some metrics have no value for any item, such as 4-grams of answers with three words.
    return {name: with_interval(score) for name, score in differences.items() if np.isfinite(score.mean)}


def _explain_missing_purity(scores: dict[str, Any]) -> None:
    """Adds the reason why there is no purity if all answers have the same mode."""
    if "win_matrix" in scores and "purity" not in scores:
        why = f"all answers have the same mode, {scores['modes'][0]!r}, so every hypothesis is pure whatever it wins"
        _without(scores, SPECIALISATION, why)


def _without(scores: dict[str, Any], names: Sequence[str], why: str) -> None:
    """Takes away the values of some metrics, and says why they are not available."""
    scores |= dict.fromkeys(names)
    scores["not_available"] = scores.get("not_available", {}) | dict.fromkeys(names, why)
    scores["intervals"] = {name: ends for name, ends in scores.get("intervals", {}).items() if name not in names}


def results_of(run: Run) -> dict[str, Any]:
    """Returns the results of a finished run.

    Raises:
      ValueError: if results.json lacks methods or samples; names the file.
    """
    results = run.results()
    methods = results.get("methods")
    methods = list(methods.values()) if isinstance(methods, dict) else []
    sound = methods and all(isinstance(method, dict) for method in methods)
    if not sound or not any(isinstance(method.get("samples"), list) for method in methods):
        raise ValueError(
            f"{run.workdir / 'results.json'} must hold methods, one of them with samples; move the file away and run "
            "the same command again to score the answers"
        )
    return results


def show(run: Run, columns: Columns) -> None:
    """Prints a few sources with the answers of every method, the table, and the place of all files."""
    results = results_of(run)
    show_results(results, columns.table)
    for line in (*leads(results["methods"], columns), *selections(results["methods"])):
        say(line)
    if of_mcl := next((scores for scores in results["methods"].values() if "hypotheses" in scores), None):
        say(of_mcl["hypotheses"]["recommendation"])
    files = "page.html, figures and results.json are" if page_of(run).exists() else "results.json is"
    say(f"{files} in {run.workdir}.")


def show_results(results: dict[str, Any], columns: Mapping[str, str]) -> None:
    """Prints a few sources with the answers of every method, and the table."""
    methods = results["methods"]
    for sample in next(scores["samples"] for scores in methods.values() if "samples" in scores)[:SHOWN]:
        say("\n", plain(sample["source"] or sample["id"], "bold"))
        for name, texts in sample["answers"].items():
            for k, text in enumerate(texts):
                say("  ", plain(f"{name} {k}", "cyan"), f"  {text}")
    rows = [
        [title, *[_shown(scores[key]) if key in scores else "" for scores in methods.values()]]
        for title, key in columns.items()
    ]
    table("Held-out answers", ["", *methods], rows)
    for what, reason in page.reasons(methods, columns).items():
        say(f"n/a: {what}: {reason}")


def leads(methods: Mapping[str, Mapping[str, Any]], columns: Columns) -> list[str]:
    """Returns a line for each method with how far LoRA-MCL is ahead of it, in quality, diversity and loss."""
    lines = []
    for name, scores in methods.items():
        below = scores.get("below_mcl", {})
        higher = {title: below.get(key) for title, key in (columns.quality, columns.diversity)}
        lower = {f"less {title}": below.get(key) for title, key in columns.errors.items()}
        found = higher | {title: value and _negated(value) for title, value in lower.items()}
        found["less loss"] = scores.get("loss_above_mcl")
        parts = [f"{title} {_signed(value)}" for title, value in found.items() if isinstance(value, dict)]
        if parts:
            lines.append(f"mcl against {name}, above 0 is better: {', '.join(parts)}")
    return lines


def selections(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a line for each method with a selector: its accuracy and density, beside those of the prior."""
    lines = []
    for name, scores in methods.items():
        if found := scores.get("selector"):
            accuracy, density = ("/".join(_shown(found[f"{of}{key}"]) for of in ("", "prior_")) for key in SELECTOR)
            uniform, winners = _shown(found["uniform_density_loss"]), _shown(scores["test_loss"])
            lines.append(
                f"selector of {name}: the winner is told from the prompt for {accuracy} of the test answers "
                f"(selector/prior); loss of the mixture {density}, uniform {uniform}, of the winners alone {winners}"
            )
    return lines


def _negated(value: Mapping[str, float] | float) -> Mapping[str, float] | float:
    if not isinstance(value, dict):
        return value
    return {"mean": -value["mean"], "low": -value["high"], "high": -value["low"]}


def _signed(value: Mapping[str, float]) -> str:
    return f"{value['mean']:+.3g} ({value['low']:+.3g} to {value['high']:+.3g})"


def _shown(value: Any) -> str:
    """Formats a number, a list of numbers, or a mean with its interval."""
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
    """Returns the path of the page of a run, which is made last."""
    return run.workdir / "page.html"


def draw(run: Run, config: Config, columns: Columns) -> None:
    """Draws the figures of a finished run. If one fails, the others are still drawn."""
    results = results_of(run)
    methods = dict.fromkeys(name.partition("/")[0] for name in results["methods"])
    trained = tuple(method for method in methods if method in get_args(Method))
    figures.draw(run, config.replace(methods=trained), results, columns.quality, columns.diversity)


def write_page(run: Run, records: Sequence[data.Record], columns: Columns) -> None:
    """Writes the page of a finished run, with the pictures and clips of the records."""
    page.write(run, results_of(run), records, columns.table)
