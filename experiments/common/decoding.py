"""Decoding of held-out sources."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

import mcl_jax as mcl
from experiments.common.config import Method, TestTimeAugmentation
from experiments.common.task import DECODING, Task, prompts_of, spread, stream
from mcl_jax import data, generation
from mcl_jax.generation import Decoder
from mcl_jax.run import Run

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
    task: Task,
    run: Run,
    name: str,
    state: mcl.TrainState,
    records: tuple[data.Record, ...],
    decoder: Decoder | TestTimeAugmentation,
) -> Answers:
    """The answers of a method to each source; stops where the run is asked to.

    Args:
      name: of the results: the method and, of several, the decoder.
    """
    method: Method = name.partition("/")[0]
    model, texts, scores, seconds = task.model(method), [], [], 0.0
    with run.progress(len(records), 0, f"{name} answers") as progress:
        for number, (of_batch, prompts, real) in enumerate(prompts_of(task, records, min(BATCH, len(records)))):
            if run.stop_requested:
                run.stop()
            started = time.monotonic()
            rng = jax.random.fold_in(stream(task.config.seed, DECODING), number)
            found = jax.block_until_ready(_decode(task, model, state, of_batch, prompts, decoder, rng))
            seconds += time.monotonic() - started
            log_p = [generation.log_likelihoods(model, state.params, state.adapters, prompts, of) for of in found]
            for tokens in np.concatenate([_items(of.tokens) for of in found], axis=1)[:real]:
                texts.append([task.tokenizer.decode(row, skip_special_tokens=True).strip() for row in tokens])
            rows = [_items(generation.mixture_scores(p, of.lengths)) for p, of in zip(log_p, found, strict=True)]
            scores += np.concatenate(rows, axis=1)[:real].tolist()
            progress.update(len(texts))
    return Answers(texts, scores, seconds)


def _decode(task: Task, model, state, of_batch, prompts, decoder, rng) -> list[generation.Generation]:
    """Answers to a batch: of the prompts as they are, or of each of the changed pictures or clips."""
    asked = [prompts]
    if isinstance(decoder, TestTimeAugmentation):
        keys = jax.random.split(rng, (decoder.n, len(of_batch)))
        asked = [prompts | {"features": task.perception.augmented(of_batch, row)} for row in keys]
        decoder = decoder.decoder
    eos = task.tokenizer.eos_token_id
    return [
        generation.decode(
            model,
            state.params,
            state.adapters,
            inputs,
            decoder,
            task.config.max_new_tokens,
            eos_token_id=eos,
            pad_token_id=eos,
            repetition_penalty=task.config.repetition_penalty,
            rng=rng,
        )
        for inputs in asked
    ]


def _items(x: Any) -> np.ndarray:
    """[K, B, n, ...] -> [B, K·n, ...]."""
    x = np.asarray(x).swapaxes(0, 1)
    return x.reshape(len(x), -1, *x.shape[3:])


def samples(records: tuple[data.Record, ...], answers: dict[str, Answers]) -> list[dict[str, Any]]:
    """Some sources, evenly spread, with their references, and the answers of all methods with their log-likelihoods."""
    return [
        {
            "id": record.id,
            "source": record.source,
            "references": [{"text": target.text, "mode": target.mode} for target in record.references],
            "answers": {name: of.texts[i] for name, of in answers.items()},
            "log_likelihoods": {name: of.log_likelihoods[i] for name, of in answers.items()},
        }
        for i, record in spread(tuple(enumerate(records)), SAMPLES)
    ]
