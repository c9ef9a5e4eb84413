"""Scores of captions: the metrics of coco-caption, diversity, and the language of each hypothesis."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from experiments import datasets
from experiments.common.decoding import Answers
from experiments.common.experiment import Columns
from mcl_jax import data, metrics

LANGUAGES = ("en", "fr", "es")  # languages that `caption_language` recognises
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
    """Returns all metrics of `metrics.score_captions` against all references of an item.

    95 % intervals are under `intervals`. A metric that cannot be computed is None, with the reason under
    `not_available`. `of_mode` has some of the metrics against the references of each mode alone. `language_rate` has,
    for each language among the modes, the share [K] of the k-th answers in that language; an empty answer has none.

    Args:
      answers: the answers.
      records: the records that were answered.
      split: all records of their split; CIDEr-D takes its document frequencies from their references.
      corenlp: folder with the files that SPICE and SPIDEr need, see `metrics.score_captions`.
    """
    modes = sorted({target.mode for record in records for target in record.references if target.mode is not None})
    scored = metrics.score_captions(answers.texts, _references(records), corenlp=corenlp, split=_references(split))
    results = metrics.for_results(scored)
    results["of_mode"] = {mode: _of_mode(answers, records, split, mode, corenlp) for mode in modes}
    languages = tuple(mode for mode in modes if mode in LANGUAGES)
    if len(languages) > 1:
        results["language_rate"] = _language_rates(answers, languages)
    return results


def _language_rates(answers: Answers, languages: tuple[str, ...]) -> dict[str, list[float]]:
    """Returns the share [K] of the k-th answers that are in each language."""
    language_of = functools.cache(lambda text: datasets.caption_language(text, languages) if text else None)
    columns = [[language_of(text) for text in column] for column in zip(*answers.texts, strict=True)]
    return {name: [float(np.mean([one == name for one in column])) for column in columns] for name in languages}


def _references(records: tuple[data.Record, ...], mode: str | None = None) -> list[list[str]]:
    """Returns the references of each record, only those of `mode` if it is given."""
    return [[target.text for target in record.references if mode in (None, target.mode)] for record in records]


def _of_mode(
    answers: Answers, records: tuple[data.Record, ...], split: tuple[data.Record, ...], mode: str, corenlp: Path | None
) -> dict[str, Any]:
    """Returns the scores of the answers against the references of one mode, for items that have such references."""
    references = _references(records, mode)
    having = [n for n, texts in enumerate(references) if texts]
    pairs = [answers.texts[n] for n in having], [references[n] for n in having]
    documents = [texts for texts in _references(split, mode) if texts]
    scored = metrics.score_captions(*pairs, corenlp=corenlp, names=OF_MODES, split=documents)
    results = metrics.for_results(scored)
    return {name: results[name] for name in (*OF_MODES, "not_available")}
