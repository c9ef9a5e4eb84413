"""Makes metrics.json: mBLEU-4 by pycocoevalcap and clusterings by scikit-learn, for the tests of mcl_jax.metrics.

Run in an environment of its own, with pycocoevalcap==1.2 (its BLEU is Python; --no-deps is enough), scikit-learn>=1.7
and numpy>=2; takes seconds:

    python tests/golden/make_metrics.py

The file holds
    answers            7 items of 3 answers, 4 to 12 words of a small vocabulary
    mbleu_4            of each item, the mean of its answers' BLEU-4 against the two others
    corpus_mbleu_4     mean over answers 1 to 3 of corpus BLEU-4
    clusterings        winner and mode of items, normalised mutual information and purity
"""

import json
from pathlib import Path

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

WORDS = ["a", "dog", "runs", "on", "the", "green", "grass"]


def sentence(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, size=rng.integers(4, 13)))


def item(rng: np.random.Generator) -> list[str]:
    """Three answers that share a beginning, so that 4-grams match."""
    start = " ".join(rng.choice(WORDS, size=4))
    return [f"{start} {sentence(rng)}" for _ in range(3)]


def bleu_4(answers: list[list[str]], k: int) -> tuple[float, list[float]]:
    """BLEU-4 of each item's answer k against its other answers: of the corpus, and of each item."""
    references = {n: [a for j, a in enumerate(texts) if j != k] for n, texts in enumerate(answers)}
    corpus, each = Bleu(4).compute_score(references, {n: [texts[k]] for n, texts in enumerate(answers)}, verbose=0)
    return corpus[3], each[3]


def clustering(name: str, winner: np.ndarray, mode: np.ndarray) -> dict:
    return {
        "name": name,
        "winner": winner.tolist(),
        "mode": mode.tolist(),
        "nmi": float(normalized_mutual_info_score(mode, winner)),
        "purity": float(contingency_matrix(mode, winner).max(axis=0).sum() / len(mode)),
    }


def main() -> None:
    rng = np.random.default_rng(1235)
    answers = [item(rng) for _ in range(7)]
    scores = [bleu_4(answers, k) for k in range(3)]
    mode, noise = rng.integers(5, size=31), rng.random(31)
    golden = {
        "answers": answers,
        "mbleu_4": np.mean([each for _, each in scores], axis=0).tolist(),
        "corpus_mbleu_4": float(np.mean([corpus for corpus, _ in scores])),
        "clusterings": [
            clustering("independent", rng.integers(3, size=31), mode),
            clustering("noisy", np.where(noise < 0.7, mode % 3, rng.integers(3, size=31)), mode),
            clustering("perfect", (mode + 2) % 5, mode),
            clustering("collapsed", np.zeros(31, int), mode),
            clustering("one mode", rng.integers(3, size=31), np.zeros(31, int)),
            clustering("one of each", np.zeros(31, int), np.zeros(31, int)),
        ],
    }
    Path(__file__).with_name("metrics.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
