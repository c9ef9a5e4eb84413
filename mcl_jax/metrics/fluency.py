"""FENSE: similarity to references, and a penalty for answers that are not fluent."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mcl_jax.metrics import bert_folder
from mcl_jax.metrics.bert_folder import BertFolder, hidden_states
from mcl_jax.metrics.text import Texts, check_answers, is_blank

HEAD = ("clf.weight", "clf.bias")
PENALTY = 0.9  # share of the similarity that an error costs
THRESHOLD = 0.9  # an answer has an error if the detector gives it a higher probability
MAX_TOKENS = 64


@dataclass(frozen=True)
class ErrorDetector(BertFolder):
    """FENSE's detector of errors: a BERT, and a linear layer on the hidden state of [CLS].

    Attributes:
      weight: weights of the last class, "error", [D].
      bias: its bias.
    """

    weight: Float[np.ndarray, " D"] = field(repr=False)
    bias: float

    @classmethod
    def load(cls, path: str | Path) -> "ErrorDetector":
        """Reads a folder with config.json and tokenizer.json of its BERT, and model.safetensors.

        The tensors are those of the authors' checkpoint (`echecker_clotho_audiocaps_base.ckpt`, under "state_dict"),
        with the names that they have there.

        Raises:
          ValueError: if a file is missing or damaged, or holds another kind of model; names it.
          MissingExtra: if tokenizers is not installed.
        """
        folder = Path(path)
        bert, tensors = bert_folder.read(folder, "FENSE", MAX_TOKENS, prefix="encoder.")
        shapes = {name: tensors[name].shape if name in tensors else None for name in HEAD}
        weight, bias = shapes.values()
        if weight is None or bias is None or weight != (*bias, bert.config.hidden_size):
            raise ValueError(
                f"{folder / 'model.safetensors'} must hold clf.weight [classes, {bert.config.hidden_size}] and "
                f"clf.bias [classes] of FENSE's error detector, got {shapes}"
            )
        return cls(bert.config, bert.params, bert.tokenizer, tensors[HEAD[0]][-1], float(tensors[HEAD[1]][-1]))

    def probabilities(self, texts: Sequence[str]) -> Float[np.ndarray, " N"]:
        """Returns the probability that each text has an error; 1 for a blank one."""
        plain = [re.sub(r"[^\w\s]", "", text).lower() for text in texts]
        found = {text: 1.0 for text in plain if is_blank(text)}
        for batch, tokens, mask in self.batches(plain):
            first = np.asarray(hidden_states(self.config, self.params, tokens, mask))[: len(batch), 0]
            found.update(zip(batch, 1.0 / (1.0 + np.exp(-(first @ self.weight + self.bias))), strict=True))
        return np.array([found[text] for text in plain], np.float64)


def fluency_errors(answers: Texts, detector: ErrorDetector) -> list[np.ndarray]:
    """Decides whether every answer has an error of fluency: 1 if its probability is above 0.9, else 0.

    Args:
      answers: N items of K texts; a blank one has an error.
      detector: judges the texts without case and punctuation.
    Returns:
      N vectors [K]; for `score.average`.
    Raises:
      ValueError: if there are no items, or an item has no answers.
    """
    check_answers(answers)
    errors = detector.probabilities([text for texts in answers for text in texts]) > THRESHOLD
    return np.split(errors.astype(np.float64), np.cumsum([len(texts) for texts in answers])[:-1])


def fense(similarity: Sequence[np.ndarray], errors: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Computes FENSE of every answer: its similarity to the references, times 0.1 if it has an error of fluency.

    The authors' similarity is that of paraphrase-TinyBERT-L6-v2; another encoder gives other numbers.

    Args:
      similarity: N vectors [K] of `embedding.sentence_similarity`.
      errors: N vectors [K] of `fluency_errors`.
    Returns:
      N vectors [K]; for `score.oracle` and `score.average`.

    Source: Zhou et al. (2022), "Can audio captions be evaluated with image caption metrics?".
    """
    return [s * (1.0 - PENALTY * e) for s, e in zip(similarity, errors, strict=True)]
