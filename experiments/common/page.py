"""The page of a finished run: one HTML file that any browser shows without a network.

Pictures, clips and figures are in it as data: URIs, there is no JavaScript, and its Content-Security-Policy lets a
browser load nothing else. All texts are escaped by jinja2.
"""

import base64
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from experiments.common.decoding import SAMPLES
from experiments.common.figures import LABELS
from mcl_jax import data
from mcl_jax.json_io import to_json, write_text
from mcl_jax.run import Run

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
COLUMNS = {"test loss": "test_loss", "purity": "purity", "win rate": "win_rate"}  # what every experiment has
FIGURES = {
    "loss": "Held-out loss and purity against steps",
    "quality_diversity": "Quality against diversity of every method",
    "win_matrix": "Share of the answers of each mode that each hypothesis wins",
}


def write(
    run: Run, results: Mapping[str, Any], records: Sequence[data.Record] = (), columns: Mapping[str, str] = COLUMNS
) -> Path:
    """Writes page.html into the run directory, with the figures that are there.

    Args:
      run: of which the name, the configuration and the figures are shown.
      results: of results.json: `methods`, one of them with `samples`.
      records: with the pictures and clips of the samples, found by their ids; one that cannot be read is replaced by
        the reason.
      columns: of the table of methods: title and key of the results.
    Returns:
      The file.
    """
    methods = to_json(results, "results", non_finite="null")["methods"]
    missing = {key: reason for found in methods.values() for key, reason in found.get("not_available", {}).items()}
    samples = next(found["samples"] for found in methods.values() if "samples" in found)
    media = {record.id: record.media for record in records}
    page = TEMPLATES.get_template("page.html").render(
        title=run.workdir.name,
        settings={name: _setting(value) for name, value in run.config.items()},
        columns=list(columns),
        not_available={title: missing[key] for title, key in columns.items() if key in missing},
        rows=[(_label(name), [_cell(found, key) for key in columns.values()]) for name, found in methods.items()],
        win_matrices=[_win_matrix(name, found) for name, found in methods.items() if "win_matrix" in found],
        figures=[_figure(path) for path in sorted(run.workdir.glob("figures/*.png"))],
        samples=[_sample(sample, media.get(sample["id"])) for sample in samples[:SAMPLES]],
    )
    path = run.workdir / "page.html"
    write_text(path, page)
    return path


def _label(name: str) -> tuple[str, str]:
    """What a method is called, and its decoder."""
    method, _, decoder = name.partition("/")
    return LABELS[method], decoder


def _setting(value: Any) -> Any:
    """A page is passed on: it names files, and keeps to itself where they are."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _cell(found: Mapping[str, Any], key: str) -> tuple[str, str]:
    """A number, a list of them, "n/a", or nothing where it makes no sense; and the 95 % interval, if there is one."""
    show = lambda low, high: f"{low:.3f} to {high:.3f}"
    match found.get(key):
        case None:
            return "n/a" if key in found else "", ""
        case {"mean": mean, "low": low, "high": high}:
            return f"{mean:.3f}", show(low, high)
        case list(values):
            return " ".join("n/a" if value is None else f"{value:.2f}" for value in values), ""
        case value:
            return f"{value:.3f}", show(*found["intervals"][key]) if key in found.get("intervals", {}) else ""


def _win_matrix(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """For each mode, (answers that it wins, their share of the mode's) of each hypothesis."""
    counts = dict(zip(found["modes"], found["win_matrix"], strict=True))
    wins = {mode: [(count, count / sum(row)) for count in row] for mode, row in counts.items()}
    return {"label": _label(name), "num_hypotheses": len(found["win_rate"]), "wins": wins}


def _figure(path: Path) -> tuple[str, str]:
    """What it shows, and its data: URI."""
    described = FIGURES.get(path.stem, path.stem.replace("_", " "))
    return described, f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _sample(sample: Mapping[str, Any], media: data.Media | None) -> dict[str, Any]:
    """A sample with its picture or clip, and its answers as rows of one (answer, nats a token) a method."""
    scored = [zip(texts, sample["log_likelihoods"][name], strict=True) for name, texts in sample["answers"].items()]
    return {
        **{key: sample[key] for key in ("id", "source", "references")},
        "media": None if media is None else _media(media),
        "labels": [_label(name) for name in sample["answers"]],
        "rows": list(itertools.zip_longest(*scored)),
    }


def _media(media: data.Media) -> dict[str, str]:
    """Its data: URI, or the error that says why there is none."""
    try:
        return {"kind": media.kind, "name": media.name, "uri": media.data_uri()}
    except data.Unreadable as error:
        return {"kind": "unreadable", "name": media.name, "error": str(error)}
