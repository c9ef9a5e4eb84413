"""All metrics of a list of items, or the reason why one is not available; the metrics themselves are in `groups`."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcl_jax.metrics.groups import (
    GROUPS,
    NOT_POSSIBLE,
    Groups,
    Settings,
    captioning_metrics,
    embedding_metrics,
    novelty_metrics,
)
from mcl_jax.metrics.items import Item
from mcl_jax.metrics.novelty import TrainingTexts
from mcl_jax.metrics.score import Bootstrap, Score
from mcl_jax.metrics.text import Texts, check_pairs

NOT_DEFINED = "no item has the two answers or references that it needs"


@dataclass(frozen=True)
class NotAvailable:
    """Stands for a metric that these items or this machine do not allow.

    Attributes:
      reason: why, as a sentence for the user.
    """

    reason: str


def score_captions(
    answers: Texts,
    references: Texts,
    bootstrap: Bootstrap | None = None,
    encoder: Path | None = None,
    corenlp: Path | None = None,
    names: Sequence[str] | None = None,
    split: Texts | None = None,
    bert: Path | None = None,
    fluency: Path | None = None,
    train: TrainingTexts | None = None,
) -> dict[str, Score | NotAvailable]:
    """Computes all metrics of K captions per item: `oracle_` is for the best answer, `mean_` over the answers.

    BLEU-1, BLEU-4, ROUGE-L, METEOR and SPICE run from 0 to 1, CIDEr-D from 0 to 10, SPIDEr = (CIDEr-D + SPICE) / 2 from
    0 to 5.5, and similarity, BERTScore and FENSE from −1 to 1. `corpus_` pools all items, as coco-caption's BLEU and
    METEOR do; its other numbers are means over items. There are also Div-1, Div-2, mBLEU-4, the vocabulary of the
    answers, their diversity by embeddings, `probe_accuracy`, and their novelty against the training captions.

    Args:
      answers: N items of K texts; blank ones score 0.
      references: N items of R texts.
      bootstrap: computes the intervals; None means 1000 resamples at 95 %.
      encoder: folder of the sentence encoder; None means the installed MiniLM.
      corenlp: folder with the jars of CoreNLP 3.6.0, which SPICE and SPIDEr need.
      names: names of the metrics to compute, for example to avoid those that need Java; None means all.
      split: references of all items of the split, for CIDEr-D's document counts; None means those of the N items.
      bert: folder of a BERT, which BERTScore needs; see `TokenEncoder.load`.
      fluency: folder of the detector of errors, which FENSE needs; see `ErrorDetector.load`.
      train: the training captions, for novelty; see `TrainingTexts.of_captions`.
    Returns:
      By name, a `Score`, or `NotAvailable` with the reason, for example METEOR without Java.
    Raises:
      ValueError: if items do not match or lack an answer or a reference, or a name is unknown.
    """
    check_pairs(answers, references)
    items = [Item(n, tuple(a), tuple(r)) for n, (a, r) in enumerate(zip(answers, references, strict=True))]
    folders = {"encoder": encoder, "corenlp": corenlp, "bert": bert, "fluency": fluency}
    settings = Settings(bootstrap=bootstrap or Bootstrap(), **folders, train=train, split=split)
    groups = (captioning_metrics, embedding_metrics, novelty_metrics)
    metrics = {name: metric for group in groups for name, metric in group(items, settings).items()}
    if unknown := sorted(set(names or ()) - set(metrics)):
        raise ValueError(f"names must be among {list(metrics)}, got {unknown}")
    return {name: _attempt(metrics[name]) for name in (metrics if names is None else names)}


def score_items(
    items: Sequence[Item],
    names: Sequence[str] | None = None,
    settings: Settings | None = None,
    groups: Groups | None = None,
) -> dict[str, Score | NotAvailable]:
    """Computes the metrics of items, in the order of the groups.

    Args:
      items: at least one item.
      names: names of the groups to compute; None means all.
      settings: tokenization, bootstrap, folders.
      groups: available groups; None means `GROUPS`.
    Returns:
      By name, a `Score` or `NotAvailable`.
    Raises:
      ValueError: if a group does not exist, or none of the metrics of a requested group is available.
    """
    groups = GROUPS if groups is None else groups
    unknown = sorted(set(names or ()) - set(groups))
    if unknown:
        raise ValueError(f"metrics must be among {list(groups)}, got {unknown}")
    scores: dict[str, Score | NotAvailable] = {}
    for group in names or groups:
        metrics = {name: _attempt(metric) for name, metric in groups[group](items, settings or Settings()).items()}
        missing = [score.reason for score in metrics.values() if isinstance(score, NotAvailable)]
        if names and len(missing) == len(metrics):
            raise ValueError(f"no metric of {group!r} is available: {missing[0]}")
        scores |= metrics
    return scores


def for_results(scores: Mapping[str, Score | NotAvailable]) -> dict[str, Any]:
    """Converts scores for results.json: means by name, then `intervals` and the reasons in `not_available`.

    A metric without a value is None and has a reason; one without an interval, such as that of a single item, is not in
    `intervals`.
    """
    reasons = {name: score.reason for name, score in scores.items() if isinstance(score, NotAvailable)}
    known = {name: score for name, score in scores.items() if name not in reasons}
    reasons |= {name: NOT_DEFINED for name, score in known.items() if math.isnan(score.mean)}
    means = {name: None if name in reasons else known[name].mean for name in scores}
    intervals = {
        name: [score.low, score.high]
        for name, score in known.items()
        if math.isfinite(score.low) and name not in reasons
    }
    return means | {"intervals": intervals, "not_available": reasons}


def of_items(scores: Mapping[str, Score | NotAvailable], digits: int = 6) -> dict[str, list[float | None]]:
    """Returns the values per item [N] by name, for tests of the difference of two methods; None where undefined.

    A `corpus_` metric has none, since it pools the items.

    Args:
      scores: scores by name.
      digits: significant digits that are kept.
    """
    return {
        name: [None if math.isnan(value) else float(f"{value:.{digits}g}") for value in score.per_item]
        for name, score in scores.items()
        if isinstance(score, Score) and not name.startswith("corpus_")
    }


def _attempt(metric: Callable[[], Score]) -> Score | NotAvailable:
    try:
        return metric()
    except NOT_POSSIBLE as error:
        return NotAvailable(str(error))
