"""The metrics of items by groups: `GROUPS` for texts, `CAPTION_GROUPS` for captions.

To add a group, write a function and add a line there.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mcl_jax.extras import MissingExtra
from mcl_jax.metrics import (
    bertscore,
    captioning,
    diversity,
    embedding,
    fluency,
    java,
    novelty,
    probe,
    specialization,
    translation,
)
from mcl_jax.metrics.items import Item
from mcl_jax.metrics.score import Bootstrap, Score, average, oracle
from mcl_jax.metrics.text import Texts, Tokenization, written

Metrics = dict[str, Callable[[], Score]]  # name -> function that computes the metric
Groups = Mapping[str, Callable[[Sequence[Item], "Settings"], Metrics]]
NOT_POSSIBLE = (ValueError, OSError, MissingExtra)  # errors that say why a metric is not available


@dataclass(frozen=True)
class Settings:
    """Settings of the metrics.

    Attributes:
      tokenization: splits texts into words, except captions, which use coco-caption's tokenizer.
      bootstrap: computes the intervals.
      encoder: folder of the sentence encoder; None means the installed MiniLM.
      corenlp: folder with the jars of CoreNLP 3.6.0, which SPICE needs.
      bert: folder of the BERT of BERTScore.
      fluency: folder of FENSE's detector of errors.
      train: the training texts, for novelty.
      split: references of the whole split, if the items are only a part of it; CIDEr-D counts n-grams in them.
    """

    tokenization: Tokenization = field(default_factory=Tokenization)
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    encoder: Path | None = None
    corenlp: Path | None = None
    bert: Path | None = None
    fluency: Path | None = None
    train: novelty.TrainingTexts | None = None
    split: Texts | None = None


def _once(compute: Callable[[], Any]) -> Callable[[], Any]:
    """Caches the result of the first call, or its error: Java also takes minutes to fail."""

    @functools.cache
    def first() -> tuple[Any, Exception | None]:
        try:
            return compute(), None
        except NOT_POSSIBLE as error:
            return None, error

    def again() -> Any:
        result, error = first()
        if error is not None:
            raise error
        return result

    return again


def _texts(items: Sequence[Item]) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    return [item.answers for item in items], [item.references for item in items]


def translation_metrics(items: Sequence[Item], settings: Settings) -> Metrics:
    """Metrics of translations: BLEU and chrF against references, coverage of references, BLEU among answers."""
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


def captioning_metrics(items: Sequence[Item], settings: Settings) -> Metrics:
    """Metrics of captions with coco-caption's tokens: quality against references, and diversity of the answers."""
    bootstrap = settings.bootstrap
    captions = _once(lambda: captioning.tokenize_captions(*_texts(items)))
    bleu = _once(lambda: captioning.coco_bleu(captions()))
    bleu_1, bleu_4 = (lambda: bleu()[0]), (lambda: bleu()[3])
    split = _once(lambda: None if settings.split is None else captioning.tokenize_references(settings.split))
    cider_d = _once(lambda: _telling_cider_d(captions(), split()))
    meteor = _once(lambda: java.meteor(captions()))
    spice = _once(lambda: java.spice(captions(), settings.corenlp))
    per_answer = {
        "bleu_1": lambda: bleu_1().per_answer(),
        "bleu_4": lambda: bleu_4().per_answer(),
        "rouge_l": _once(lambda: captioning.rouge_l(captions())),
        "cider_d": cider_d,
        "meteor": lambda: meteor().per_answer(),
        "spice": spice,
        "spider": lambda: [(s + c) / 2.0 for s, c in zip(spice(), cider_d(), strict=True)],
    }
    quality: Metrics = {}
    for name, values in per_answer.items():
        quality[f"oracle_{name}"] = lambda values=values: oracle(values(), bootstrap)
        quality[f"mean_{name}"] = lambda values=values: average(values(), bootstrap)
    for name, counts in {"bleu_1": bleu_1, "bleu_4": bleu_4, "meteor": meteor}.items():
        quality[f"corpus_oracle_{name}"] = lambda counts=counts: counts().corpus_oracle(bootstrap)
        quality[f"corpus_mean_{name}"] = lambda counts=counts: counts().corpus_mean(bootstrap)
    words = Tokenization("none")
    return (
        quality
        | _ngram_diversity(lambda: captions().answers, words, bootstrap)
        | {"probe_accuracy": lambda: probe.probe_accuracy(captions().answers, words, bootstrap)}
    )


def _telling_cider_d(captions: captioning.Captions, split: Sequence[Sequence[str]] | None) -> list[np.ndarray]:
    """Computes CIDEr-D, but refuses items for which it is always 0.

    Raises:
      ValueError: if all items have the same n-grams, as a single item does, so that no n-gram has a weight.
    """
    if not captioning.tells_apart(captions.references, split):
        raise ValueError(
            "CIDEr-D weights an n-gram by how few items have it in a reference, so it needs at least 2 items with "
            "different references; here it is 0 whatever the answers are"
        )
    return captioning.cider_d(captions, split)


def diversity_metrics(items: Sequence[Item], settings: Settings) -> Metrics:
    """Metrics of diversity: Div-1, Div-2, mBLEU-4 and the vocabulary."""
    return _ngram_diversity(lambda: _texts(items)[0], settings.tokenization, settings.bootstrap)


def _ngram_diversity(answers: Callable[[], Texts], tokenization: Tokenization, bootstrap: Bootstrap) -> Metrics:
    def div_2() -> Score:
        lengths = [len(words) for texts in answers() for words in tokenization.words(written(texts))]
        if lengths and max(lengths) < 2:
            raise ValueError("Div-2 counts pairs of words, but no answer has two words")
        return diversity.div_n(answers(), 2, tokenization, bootstrap)

    return {
        "div_1": lambda: diversity.div_n(answers(), 1, tokenization, bootstrap),
        "div_2": div_2,
        "mbleu_4": lambda: diversity.mbleu_4(answers(), tokenization, bootstrap),
        "corpus_mbleu_4": lambda: diversity.corpus_mbleu_4(answers(), tokenization, bootstrap),
        "vocabulary": lambda: diversity.vocabulary(answers(), tokenization),
    }


def embedding_metrics(items: Sequence[Item], settings: Settings) -> Metrics:
    """Metrics by a BERT: similarity to references, fluency, and diversity of the answers."""
    (answers, references), bootstrap = _texts(items), settings.bootstrap
    encoder = functools.cache(lambda: embedding.SentenceEncoder.load(settings.encoder))
    similarity = functools.cache(lambda: embedding.sentence_similarity(answers, references, encoder()))
    words = _once(lambda: bertscore.bert_score(answers, references, _token_encoder(settings)))
    errors = _once(lambda: fluency.fluency_errors(answers, _error_detector(settings)))
    fense = lambda: fluency.fense(errors=errors(), similarity=similarity())
    return {
        "oracle_similarity": lambda: oracle(similarity(), bootstrap),
        "mean_similarity": lambda: average(similarity(), bootstrap),
        "oracle_bert_score": lambda: oracle(words(), bootstrap),
        "mean_bert_score": lambda: average(words(), bootstrap),
        "oracle_fense": lambda: oracle(fense(), bootstrap),
        "mean_fense": lambda: average(fense(), bootstrap),
        "fluency_error_rate": lambda: average(errors(), bootstrap),
        "embedding_diversity": lambda: embedding.embedding_diversity(answers, encoder(), bootstrap),
        "vendi_score": lambda: embedding.vendi_score(answers, encoder(), bootstrap),
        "distinct_k": lambda: embedding.distinct_k(answers, encoder(), bootstrap=bootstrap),
    }


def _token_encoder(settings: Settings) -> bertscore.TokenEncoder:
    if settings.bert is None:
        raise ValueError("BERTScore needs the folder of a BERT such as bert-base-uncased, but none is configured")
    return bertscore.TokenEncoder.load(settings.bert)


def _error_detector(settings: Settings) -> fluency.ErrorDetector:
    if settings.fluency is None:
        raise ValueError("FENSE needs the folder of its error detector, but none is configured")
    return fluency.ErrorDetector.load(settings.fluency)


def probe_metrics(items: Sequence[Item], settings: Settings) -> Metrics:
    """How well a classifier tells which hypothesis wrote an answer."""
    answers, _ = _texts(items)
    return {"probe_accuracy": lambda: probe.probe_accuracy(answers, settings.tokenization, settings.bootstrap)}


def novelty_metrics(items: Sequence[Item], settings: Settings) -> Metrics:
    """Shares of the answers, and of their n-grams, that the training texts do not contain."""
    answers, _ = _texts(items)

    def known() -> novelty.TrainingTexts:
        if settings.train is None:
            raise ValueError("novelty needs the texts of the training set, but none are configured")
        return settings.train

    return {
        "novel_answers": lambda: novelty.novel_answers(answers, known(), settings.bootstrap),
        "novel_4grams": lambda: novelty.novel_4grams(answers, known(), settings.bootstrap),
    }


def specialization_metrics(items: Sequence[Item], settings: Settings) -> Metrics:
    """Purity and normalised mutual information of mode and winner, where there are modes to tell apart."""

    def known() -> tuple[list[int], list[str | int], int]:
        winners, modes, num_hypotheses = winners_and_modes(items)
        specialization.check_telling(modes, num_hypotheses)
        return winners, modes, num_hypotheses

    return {
        "purity": lambda: specialization.purity(*known(), settings.bootstrap),
        "nmi": lambda: specialization.normalized_mutual_information(*known(), settings.bootstrap),
    }


def winners_and_modes(items: Sequence[Item]) -> tuple[list[int], list[str | int], int]:
    """Returns winner [N], mode [N] and K.

    Raises:
      ValueError: if an item lacks a mode or a winner; names the first one.
    """
    for item in items:
        if item.mode is None or item.winner is None:
            raise ValueError(f"every item needs a mode and a winner, but item {item.id!r} lacks one")
    return [item.winner for item in items], [item.mode for item in items], max(len(item.answers) for item in items)


GROUPS: Groups = {
    "translation": translation_metrics,
    "diversity": diversity_metrics,
    "embedding": embedding_metrics,
    "probe": probe_metrics,
    "novelty": novelty_metrics,
    "specialization": specialization_metrics,
}
CAPTION_GROUPS: Groups = {
    "captioning": captioning_metrics,
    "embedding": embedding_metrics,
    "novelty": novelty_metrics,
    "specialization": specialization_metrics,
}
LOWER_IS_BETTER = {"pairwise_bleu", "corpus_pairwise_bleu", "mbleu_4", "corpus_mbleu_4"}  # better: more diverse
LOWER_IS_BETTER |= {"fluency_error_rate"}
