"""Decoding of held-out sources, and the scores of what comes out."""

import time
from typing import Any

import jax
import numpy as np

from experiments.translation.config import Method
from experiments.translation.task import DECODING, Task, prompts_of, stream
from mcl_jax import data, generation, metrics
from mcl_jax.generation import Decoder

BATCH = 8
SAMPLES = 20


def answer(
    task: Task, method: Method, adapters: Any, records: tuple[data.Record, ...], decoder: Decoder
) -> tuple[list[list[str]], float]:
    """The answers to each source, one a hypothesis or, of one hypothesis, its n; and the seconds it took."""
    tokenizer, answers, started = task.tokenizer, [], time.monotonic()
    for number, (prompts, real) in enumerate(prompts_of(task, records, min(BATCH, len(records)))):
        found = generation.generate(
            task.model(method), task.params, adapters, prompts, decoder, task.config.max_new_tokens,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
            rng=jax.random.fold_in(stream(task.config.seed, DECODING), number),
        )  # fmt: skip
        rows = np.asarray(found).transpose(1, 0, 2, 3).reshape(len(found[0]), -1, found.shape[-1])[:real]
        answers += [[tokenizer.decode(row, skip_special_tokens=True).strip() for row in item] for item in rows]
    return answers, time.monotonic() - started


def scores(answers: list[list[str]], records: tuple[data.Record, ...]) -> dict[str, Any]:
    """Quality and diversity of K answers an item, with 95 % bootstrap intervals under `intervals`."""
    references = [[target.text for target in record.references] for record in records]
    found = {
        "oracle_bleu": metrics.oracle_bleu(answers, references),
        "mean_bleu": metrics.mean_bleu(answers, references),
        "chrf": metrics.oracle_chrf(answers, references),
        "mean_chrf": metrics.mean_chrf(answers, references),
        "div_1": metrics.div_n(answers, 1),
        "div_2": metrics.div_n(answers, 2),
        "pairwise_bleu": metrics.pairwise_bleu(answers),
        "references_covered": metrics.reference_coverage(answers, references),
    }
    intervals = {name: [score.low, score.high] for name, score in found.items()}
    return {name: score.mean for name, score in found.items()} | {"intervals": intervals}


def style_rate(answers: list[list[str]]) -> list[float]:
    """Share of archaic answers of each hypothesis [K]."""
    return [float(np.mean([data.is_archaic(text) for text in of])) for of in zip(*answers, strict=True)]


def language_rate(answers: list[list[str]]) -> list[float]:
    """Share of Spanish answers of each hypothesis [K]."""
    return [float(np.mean([data.language_of(text) == "es" for text in of])) for of in zip(*answers, strict=True)]


def samples(records: tuple[data.Record, ...], answers: dict[str, list[list[str]]]) -> list[dict[str, Any]]:
    """The first sources with their references and the answers of all methods."""
    return [
        {
            "id": record.id,
            "source": record.source,
            "references": [{"text": target.text, "mode": target.mode} for target in record.references],
            "answers": {name: of[i] for name, of in answers.items()},
        }
        for i, record in enumerate(records[:SAMPLES])
    ]
