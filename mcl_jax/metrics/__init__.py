"""Metrics of K answers per item: quality against references, diversity of the answers, specialisation of hypotheses.

Texts are given as `answers` (N items of K texts) and `references` (N items of R texts). Every metric returns a `Score`:
one value per item, the mean, and a bootstrap interval. Blank answers are allowed.

    score = metrics.oracle_bleu(answers, references)
    score.per_item, score.mean, score.low, score.high
    scores = metrics.score_captions(answers, references)  # by name; an unavailable metric gives its reason

`python -m mcl_jax.metrics FILE.jsonl [--captions]` computes all of them. Reading order: `score`, `text`, `bleu`,
`translation`, `diversity`, `coco_tokenizer`, `captioning`, `java`, `bert`, `bert_folder`, `embedding`, `bertscore`,
`fluency`, `selection`, `specialization`, `calibration`, `usage`, `probe`, `novelty`, `relevance`, `nouns`, `nearest`,
`word_errors`, `items`, `groups`, `report`.
"""

from mcl_jax.metrics.bertscore import TokenEncoder, bert_score
from mcl_jax.metrics.calibration import calibration_error
from mcl_jax.metrics.captioning import Captions, Counts, cider_d, coco_bleu, rouge_l, tokenize_captions
from mcl_jax.metrics.diversity import corpus_mbleu_4, div_n, mbleu_4, vocabulary
from mcl_jax.metrics.embedding import (
    EncoderNotFoundError,
    SentenceEncoder,
    distinct_k,
    embedding_diversity,
    mean_similarity,
    oracle_similarity,
    sentence_similarity,
    vendi_score,
)
from mcl_jax.metrics.fluency import ErrorDetector, fense, fluency_errors
from mcl_jax.metrics.groups import GROUPS, Settings
from mcl_jax.metrics.items import Item, read_items
from mcl_jax.metrics.java import JavaMetricError, check_spice, meteor, spice
from mcl_jax.metrics.nearest import nearest_captions
from mcl_jax.metrics.nouns import head_noun, noun_named, seen_in
from mcl_jax.metrics.novelty import TrainingTexts, novel_4grams, novel_answers
from mcl_jax.metrics.probe import probe_accuracy
from mcl_jax.metrics.relevance import derangement, grounding, num_candidates, retrieval, with_distractors
from mcl_jax.metrics.report import NotAvailable, for_results, of_items, score_captions, score_items
from mcl_jax.metrics.score import Bootstrap, Score, average, difference, oracle
from mcl_jax.metrics.selection import minimum_bayes_risk
from mcl_jax.metrics.specialization import WinMatrix, normalized_mutual_information, purity, win_matrix
from mcl_jax.metrics.text import Tokenization
from mcl_jax.metrics.translation import (
    corpus_bleu_of_each,
    corpus_leave_one_out_bleu,
    corpus_oracle_bleu,
    corpus_pairwise_bleu,
    leave_one_out_bleu,
    mean_bleu,
    mean_chrf,
    oracle_bleu,
    oracle_bleu_per_reference,
    oracle_chrf,
    pairwise_bleu,
    reference_coverage,
    references_covered,
    sentence_bleu,
    sentence_chrf,
)
from mcl_jax.metrics.usage import droppable, effective_number, removal_cost, worthless
from mcl_jax.metrics.word_errors import mean_wer, oracle_wer, oracle_wer_per_reference

__all__ = [
    "GROUPS",
    "Bootstrap",
    "Captions",
    "Counts",
    "EncoderNotFoundError",
    "ErrorDetector",
    "Item",
    "JavaMetricError",
    "NotAvailable",
    "Score",
    "SentenceEncoder",
    "Settings",
    "TokenEncoder",
    "Tokenization",
    "TrainingTexts",
    "WinMatrix",
    "average",
    "bert_score",
    "calibration_error",
    "check_spice",
    "cider_d",
    "coco_bleu",
    "corpus_bleu_of_each",
    "corpus_leave_one_out_bleu",
    "corpus_mbleu_4",
    "corpus_oracle_bleu",
    "corpus_pairwise_bleu",
    "derangement",
    "difference",
    "distinct_k",
    "div_n",
    "droppable",
    "effective_number",
    "embedding_diversity",
    "fense",
    "fluency_errors",
    "for_results",
    "grounding",
    "head_noun",
    "leave_one_out_bleu",
    "mbleu_4",
    "mean_bleu",
    "mean_chrf",
    "mean_similarity",
    "mean_wer",
    "meteor",
    "minimum_bayes_risk",
    "nearest_captions",
    "normalized_mutual_information",
    "noun_named",
    "novel_4grams",
    "novel_answers",
    "num_candidates",
    "of_items",
    "oracle",
    "oracle_bleu",
    "oracle_bleu_per_reference",
    "oracle_chrf",
    "oracle_similarity",
    "oracle_wer",
    "oracle_wer_per_reference",
    "pairwise_bleu",
    "probe_accuracy",
    "purity",
    "read_items",
    "reference_coverage",
    "references_covered",
    "removal_cost",
    "retrieval",
    "rouge_l",
    "score_captions",
    "score_items",
    "seen_in",
    "sentence_bleu",
    "sentence_chrf",
    "sentence_similarity",
    "spice",
    "tokenize_captions",
    "vendi_score",
    "vocabulary",
    "win_matrix",
    "with_distractors",
    "worthless",
]
