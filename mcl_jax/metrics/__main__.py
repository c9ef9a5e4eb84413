"""Command line of the metrics: `python -m mcl_jax.metrics FILE.jsonl` scores your own answers."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import rich.console

from mcl_jax.command_line import errors_in_a_line
from mcl_jax.console import PLAIN_WIDTH, say, table
from mcl_jax.extras import needed_for
from mcl_jax.json_io import to_json, write_json
from mcl_jax.metrics.groups import CAPTION_GROUPS, GROUPS, LOWER_IS_BETTER, Settings, winners_and_modes
from mcl_jax.metrics.items import Item, read_items
from mcl_jax.metrics.novelty import TrainingTexts
from mcl_jax.metrics.report import NOT_DEFINED, NotAvailable, score_items
from mcl_jax.metrics.score import Bootstrap, Score
from mcl_jax.metrics.specialization import WinMatrix, win_matrix
from mcl_jax.metrics.text import Tokenization

with errors_in_a_line(), needed_for("python -m mcl_jax.metrics", "metrics"):
    import tyro

Group = Literal["translation", "captioning", "diversity", "embedding", "probe", "novelty", "specialization"]


@dataclass(frozen=True)
class Config:
    """Scores K answers per item against references: quality, diversity and specialisation, with bootstrap intervals.

    FILE holds one JSON object per line: {"id": "17", "answers": [K texts], "references": [texts]}, and optionally
    "mode" (a name) and "winner" (index of a hypothesis, from 0) for specialisation. Blank answers score 0.

    Args:
      file: JSONL file, or a pipe such as /dev/stdin.
      captions: Score captions, as coco-caption does: BLEU-1 and -4, ROUGE-L, CIDEr-D, METEOR, SPICE, SPIDEr.
      metrics: Groups to compute; all by default. With --captions the groups are captioning (including diversity
        and probe), embedding, novelty and specialization.
      tokenize: Tokenizer, by sacrebleu's names: 13a for Western languages, zh for Chinese, none for text that is
        already tokenized.
      lowercase: Ignore case.
      resamples: Number of bootstrap resamples.
      level: Confidence level of the intervals.
      seed: Random seed of the bootstrap.
      encoder: Folder with config.json, tokenizer.json and model.safetensors; the installed MiniLM by default.
      corenlp: Folder with the two jars of CoreNLP 3.6.0, for SPICE.
      bert: Folder of a BERT such as bert-base-uncased, for BERTScore.
      fluency: Folder of FENSE's error detector, as safetensors.
      train: Text file with one training answer per line, for novelty.
      json: File for the scores, including the values of each item.
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    captions: bool = False
    metrics: Annotated[tuple[Group, ...], tyro.conf.arg(name="metrics")] = ()
    tokenize: Literal["13a", "intl", "zh", "char", "none"] = "13a"
    lowercase: bool = False
    resamples: int = 1000
    level: float = 0.95
    seed: int = 0
    encoder: Path | None = None
    corenlp: Path | None = None
    bert: Path | None = None
    fluency: Path | None = None
    train: Path | None = None
    json: Path | None = None


def main(config: Config) -> dict[str, Score | NotAvailable]:
    """Reads the items, scores them, prints the scores, and writes them if asked to.

    Raises:
      ValueError: if a file or an option is wrong; names it.
    """
    bootstrap = Bootstrap(config.resamples, config.level, config.seed)
    tokenization = Tokenization(config.tokenize, config.lowercase)
    if config.captions and tokenization != Tokenization():
        raise ValueError("--captions uses coco-caption's tokenizer; leave out --tokenize and --lowercase")
    if config.json is not None and not config.json.parent.is_dir():
        raise ValueError(f"--json needs a file in an existing folder, got {config.json}")
    if config.json is not None and config.json.is_dir():
        raise ValueError(f"--json needs a file, got the folder {config.json}")
    train = None if config.train is None else _training_texts(config.train, config.captions, tokenization)
    folders = {name: getattr(config, name) for name in ("encoder", "corenlp", "bert", "fluency")}
    settings = Settings(tokenization, bootstrap, **folders, train=train)
    items = read_items(config.file)
    scores = score_items(items, config.metrics or None, settings, CAPTION_GROUPS if config.captions else GROUPS)
    matrix = _win_matrix(items) if "purity" in scores else None

    try:
        if config.json is not None:
            write_json(config.json, _document(config, items, scores, matrix))
    finally:  # print the table even if the file cannot be written
        _print(config, items, scores, matrix)
    return scores


def _training_texts(file: Path, captions: bool, tokenization: Tokenization) -> TrainingTexts:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be UTF-8 text with one training answer per line ({error})") from None
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise ValueError(f"{file} must hold at least one training answer, got an empty file")
    return TrainingTexts.of_captions(texts) if captions else TrainingTexts.of(texts, tokenization)


def _win_matrix(items: Sequence[Item]) -> WinMatrix | None:
    try:
        return win_matrix(*winners_and_modes(items))
    except ValueError:  # the scores give the reason
        return None


def _print(
    config: Config, items: Sequence[Item], scores: dict[str, Score | NotAvailable], matrix: WinMatrix | None
) -> None:
    console = rich.console.Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    interval = f"{100 * config.level:g} % interval"
    title = f"{config.file.name}: {len(items)} items, {_range(items, 'answers')}, {_range(items, 'references')}"
    rows = [(name, *_cells(score), "lower" if name in LOWER_IS_BETTER else "higher") for name, score in scores.items()]
    table(title, ("metric", "mean", interval, "items", "better"), rows, console=console)
    for reason, names in _reasons(scores).items():
        say(f"n/a: {', '.join(names)}: {reason}", console=console)
    if matrix is not None:
        rows = [(mode, *counts) for mode, counts in zip(matrix.modes, matrix.counts, strict=True)]
        table("items won by hypothesis", ("mode", *map(str, range(matrix.counts.shape[1]))), rows, console=console)


def _range(items: Sequence[Item], name: str) -> str:
    sizes = sorted({len(getattr(item, name)) for item in items})
    return f"{sizes[0]} {name}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} {name}"


def _cells(score: Score | NotAvailable) -> tuple[Any, ...]:
    if isinstance(score, NotAvailable) or math.isnan(score.mean):
        return None, None, 0
    interval = None if math.isnan(score.low) else f"{score.low:.4g} to {score.high:.4g}"
    return score.mean, interval, score.num_defined


def _reasons(scores: dict[str, Score | NotAvailable]) -> dict[str, list[str]]:
    """Returns the names of the metrics without a value, by reason."""
    reasons: dict[str, list[str]] = {}
    for name, score in scores.items():
        if isinstance(score, NotAvailable):
            reasons.setdefault(score.reason, []).append(name)
        elif math.isnan(score.mean):
            reasons.setdefault(NOT_DEFINED, []).append(name)
        elif score.num_defined == 1 and math.isnan(score.low):
            which = "all intervals" if len(score.per_item) == 1 else f"interval of {name}"
            reasons.setdefault("an interval needs at least 2 items", []).append(which)
    return {reason: list(dict.fromkeys(names)) for reason, names in reasons.items()}


def _document(
    config: Config, items: Sequence[Item], scores: dict[str, Score | NotAvailable], matrix: WinMatrix | None
) -> dict[str, Any]:
    specialization = {} if matrix is None else {"win_matrix": matrix, "win_rate": matrix.win_rate}
    return to_json(
        {"config": config, "ids": [item.id for item in items], "metrics": scores, **specialization}, non_finite="null"
    )


def cli(args: Sequence[str] | None = None) -> None:
    """Runs the command line; an error is one line on stderr with exit status 1."""
    with errors_in_a_line():
        main(tyro.cli(Config, prog="python -m mcl_jax.metrics", args=args))


if __name__ == "__main__":
    cli()
