"""Scores of captions: the metrics of coco-caption, diversity, named nouns, and the language of each hypothesis."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import datasets
from experiments.common.decoding import Answers
from experiments.common.experiment import Columns, merged, probe_chance
from experiments.common.held_out import with_interval
from experiments.datasets import stamps
from experiments.datasets.stamp_kinds import KIND
from mcl_jax import data, metrics

LANGUAGES = ("en", "fr", "es")  # languages that `caption_language` recognises
WITHOUT_NAMES = frozenset(stamps.LANGUAGES) - {"en"} | {KIND}  # modes whose captions have no English name of the thing
WORD_ERRORS = {"oracle WER": "oracle_wer", "WER per reference": "oracle_wer_per_reference", "mean WER": "mean_wer"}
LIKELIHOOD = {
    "test loss": "test_loss",
    "above MCL": "loss_above_mcl",
    "grounding": "grounding",
    "retrieval": "retrieval",
    "noun named": "noun_named",
}
QUALITY = {
    "oracle CIDEr-D": "oracle_cider_d",
    "oracle SPIDEr": "oracle_spider",
    "oracle BLEU-1": "oracle_bleu_1",
    "mean CIDEr-D": "mean_cider_d",
}
DIVERSITY = {"Div-2": "div_2", "mBLEU-4": "mbleu_4", "purity": "purity", "win rate": "win_rate"}
COLUMNS = Columns(
    table=LIKELIHOOD | QUALITY | DIVERSITY,
    quality=("oracle CIDEr-D", "oracle_cider_d"),
    diversity=("diversity (Div-2)", "div_2"),
)
SPEECH_COLUMNS = dataclasses.replace(COLUMNS, table=LIKELIHOOD | WORD_ERRORS | DIVERSITY, errors=WORD_ERRORS)
OF_MODES = ("oracle_cider_d", "oracle_bleu_1", "oracle_spider")
WORD_ERRORS_OF_MODES = ("oracle_wer", "mean_wer")  # a mode usually has one reference


def scores(
    answers: Answers,
    records: tuple[data.Record, ...],
    split: tuple[data.Record, ...],
    train: tuple[data.Record, ...],
    known: metrics.TrainingTexts | None = None,
    transcripts: bool = False,
    **folders: Path | None,
) -> dict[str, Any]:
    """Returns all metrics of `metrics.score_captions` against all references of an item, and the `noun_scores`.

    95 % intervals are under `intervals`. A metric that cannot be computed is None, with the reason under
    `not_available`. `of_mode` has some of the metrics against the references of each mode alone. `language_rate` has,
    for each language among the modes, the share [K] of the k-th answers in that language; an empty answer has none.
    Transcripts also have the `word_errors`, here and in `of_mode`. `per_item` has the values of a metric by record [N].

    Args:
      answers: the answers.
      records: the records that were answered.
      split: all records of their split; CIDEr-D takes its document frequencies from their references.
      train: the training records, whose captions decide which nouns were seen.
      known: the training captions, against which answers are novel or not; see `training_captions`.
      transcripts: whether the records are speech, so that the references say what the words of an answer should be.
      **folders: folders of models that metrics need, see `metrics.score_captions`.
    """
    modes = sorted({target.mode for record in records for target in record.references if target.mode is not None})
    scored = metrics.score_captions(
        answers.texts, _references(records), split=_references(split), train=known, **folders
    )
    results = metrics.for_results(scored) | {"per_item": metrics.of_items(scored), **probe_chance(answers)}
    results = merged(results, noun_scores(answers, records, train))
    if transcripts:
        results = merged(results, word_errors(answers.texts, _references(records)))
    results["of_mode"] = {mode: _of_mode(answers, records, split, mode, folders, transcripts) for mode in modes}
    languages = tuple(mode for mode in modes if mode in LANGUAGES)
    if len(languages) > 1:
        results["language_rate"] = _language_rates(answers, languages)
    return results


def training_captions(train: tuple[data.Record, ...]) -> metrics.TrainingTexts:
    """Returns the captions of the training records in coco-caption's words."""
    return metrics.TrainingTexts.of_captions(target.text for record in train for target in record.targets)


def noun_scores(answers: Answers, records: tuple[data.Record, ...], train: tuple[data.Record, ...]) -> dict[str, Any]:
    """Returns the share of records of which an answer names the head noun of an English caption, with its interval.

    `noun_named` is over all records, `noun_named_seen` over those of which a noun is a word of the training captions,
    and `noun_named_unseen` over the others; `noun_items` counts both.

    Args:
      answers: the answers.
      records: the records that were answered.
      train: the training records.
    """
    captioned = {n: texts for n, record in enumerate(records) if (texts := _english(record.references))}
    references, given = list(captioned.values()), [answers.texts[n] for n in captioned]
    named = metrics.noun_named(given, references).per_item if captioned else np.zeros(0)
    seen = metrics.seen_in(references, [text for record in train for text in _english(record.targets)])
    seen, named = seen[~np.isnan(named)], named[~np.isnan(named)]
    results: dict[str, Any] = {"noun_items": {"seen": int(seen.sum()), "unseen": int((~seen).sum())}}
    missing = "none of these records has an English caption with such a head noun"
    for name, chosen in {"noun_named": seen | True, "noun_named_seen": seen, "noun_named_unseen": ~seen}.items():
        results[name] = with_interval(metrics.Bootstrap().mean(named[chosen])) if chosen.any() else None
    reasons = {name: missing for name, value in results.items() if value is None}
    return results | {"not_available": reasons}


def _english(targets: Sequence[data.Target]) -> list[str]:
    return [target.text for target in targets if target.mode not in WITHOUT_NAMES]


def _language_rates(answers: Answers, languages: tuple[str, ...]) -> dict[str, list[float]]:
    """Returns the share [K] of the k-th answers that are in each language."""
    language_of = functools.cache(lambda text: datasets.caption_language(text, languages) if text else None)
    columns = [[language_of(text) for text in column] for column in zip(*answers.texts, strict=True)]
    return {name: [float(np.mean([one == name for one in column])) for column in columns] for name in languages}


def _references(records: tuple[data.Record, ...], mode: str | None = None) -> list[list[str]]:
    """Returns the references of each record, only those of `mode` if it is given."""
    return [[target.text for target in record.references if mode in (None, target.mode)] for record in records]


def word_errors(
    answers: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    names: Sequence[str] = tuple(WORD_ERRORS.values()),
) -> dict[str, Any]:
    """Returns the word error rates of K answers per item with 95 % intervals; case and punctuation do not matter.

    `oracle_wer` is that of the best answer and `mean_wer` that of all answers, each against the reference that is
    nearest to it: the one in its own language. `oracle_wer_per_reference` is that of the best answer for each of the
    references, so it is low only if there is a right answer in every language. See `metrics.word_errors`. `per_item`
    has the rate of each item [N]; their mean weights a short item as much as a long one.
    """
    computed = {name: getattr(metrics, name)(answers, references) for name in names}
    return metrics.for_results(computed) | {"per_item": metrics.of_items(computed)}


def _of_mode(
    answers: Answers,
    records: tuple[data.Record, ...],
    split: tuple[data.Record, ...],
    mode: str,
    folders: Mapping[str, Path | None],
    transcripts: bool,
) -> dict[str, Any]:
    """Returns the scores of the answers against the references of one mode, for items that have such references."""
    references = _references(records, mode)
    having = [n for n, texts in enumerate(references) if texts]
    pairs = [answers.texts[n] for n in having], [references[n] for n in having]
    documents = [texts for texts in _references(split, mode) if texts]
    scored = metrics.score_captions(*pairs, names=OF_MODES, split=documents, **folders)
    errors = word_errors(*pairs, WORD_ERRORS_OF_MODES) if transcripts else {}
    return merged(metrics.for_results(scored), errors)
