"""The page of a finished run: one HTML file that any browser shows without a network.

It contains images, clips and figures as data: URIs and no JavaScript, and its Content-Security-Policy prevents the
browser from loading anything else. jinja2 escapes all texts.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from experiments.common.figures import LABELS
from experiments.common.options import flat
from experiments.common.task import spread
from mcl_jax import data
from mcl_jax.json_io import to_json, write_json, write_text
from mcl_jax.run import Run

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
SAMPLES = 12  # most samples on a page, evenly spread
MEDIA = "media.json"  # images and clips of all samples by id, for other pages
COLUMNS = {"test loss": "test_loss", "purity": "purity", "win rate": "win_rate"}  # common to all experiments
ANSWERS = {  # of a second table, where the results have them
    "Vendi": "vendi_score",
    "distinct": "distinct_k",
    "probe": "probe_accuracy",
    "chance": "probe_chance",
    "novel answers": "novel_answers",
    "novel 4-grams": "novel_4grams",
    "best similarity": "oracle_similarity",
    "best BERTScore": "oracle_bert_score",
    "best FENSE": "oracle_fense",
    "fluency errors": "fluency_error_rate",
}
FIGURES = {
    "loss": "Held-out loss and purity over the training steps",
    "quality_diversity": "Quality and diversity of every method",
    "win_matrix": "Share of each mode's answers that each hypothesis wins",
}


def write(
    run: Run, results: Mapping[str, Any], records: Sequence[data.Record] = (), columns: Mapping[str, str] = COLUMNS
) -> Path:
    """Writes page.html into the run directory: samples, then the tables of methods, and all figures of the run.

    The images and clips of all samples go into media.json, from which `experiments.compare` takes them.

    Args:
      run: the run, whose name, configuration and figures are shown.
      results: content of results.json: `methods`, one of them with `samples`.
      records: records with the images and clips of the samples, by id; the reason replaces an unreadable file.
      columns: columns of the table of methods: title and key of the results. The second table has those of `ANSWERS`.
    Returns:
      The path of the page.
    """
    methods = to_json(results, "results", non_finite="null")["methods"]
    samples = next(scores["samples"] for scores in methods.values() if "samples" in scores)
    shown = {sample["id"] for sample in samples}
    media = {record.id: _media(record.media) for record in records if record.media and record.id in shown}
    if media:
        write_json(run.workdir / MEDIA, media)
    page = TEMPLATES.get_template("page.html").render(
        title=run.workdir.name,
        settings={name: _setting(value) for name, value in flat(run.config).items()},
        methods=_table(methods, columns),
        answers=_table(methods, {title: key for title, key in ANSWERS.items() if _any_has(methods, key)}),
        win_matrices=[_win_matrix(name, scores) for name, scores in methods.items() if "win_matrix" in scores],
        figures=[_figure(path) for path in sorted(run.workdir.glob("figures/*.png"))],
        samples=[_sample(sample, media.get(sample["id"])) for sample in spread(tuple(samples), SAMPLES)],
    )
    path = run.workdir / "page.html"
    write_text(path, page)
    return path


def reasons(methods: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str]) -> dict[str, str]:
    """Returns why columns have no values: reasons by title, or by title and methods where only some lack a value.

    Args:
      methods: results by the name of the method.
      columns: title and key of the results.
    """
    found = {}
    for title, key in columns.items():
        lacking = {name: of["not_available"][key] for name, of in methods.items() if key in of.get("not_available", {})}
        partly = any(scores.get(key) is not None for scores in methods.values())
        for reason in dict.fromkeys(lacking.values()):
            names = [name for name, why in lacking.items() if why == reason]
            found[f"{title} of {', '.join(names)}" if partly else title] = reason
    return found


def _any_has(methods: Mapping[str, Mapping[str, Any]], key: str) -> bool:
    return any(key in scores for scores in methods.values())


def _table(methods: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str]) -> dict[str, Any]:
    """Returns the titles, a label and the cells of each method, and why columns have no values."""
    rows = [(label(name), [_cell(scores, key) for key in columns.values()]) for name, scores in methods.items()]
    return {"columns": list(columns), "rows": rows, "not_available": reasons(methods, columns)}


def label(name: str) -> tuple[str, str]:
    """Returns the label of a method, and its decoder."""
    method, _, decoder = name.partition("/")
    return LABELS[method], decoder


def _setting(value: Any) -> Any:
    """Shortens absolute paths to file names, since pages are shared with others."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _cell(scores: Mapping[str, Any], key: str) -> tuple[str, str]:
    """Returns a number, a list, "n/a", or nothing if the key does not apply; and the 95 % interval, if there is one."""
    match scores.get(key):
        case None:
            return "n/a" if key in scores else "", ""
        case {"mean": mean, "low": low, "high": high}:
            return f"{mean:.3f}", _interval(low, high)
        case list(values):
            return " ".join("n/a" if value is None else f"{value:.2f}" for value in values), ""
        case value:
            return f"{value:.3f}", _interval(*scores["intervals"][key]) if key in scores.get("intervals", {}) else ""


def _interval(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f}"


def _win_matrix(name: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Returns, for each mode and hypothesis, the number of answers that it wins and their share."""
    counts = dict(zip(scores["modes"], scores["win_matrix"], strict=True))
    wins = {mode: [(count, count / sum(row)) for count in row] for mode, row in counts.items()}
    return {"label": label(name), "num_hypotheses": len(scores["win_rate"]), "wins": wins}


def _figure(path: Path) -> tuple[str, str]:
    """Returns the caption of a figure, and its data: URI."""
    described = FIGURES.get(path.stem, path.stem.replace("_", " "))
    return described, f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _sample(sample: Mapping[str, Any], media: Mapping[str, str] | None) -> dict[str, Any]:
    """Returns a sample with its image or clip, and rows (label of a method, its answers as (text, nats per token))."""
    scored = sample["log_likelihoods"]
    return {
        **{key: sample[key] for key in ("id", "source", "references")},
        "media": media,
        "num_answers": max(map(len, sample["answers"].values())),
        "rows": [
            (label(name), list(zip(texts, scored[name], strict=True))) for name, texts in sample["answers"].items()
        ],
    }


def _media(media: data.Media) -> dict[str, str]:
    """Returns the data: URI of an image or clip, or the error if it cannot be read."""
    try:
        return {"kind": media.kind, "name": media.name, "uri": media.data_uri()}
    except data.Unreadable as error:
        return {"kind": "unreadable", "name": media.name, "error": str(error)}
