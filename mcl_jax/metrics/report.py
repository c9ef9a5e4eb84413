"""All metrics of a list of items, by groups. A further group is a function and a line in `GROUPS`."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mcl_jax.metrics import diversity, embedding, specialization, translation
from mcl_jax.metrics.items import Item
from mcl_jax.metrics.score import Bootstrap, Score, average, oracle
from mcl_jax.metrics.text import Tokenization

Metrics = dict[str, Callable[[], Score]]  # by name, not computed yet


@dataclass(frozen=True)
class Settings:
    """How items are scored.

    Attributes:
        tokenization: how text becomes words.
        bootstrap: of the intervals.
        encoder: folder of the sentence encoder; the installed MiniLM if None.
    """

    tokenization: Tokenization = field(default_factory=Tokenization)
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    encoder: Path | None = None


@dataclass(frozen=True)
class NotAvailable:
    """A metric that these items or this machine do not allow, and why."""

    reason: str


def score_items(
    items: Sequence[Item], groups: Sequence[str] | None = None, settings: Settings | None = None
) -> dict[str, Score | NotAvailable]:
    """Scores by name, in the order of the groups.

    Args:
        items: at least one.
        groups: of `GROUPS`; None is all of them.
        settings: tokenization, bootstrap, encoder.

    Raises:
        ValueError: for a group that does not exist, or one asked for by name of which no metric is available.
    """
    unknown = sorted(set(groups or ()) - set(GROUPS))
    if unknown:
        raise ValueError(f"metrics must be of {list(GROUPS)}, got {unknown}")
    scores: dict[str, Score | NotAvailable] = {}
    for group in groups or GROUPS:
        metrics = {name: _attempt(metric) for name, metric in GROUPS[group](items, settings or Settings()).items()}
        missing = [score.reason for score in metrics.values() if isinstance(score, NotAvailable)]
        if groups and len(missing) == len(metrics):
            raise ValueError(f"no metric of {group!r} is available: {missing[0]}")
        scores |= metrics
    return scores


def _attempt(metric: Callable[[], Score]) -> Score | NotAvailable:
    try:
        return metric()
    except ValueError as error:
        return NotAvailable(str(error))


def _texts(items: Sequence[Item]) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    return [item.answers for item in items], [item.references for item in items]


def translation_metrics(items: Sequence[Item], settings: Settings) -> Metrics:
    """BLEU and chrF against the references, coverage of these, and BLEU among answers."""
    (answers, references), bootstrap = _texts(items), settings.bootstrap
    pairs = (answers, references, settings.tokenization)
    bleu = functools.cache(lambda: translation.sentence_bleu(*pairs))
    chrf = functools.cache(lambda: translation.sentence_chrf(*pairs))
    return {
        "oracle_bleu": lambda: oracle(bleu(), bootstrap),
        "oracle_bleu_per_reference": lambda: translation.oracle_bleu_per_reference(*pairs, bootstrap),
        "mean_bleu": lambda: average(bleu(), bootstrap),
        "corpus_oracle_bleu": lambda: translation.corpus_oracle_bleu(*pairs, bootstrap),
        "oracle_chrf": lambda: oracle(chrf(), bootstrap),
        "mean_chrf": lambda: average(chrf(), bootstrap),
        "leave_one_out_bleu": lambda: translation.leave_one_out_bleu(*pairs, bootstrap),
        "corpus_leave_one_out_bleu": lambda: translation.corpus_leave_one_out_bleu(*pairs, bootstrap),
        "references_covered": lambda: translation.references_covered(*pairs, bootstrap),
        "reference_coverage": lambda: translation.reference_coverage(*pairs, bootstrap),
        "pairwise_bleu": lambda: translation.pairwise_bleu(answers, settings.tokenization, bootstrap),
        "corpus_pairwise_bleu": lambda: translation.corpus_pairwise_bleu(answers, settings.tokenization, bootstrap),
    }


def diversity_metrics(items: Sequence[Item], settings: Settings) -> Metrics:
    """Div-1, Div-2 and mBLEU-4."""
    options = (settings.tokenization, settings.bootstrap)
    answers, _ = _texts(items)
    return {
        "div_1": lambda: diversity.div_n(answers, 1, *options),
        "div_2": lambda: diversity.div_n(answers, 2, *options),
        "mbleu_4": lambda: diversity.mbleu_4(answers, *options),
        "corpus_mbleu_4": lambda: diversity.corpus_mbleu_4(answers, *options),
    }


def embedding_metrics(items: Sequence[Item], settings: Settings) -> Metrics:
    """Similarity and diversity by sentence embeddings."""
    (answers, references), bootstrap = _texts(items), settings.bootstrap
    encoder = functools.cache(lambda: embedding.SentenceEncoder.load(settings.encoder))
    similarity = functools.cache(lambda: embedding.sentence_similarity(answers, references, encoder()))
    return {
        "oracle_similarity": lambda: oracle(similarity(), bootstrap),
        "mean_similarity": lambda: average(similarity(), bootstrap),
        "embedding_diversity": lambda: embedding.embedding_diversity(answers, encoder(), bootstrap),
    }


def specialization_metrics(items: Sequence[Item], settings: Settings) -> Metrics:
    """Purity and normalised mutual information of mode and winner."""
    return {
        "purity": lambda: specialization.purity(*winners_and_modes(items), settings.bootstrap),
        "nmi": lambda: specialization.normalized_mutual_information(*winners_and_modes(items), settings.bootstrap),
    }


def winners_and_modes(items: Sequence[Item]) -> tuple[list[int], list[str | int], int]:
    """(winner [N], mode [N], K).

    Raises:
        ValueError: names the first item without a mode or a winner.
    """
    for item in items:
        if item.mode is None or item.winner is None:
            raise ValueError(f"every item needs mode and winner, item {item.id!r} lacks one")
    return [item.winner for item in items], [item.mode for item in items], max(len(item.answers) for item in items)


GROUPS: dict[str, Callable[[Sequence[Item], Settings], Metrics]] = {
    "translation": translation_metrics,
    "diversity": diversity_metrics,
    "embedding": embedding_metrics,
    "specialization": specialization_metrics,
}
LOWER_IS_BETTER = {"pairwise_bleu", "corpus_pairwise_bleu", "mbleu_4", "corpus_mbleu_4"}  # better: more diverse
