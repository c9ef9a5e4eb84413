"""Chooses and orders the metrics of columns and axes, and knows whether higher is better."""

from collections.abc import Sequence

from experiments.compare.aggregate import Number, Row
from mcl_jax.data.records import describe_unknown
from mcl_jax.metrics.groups import LOWER_IS_BETTER

# Known metrics in the order of the columns. Each may have a prefix and be followed by ".mode". Unknown metrics come
# last. Unknown metrics, differences from LoRA-MCL (which itself has none) and budgets have no best value.
LOSSES = ("test_loss", "loss_of_mode")
DIFFERENCES = ("loss_above_mcl", "answer_loss_above_mcl")
RELEVANCE = ("grounding", "retrieval", "noun_named", "noun_named_seen", "noun_named_unseen")
WORD_ERRORS = ("wer", "wer_per_reference")
QUALITY = (
    "bleu",
    "bleu_per_reference",
    "bleu_1",
    "bleu_4",
    "chrf",
    "rouge_l",
    "meteor",
    "cider_d",
    "spice",
    "spider",
    "similarity",
    "bert_score",
    "fense",
    "fluency_error_rate",
    "references_covered",
    "reference_coverage",
)
DIVERSITY = (
    "div_1",
    "div_2",
    "pairwise_bleu",
    "mbleu_4",
    "vocabulary",
    "embedding_diversity",
    "vendi_score",
    "distinct_k",
    "novel_answers",
    "novel_4grams",
)
SPECIALISATION = ("purity", "mutual_information", "nmi", "probe_accuracy")
BUDGET = ("trained_parameters", "decode_rows")
COST = ("seconds", "decode_seconds")
ORDER = (*LOSSES, *DIFFERENCES, *RELEVANCE, *WORD_ERRORS, *QUALITY, *DIVERSITY, *SPECIALISATION, *BUDGET, *COST)
PREFIXES = ("", "oracle_", "mean_", "likeliest_", "mbr_", "selected_", "corpus_", "corpus_oracle_", "corpus_mean_")
PLACES = {prefix + name: (i, j) for i, name in enumerate(ORDER) for j, prefix in enumerate(PREFIXES)}
LAST = (len(ORDER), 0)
LOWER = {*LOSSES, *WORD_ERRORS, *COST, *LOWER_IS_BETTER}

QUALITY_AXES = ("oracle_bleu", "oracle_spider", "oracle_cider_d", "oracle_similarity")  # the first that all rows have


def higher_is_better(metric: str) -> bool | None:
    """Whether higher values are better; None if that is unknown."""
    place = _place(metric)
    return None if place == LAST or (name := ORDER[place[0]]) in (*DIFFERENCES, *BUDGET) else name not in LOWER


def _place(metric: str) -> tuple[int, int]:
    """Returns the place of a column, by name and prefix."""
    return PLACES.get(metric.partition(".")[0], LAST)


def choose(rows: Sequence[Row], asked: Sequence[str] = ()) -> list[str]:
    """Returns the requested columns, or all metrics that are not lists, in order.

    Raises:
      ValueError: if no run has a requested column; names the nearest one.
    """
    known = list(dict.fromkeys(metric for row in rows for metric in row.values))
    if unknown := [metric for metric in asked if metric not in known]:
        raise ValueError(f"--columns {describe_unknown(unknown[0], known)}")
    scalar = [metric for metric in known if not any(isinstance(row.values.get(metric), str) for row in rows)]
    return list(asked) or sorted(scalar, key=_place)


def shortened(columns: Sequence[str], quality: str, diversity: str) -> list[str]:
    """Returns the columns that fit on a console."""
    mean = "mean_" + quality.removeprefix("oracle_")
    short = ("test_loss", quality, mean, "div_1", diversity, "purity")
    return [metric for metric in columns if metric in short]


def axis(rows: Sequence[Row], option: str, asked: str | None, defaults: Sequence[str] = ()) -> str:
    """Returns the metric of an axis: the requested one, or the first default that every row has as a number.

    Raises:
      ValueError: if no row has the metric, or it is unknown whether higher is better; names the nearest one.
    """

    def has(row: Row, metric: str) -> bool:
        return isinstance(row.values.get(metric), Number)

    if asked is None:
        asked = next((metric for metric in defaults if all(has(row, metric) for row in rows)), None)
    known = [
        metric
        for metric in choose(rows)
        if any(has(row, metric) for row in rows) and higher_is_better(metric) is not None
    ]
    if asked is None:
        raise ValueError(
            f"{option} needs one of the metrics {known}, since none of the defaults {list(defaults)} is in all runs"
        )
    if asked not in known:
        raise ValueError(f"{option} {describe_unknown(asked, known)}")
    return asked
