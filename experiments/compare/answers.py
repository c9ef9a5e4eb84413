"""answers.html: the K answers of every method in several runs, side by side for each source."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from experiments.common.decoding import SAMPLES
from experiments.common.page import MEDIA, TEMPLATES, label
from experiments.common.task import spread
from experiments.compare.runs import FinishedRun
from mcl_jax.json_io import read_json, write_text

PAGE = TEMPLATES.overlay(loader=jinja2.ChoiceLoader([jinja2.FileSystemLoader(Path(__file__).parent), TEMPLATES.loader]))
Key = tuple[str, str]  # id and source of a sample


def write(path: Path, runs: Sequence[FinishedRun], names: Sequence[str], metrics: Sequence[str]) -> int:
    """Writes the page of the sources that all runs have answered.

    Args:
      path: the file.
      runs: the runs, side by side in this order.
      names: the title of each.
      metrics: metrics that are shown where the runs have them for single sources.
    Returns:
      The number of sources.
    Raises:
      ValueError: if the runs have no source in common.
    """
    samples = [samples_of(run) for run in runs]
    shared = [key for key in samples[0] if all(key in of for of in samples)]
    if not shared:
        raise ValueError("the runs have answered no source in common")
    media = {id_: of for run in reversed(runs) for id_, of in _media(run).items()}
    page = PAGE.get_template("answers.html").render(
        title=" and ".join(names) if len(names) < 3 else f"{len(names)} runs",
        names=names,
        metrics=list(metrics),
        items=[_item(runs, [of[key] for of in samples], metrics, media) for key in shared],
    )
    write_text(path, page)
    return len(shared)


def samples_of(run: FinishedRun) -> dict[Key, dict[str, Any]]:
    """Returns the samples of a run by id and source, each with its `place` among the sources that were answered."""
    samples = next((scores["samples"] for scores in run.methods.values() if scores.get("samples")), [])
    return {(one["id"], one["source"]): {**one, "place": place} for place, one in enumerate(samples)}


def _media(run: FinishedRun) -> dict[str, dict[str, str]]:
    """Returns the images and clips of the samples of a run by id; {} if it kept none."""
    path = run.workdir / MEDIA
    return read_json(path) if path.exists() else {}


def _item(
    runs: Sequence[FinishedRun],
    samples: Sequence[Mapping[str, Any]],
    metrics: Sequence[str],
    media: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    """Returns a source with its image or clip and its references, and the answers of each method in each run."""
    names = dict.fromkeys(name for sample in samples for name in sample["answers"])
    return {
        **{key: samples[0][key] for key in ("id", "source", "references")},
        "media": media.get(samples[0]["id"]),
        "methods": [_method(name, runs, samples, metrics) for name in names],
    }


def _method(
    name: str, runs: Sequence[FinishedRun], samples: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> dict[str, Any]:
    """Returns rows of cells, one for each run: (text, nats per token) of answer k, or None; and rows of scores."""
    answers = [
        [*zip(sample["answers"].get(name, ()), sample["log_likelihoods"].get(name, ()), strict=True)]
        for sample in samples
    ]
    rows = [[given[k] if k < len(given) else None for given in answers] for k in range(max(map(len, answers)))]
    scores = {}
    for metric in metrics:
        values = [_score(run, name, metric, sample["place"]) for run, sample in zip(runs, samples, strict=True)]
        if any(value is not None for value in values):
            scores[metric] = values
    return {"label": label(name), "rows": rows, "scores": scores}


def _score(run: FinishedRun, name: str, metric: str, place: int) -> float | None:
    """Returns a metric of the answers to a sample; None if the run has none for single sources."""
    values = run.methods.get(name, {}).get("per_item", {}).get(metric, ())
    places = spread(tuple(range(len(values))), SAMPLES)  # `decoding.samples` took these
    return values[places[place]] if place < len(places) else None
