"""BERTScore: similarity of answers to references word for word, by the vectors that a BERT gives to words."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mcl_jax.metrics import bert_folder
from mcl_jax.metrics.bert_folder import BertFolder, hidden_states
from mcl_jax.metrics.text import Texts, check_pairs, written

DEPTH = 3 / 4  # share of the layers whose output is compared: the authors' choice of 9 of 12, and of 18 of 24


@dataclass(frozen=True)
class TokenEncoder(BertFolder):
    """Encodes the tokens of texts as unit vectors, with the lower three quarters of the layers of a BERT.

    Its attributes are those of `BertFolder`.
    """

    @classmethod
    def load(cls, path: str | Path) -> "TokenEncoder":
        """Reads a folder with config.json, tokenizer.json and model.safetensors, such as that of bert-base-uncased.

        Raises:
          ValueError: if a file is missing or damaged, or the model is no BERT; names it.
          MissingExtra: if tokenizers is not installed.
        """
        bert, _ = bert_folder.read(Path(path), "BERTScore", depth=DEPTH)
        return cls(bert.config, bert.params, bert.tokenizer)

    def encode(self, texts: Sequence[str]) -> dict[str, Float[np.ndarray, "T D"]]:
        """Returns the unit vectors of each text's tokens, from [CLS] to [SEP], by text; none for a blank one."""
        vectors = {text: np.zeros((0, self.config.hidden_size), np.float32) for text in texts}
        for batch, tokens, mask in self.batches(texts):
            hidden = np.asarray(hidden_states(self.config, self.params, tokens, mask))
            for text, states, length in zip(batch, hidden, mask.sum(axis=1), strict=False):
                vectors[text] = states[:length] / np.linalg.norm(states[:length], axis=1, keepdims=True)
        return vectors


def bert_score(answers: Texts, references: Texts, encoder: TokenEncoder) -> list[np.ndarray]:
    """Computes BERTScore's F1 of every answer, the best over its item's references: 2 P R / (P + R).

    P is the mean, over the tokens of the answer, of the highest cosine with a token of the reference, and R the same
    with answer and reference exchanged. As in the authors' package, [CLS] and [SEP] are no tokens of the mean, but
    others may be compared with them. There are neither weights by rarity nor a rescaling by a baseline. F1 is 0 if
    P + R is not above 0.

    Args:
      answers: N items of K texts; a blank one has 0.
      references: N items of R texts; blank ones are ignored.
      encoder: encodes the tokens.
    Returns:
      N vectors [K], at most 1; for `score.oracle` and `score.average`.
    Raises:
      ValueError: if items do not match, or lack an answer or a reference.

    Source: Zhang et al. (2020), "BERTScore: evaluating text generation with BERT".
    """
    check_pairs(answers, references)
    vectors = encoder.encode([text for items in (answers, references) for texts in items for text in texts])
    return [
        np.array([max(_f1(vectors[a], vectors[r]) for r in written(right)) for a in given])
        for given, right in zip(answers, references, strict=True)
    ]


def _f1(answer: Float[np.ndarray, "T D"], reference: Float[np.ndarray, "S D"]) -> float:
    if min(len(answer), len(reference)) <= 2:  # blank, or [CLS] [SEP]
        return 0.0
    cosines = answer @ reference.T
    precision, recall = cosines.max(axis=1)[1:-1].mean(), cosines.max(axis=0)[1:-1].mean()
    return float(2.0 * precision * recall / (precision + recall)) if precision + recall > 0.0 else 0.0
