"""Scores of text answers: quality, diversity, style and language."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import datasets
from experiments.common.decoding import Answers
from experiments.common.experiment import probe_chance
from mcl_jax import data, metrics

SHARED = ("embedding", "probe", "novelty")  # groups of `metrics.score_items` that translations have too


def scores(
    answers: Answers,
    records: tuple[data.Record, ...],
    known: metrics.TrainingTexts | None = None,
    **folders: Path | None,
) -> dict[str, Any]:
    """Returns quality and diversity of K answers per item with 95 % intervals, as `metrics.for_results` does.

    `per_item` has the values of each metric by item [N]. Metrics by sentence embeddings, the accuracy of the probe and
    novelty are those of `metrics.score_items`; one that cannot be computed is None, with the reason under
    `not_available`.
    `likeliest_bleu` is the BLEU of the answer with the highest likelihood, and `mbr_bleu` that of the answer with the
    minimum Bayes risk (chrF); `selected_bleu` is that of the answer that a selector chooses, if there is one.
    `corpus_bleu` [K] is the corpus BLEU of the k-th answers. `style_rate` and `spanish_rate` [K] are the shares of
    archaic and of Spanish texts among the k-th answers.

    Args:
      answers: the answers.
      records: the records that were answered.
      known: the training targets, against which answers are novel or not; see `training_targets`.
      **folders: folders of models that metrics need, see `metrics.Settings`.
    """
    texts, references = answers.texts, [[target.text for target in record.references] for record in records]
    pick = lambda chosen: [[answers_of_item[k]] for answers_of_item, k in zip(texts, chosen, strict=True)]
    computed = {
        "oracle_bleu": metrics.oracle_bleu(texts, references),
        "oracle_bleu_per_reference": metrics.oracle_bleu_per_reference(texts, references),
        "mean_bleu": metrics.mean_bleu(texts, references),
        "likeliest_bleu": metrics.NotAvailable("the answers have no likelihoods"),
        "mbr_bleu": metrics.mean_bleu(pick(metrics.minimum_bayes_risk(texts)), references),
        "chrf": metrics.oracle_chrf(texts, references),
        "mean_chrf": metrics.mean_chrf(texts, references),
        "div_1": metrics.div_n(texts, 1),
        "div_2": metrics.div_n(texts, 2),
        "pairwise_bleu": metrics.pairwise_bleu(texts),
        "references_covered": metrics.reference_coverage(texts, references),
    }
    if answers.likeliest is not None:
        computed["likeliest_bleu"] = metrics.mean_bleu(pick(answers.likeliest), references)
    if answers.selected is not None:
        computed["selected_bleu"] = metrics.mean_bleu(pick(answers.selected), references)
    items = [metrics.Item(n, tuple(a), tuple(r)) for n, (a, r) in enumerate(zip(texts, references, strict=True))]
    groups = {name: metrics.GROUPS[name] for name in SHARED}
    computed |= metrics.score_items(items, settings=metrics.Settings(train=known, **folders), groups=groups)
    share = lambda rule: [float(np.mean([rule(text) for text in column])) for column in zip(*texts, strict=True)]
    return metrics.for_results(computed) | {
        "per_item": metrics.of_items(computed),
        **probe_chance(answers),
        "corpus_bleu": metrics.corpus_bleu_of_each(texts, references).tolist(),
        "style_rate": share(datasets.is_archaic),
        "spanish_rate": share(lambda text: datasets.language_of(text) == "es"),
    }


def training_targets(train: tuple[data.Record, ...]) -> metrics.TrainingTexts:
    """Returns the targets of the training records."""
    return metrics.TrainingTexts.of(target.text for record in train for target in record.targets)
