"""What captions are worth: coco-caption's metrics, diversity, and the language of what each hypothesis says."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from experiments import datasets
from experiments.common.decoding import Answers
from experiments.common.experiment import Columns
from mcl_jax import data, metrics

LANGUAGES = ("en", "fr", "es")  # those that `caption_language` tells apart
COLUMNS = Columns(
    table={
        "test loss": "test_loss",
        "above MCL": "loss_above_mcl",
        "oracle CIDEr-D": "oracle_cider_d",
        "oracle SPIDEr": "oracle_spider",
        "oracle BLEU-1": "oracle_bleu_1",
        "mean CIDEr-D": "mean_cider_d",
        "Div-2": "div_2",
        "mBLEU-4": "mbleu_4",
        "purity": "purity",
        "win rate": "win_rate",
    },
    quality=("oracle CIDEr-D", "oracle_cider_d"),
    diversity=("diversity (Div-2)", "div_2"),
)
OF_MODES = ("oracle_cider_d", "oracle_bleu_1", "oracle_spider")


def scores(
    answers: Answers, records: tuple[data.Record, ...], split: tuple[data.Record, ...], corenlp: Path | None = None
) -> dict[str, Any]:
    """All of `metrics.score_captions` against all references of an item, with 95 % intervals under `intervals`.

    What cannot be had is None, with the reason under `not_available`. Besides `of_mode`, a few of them against the
    references of each mode alone, and `language_rate`, of each language among the modes: the share of the k-th answers
    that are in it [K]; an empty one is in none.

    Args:
      records: those with answers.
      split: all records of their split, in whose references CIDEr-D counts its documents.
      corenlp: folder with what SPICE and SPIDEr need, see `metrics.score_captions`.
    """
    modes = sorted({target.mode for record in records for target in record.references if target.mode is not None})
    found = metrics.score_captions(answers.texts, _references(records), corenlp=corenlp, split=_references(split))
    results = metrics.for_results(found)
    results["of_mode"] = {mode: _of_mode(answers, records, split, mode, corenlp) for mode in modes}
    languages = tuple(mode for mode in modes if mode in LANGUAGES)
    if len(languages) > 1:
        of = functools.cache(lambda text: datasets.caption_language(text, languages) if text else None)
        share = lambda language: [float(np.mean([of(t) == language for t in column])) for column in _columns(answers)]
        results["language_rate"] = {language: share(language) for language in languages}
    return results


def _columns(answers: Answers) -> list[tuple[str, ...]]:
    """The k-th answers of all items, for each k."""
    return list(zip(*answers.texts, strict=True))


def _references(records: tuple[data.Record, ...], mode: str | None = None) -> list[list[str]]:
    """The references of each record, of a mode if one is given."""
    of = lambda record: [target.text for target in record.references if mode in (None, target.mode)]
    return [of(record) for record in records]


def _of_mode(
    answers: Answers, records: tuple[data.Record, ...], split: tuple[data.Record, ...], mode: str, corenlp: Path | None
) -> dict[str, Any]:
    """Scores of the answers to items that have references of a mode, against these, and what is `not_available`."""
    references = _references(records, mode)
    having = [n for n, texts in enumerate(references) if texts]
    pairs = [answers.texts[n] for n in having], [references[n] for n in having]
    of_split = [texts for texts in _references(split, mode) if texts]
    found = metrics.score_captions(*pairs, corenlp=corenlp, names=OF_MODES, split=of_split)
    results = metrics.for_results(found)
    return {name: results[name] for name in (*OF_MODES, "not_available")}
