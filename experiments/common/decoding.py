"""Decoding of answers to held-out sources."""

import dataclasses
import time
from functools import partial
from typing import Any

import jax
import numpy as np

import mcl_jax as mcl
from experiments.common import lists
from experiments.common.config import Method
from experiments.common.decoders import AnyDecoder, ExpertsAlone, Listed, TestTimeAugmentation, budget
from experiments.common.task import DECODING, Task, prompts_of, spread, stream
from mcl_jax import data, generation, hosts
from mcl_jax.run import Run

SAMPLES = 20


@dataclasses.dataclass(frozen=True)
class Answers:
    """K answers to each of N sources: one per hypothesis, or n of a single hypothesis.

    Attributes:
      texts: N items of K texts.
      log_likelihoods: log-likelihood of each answer under all hypotheses together, in nats per token; None if it has
        none.
      seconds: time of decoding, including compilation.
      rows: sequences that are decoded side by side for a source, under all hypotheses, each at the cost of a forward
        pass for every token; 0 if no model decodes.
      selected: the number of the answer to each source that a selector chooses; None without a selector.
      written: how many of the K answers a list had before some were repeated; None if there are no lists.
    """

    texts: list[list[str]]
    log_likelihoods: list[list[float | None]]
    seconds: float
    rows: int = 0
    selected: list[int] | None = None
    written: list[int] | None = None

    @property
    def costs(self) -> dict[str, float]:
        """The seconds of decoding and the rows, for the results; of lists also the mean number of answers in them."""
        written = {} if self.written is None else {"answers_written": float(np.mean(self.written))}
        return {"decode_seconds": self.seconds, "decode_rows": self.rows} | written

    @property
    def likeliest(self) -> list[int] | None:
        """The number of the likeliest answer to each source; None if answers have no likelihoods."""
        if any(None in scores for scores in self.log_likelihoods):
            return None
        return [int(np.argmax(scores)) for scores in self.log_likelihoods]

    def split(self, num_answers: int) -> "Answers":
        """Returns the answers in lists, of which each source has one."""
        texts, written = zip(*[lists.split(text, num_answers) for (text,) in self.texts], strict=True)
        unknown = [[None] * num_answers] * len(texts)
        return dataclasses.replace(self, texts=[*texts], log_likelihoods=unknown, written=[*written])


def answer(
    task: Task,
    run: Run,
    name: str,
    state: mcl.TrainState,
    records: tuple[data.Record, ...],
    decoder: AnyDecoder,
) -> Answers:
    """Decodes the answers of a method to each source; stops if the run is asked to stop.

    Args:
      task: the task.
      run: the run.
      name: name in the results: the method, and the decoder if there are several.
      state: the trained state.
      records: records with the sources.
      decoder: the decoder.
    Returns:
      The answers.
    """
    method: Method = name.partition("/")[0]
    model, texts, scores, seconds = task.model(method), [], [], 0.0
    rows = budget(decoder)[0] * task.config.hypotheses_of(method)
    if isinstance(decoder, ExpertsAlone):
        model, adapters = mcl.moe.experts_alone(model, state.adapters)
        state, decoder = state.replace(adapters=adapters), decoder.decoder
    limits, num_listed = task.limits, decoder.n if isinstance(decoder, Listed) else None
    if num_listed is not None:
        limits = limits | {"max_new_tokens": num_listed * limits["max_new_tokens"]}
        decoder = decoder.decoder
    stops = limits.get("stop_strings", ())
    mesh, size = task.config.training.device_mesh(), min(task.config.decoding.decode_batch, len(records))
    with run.progress(len(records), 0, f"{name} answers") as progress:
        for number, (batch, prompts, real) in enumerate(prompts_of(task, records, size)):
            if hosts.any_of(run.stop_requested):
                run.stop()
            started = time.monotonic()
            rng = jax.random.fold_in(stream(task.config.seed, DECODING), number)
            decoded = jax.block_until_ready(_decode(task, model, state, batch, prompts, decoder, limits, rng))
            seconds += time.monotonic() - started
            score = partial(generation.log_likelihoods, model, state.params, state.adapters, prompts, mesh=mesh)
            log_p = [score(one) for one in decoded]
            for tokens in np.concatenate([_items(one.tokens) for one in decoded], axis=1)[:real]:
                texts.append([generation.text_of(task.tokenizer, row, stops) for row in tokens])
            mixed = [_items(generation.mixture_scores(p, one.lengths)) for p, one in zip(log_p, decoded, strict=True)]
            scores += np.concatenate(mixed, axis=1)[:real].tolist()
            progress.update(len(texts))
    found = Answers(texts, scores, seconds, rows)
    return found if num_listed is None else found.split(num_listed)


def _decode(task: Task, model, state, batch, prompts, decoder, limits, rng) -> list[generation.Generation]:
    """Decodes a batch once, or once for each augmentation of its images or clips."""
    asked = [prompts]
    if isinstance(decoder, TestTimeAugmentation):
        keys = jax.random.split(rng, (decoder.n, len(batch)))
        asked = [prompts | {"features": task.perception.augmented(batch, row)} for row in keys]
        decoder = decoder.decoder
    return [
        generation.decode(
            model,
            state.params,
            state.adapters,
            inputs,
            decoder,
            **limits,
            rng=rng,
            mesh=task.config.training.device_mesh(),
        )
        for inputs in asked
    ]


def _items(x: Any) -> np.ndarray:
    """Reshapes [K, B, n, ...] to [B, K·n, ...]."""
    x = np.asarray(x).swapaxes(0, 1)
    return x.reshape(len(x), -1, *x.shape[3:])


def samples(records: tuple[data.Record, ...], answers: dict[str, Answers]) -> list[dict[str, Any]]:
    """Returns evenly spread sources with references, and the answers of all methods with their log-likelihoods."""
    return [
        {
            "id": record.id,
            "source": record.source,
            "references": [{"text": target.text, "mode": target.mode} for target in record.references],
            "answers": {name: given.texts[i] for name, given in answers.items()},
            "log_likelihoods": {name: given.log_likelihoods[i] for name, given in answers.items()},
        }
        for i, record in spread(tuple(enumerate(records)), SAMPLES)
    ]
