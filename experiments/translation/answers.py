"""Decoding of held-out sources, and the scores of what comes out."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

import mcl_jax as mcl
from experiments.translation.config import Method
from experiments.translation.task import DECODING, Task, prompts_of, stream
from mcl_jax import data, generation, metrics
from mcl_jax.generation import Decoder

BATCH = 8
SAMPLES = 20


@dataclasses.dataclass(frozen=True)
class Answers:
    """K answers to each of N sources: one a hypothesis or, of one hypothesis, its n.

    Attributes:
      texts: N items of K texts.
      log_likelihoods: of each under all hypotheses of the method together, in nats a token.
      seconds: of decoding, compilation included.
    """

    texts: list[list[str]]
    log_likelihoods: list[list[float]]
    seconds: float


def answer(
    task: Task, method: Method, state: mcl.TrainState, records: tuple[data.Record, ...], decoder: Decoder
) -> Answers:
    """The answers of a method to each source."""
    tokenizer, model, texts, scores, seconds = task.tokenizer, task.model(method), [], [], 0.0
    for number, (prompts, real) in enumerate(prompts_of(task, records, min(BATCH, len(records)))):
        started = time.monotonic()
        found = generation.decode(
            model, state.params, state.adapters, prompts, decoder, task.config.max_new_tokens,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
            rng=jax.random.fold_in(stream(task.config.seed, DECODING), number),
        )  # fmt: skip
        jax.block_until_ready(found)
        seconds += time.monotonic() - started
        log_p = generation.log_likelihoods(model, state.params, state.adapters, prompts, found)
        for tokens in _items(found.tokens)[:real]:
            texts.append([tokenizer.decode(row, skip_special_tokens=True).strip() for row in tokens])
        scores += _items(generation.mixture_scores(log_p, found.lengths))[:real].tolist()
    return Answers(texts, scores, seconds)


def _items(x: Any) -> np.ndarray:
    """[K, B, n, ...] -> [B, K·n, ...]."""
    x = np.asarray(x).swapaxes(0, 1)
    return x.reshape(len(x), -1, *x.shape[3:])


def scores(answers: Answers, records: tuple[data.Record, ...]) -> dict[str, Any]:
    """Quality and diversity of K answers an item, with 95 % bootstrap intervals under `intervals`.

    `likeliest_bleu` is of the answer of highest likelihood, `mbr_bleu` of that of minimum Bayes risk (chrF).
    """
    texts, references = answers.texts, [[target.text for target in record.references] for record in records]
    likeliest = [int(np.argmax(scores)) for scores in answers.log_likelihoods]
    pick = lambda chosen: [[of[k]] for of, k in zip(texts, chosen, strict=True)]
    found = {
        "oracle_bleu": metrics.oracle_bleu(texts, references),
        "oracle_bleu_per_reference": metrics.oracle_bleu_per_reference(texts, references),
        "mean_bleu": metrics.mean_bleu(texts, references),
        "likeliest_bleu": metrics.mean_bleu(pick(likeliest), references),
        "mbr_bleu": metrics.mean_bleu(pick(metrics.minimum_bayes_risk(texts)), references),
        "chrf": metrics.oracle_chrf(texts, references),
        "mean_chrf": metrics.mean_chrf(texts, references),
        "div_1": metrics.div_n(texts, 1),
        "div_2": metrics.div_n(texts, 2),
        "pairwise_bleu": metrics.pairwise_bleu(texts),
        "references_covered": metrics.reference_coverage(texts, references),
    }
    intervals = {name: [score.low, score.high] for name, score in found.items()}
    return {name: score.mean for name, score in found.items()} | {"intervals": intervals}


def rates(answers: Answers) -> dict[str, list[float]]:
    """Shares of archaic (`style_rate`) and of Spanish answers (`spanish_rate`) of each hypothesis [K]."""
    share = lambda of, rule: [float(np.mean([rule(text) for text in texts])) for texts in zip(*of, strict=True)]
    return {
        "style_rate": share(answers.texts, data.is_archaic),
        "spanish_rate": share(answers.texts, lambda text: data.language_of(text) == "es"),
    }


def samples(records: tuple[data.Record, ...], answers: dict[str, Answers]) -> list[dict[str, Any]]:
    """The first sources with their references, and the answers of all methods with their log-likelihoods."""
    return [
        {
            "id": record.id,
            "source": record.source,
            "references": [{"text": target.text, "mode": target.mode} for target in record.references],
            "answers": {name: of.texts[i] for name, of in answers.items()},
            "log_likelihoods": {name: of.log_likelihoods[i] for name, of in answers.items()},
        }
        for i, record in enumerate(records[:SAMPLES])
    ]
