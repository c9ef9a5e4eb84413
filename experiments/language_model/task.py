"""The model, the data and the likelihood that all methods of a run share."""

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import mcl_jax as mcl
from experiments.language_model.config import Config, Method
from mcl_jax import data, objectives

# Streams of one seed.
ADAPTERS, STEPS, DECODING = range(3)


def stream(seed: int, index: int) -> jax.Array:
    """A random key of the run."""
    return jax.random.fold_in(jax.random.key(seed), index)


@dataclasses.dataclass(frozen=True)
class Task:
    """Base model, tokenizer and records.

    Attributes:
      config: of the run.
      module, params, tokenizer: of the base.
      corpus: records of all splits.
      prompt: how a source is put.
    """

    config: Config
    module: nn.Module
    params: Any
    tokenizer: Any
    corpus: data.Corpus
    prompt: data.Prompt

    def model(self, method: Method) -> mcl.Hypotheses:
        """Hypotheses of a method."""
        return mcl.Hypotheses(self.module, self.config.lora(method))

    def records(self, split: str, most: int | None = None) -> tuple[data.Record, ...]:
        """Records of a split, at most `most` of them, evenly spread over it."""
        records = self.corpus.split(split)
        if most is None or most >= len(records):
            return records
        return tuple(records[i] for i in np.linspace(0, len(records) - 1, most).round().astype(int))

    def encode(self, records: tuple[data.Record, ...]) -> data.Encoded:
        """Their tokens; over-long ones are left out, with a warning that counts them."""
        return data.encode_records(
            records, self.tokenizer, self.prompt, max_length=self.config.max_length, too_long="drop",
            mode_names=self.corpus.modes,
        )  # fmt: skip

    def log_likelihood_fn(self, method: Method):
        """(params, adapters_k, batch, rng) -> (Σ log p of the answer [B] in nats, its tokens [B])."""
        model = self.model(method)

        def log_likelihood(params, adapters_k, batch, rng):
            tokens, mask = batch["tokens"], batch["target_mask"]
            dropout_rng = rng if model.config.dropout > 0.0 else None
            hidden = model.apply(params, adapters_k, tokens[:, :-1], method="hidden", dropout_rng=dropout_rng)
            unembedding = self.module.unembedding(params)
            return mcl.chunked_sequence_log_likelihood(hidden, unembedding, tokens[:, 1:], mask)

        return log_likelihood

    def initial_state(self, method: Method, optimizer: Any) -> mcl.TrainState:
        """State at step 0."""
        adapters = self.model(method).init(
            stream(self.config.seed, ADAPTERS), self.params, jnp.zeros((1, 2), jnp.int32),
            num_hypotheses=self.config.hypotheses_of(method), method="hidden",
        )  # fmt: skip
        return mcl.TrainState.create(
            params=self.params, adapters=adapters, optimizer=optimizer, rng=stream(self.config.seed, STEPS)
        )


@dataclasses.dataclass(frozen=True)
class Likelihoods:
    """log p of held-out answers under each hypothesis.

    Attributes:
      log_p: Σ log p in nats [K, N].
      tokens: of each answer [N].
      mode: index into the corpus's modes, −1 if unknown [N].
      record: index of the source that each answers [N].
    """

    log_p: np.ndarray
    tokens: np.ndarray
    mode: np.ndarray
    record: np.ndarray

    @cached_property
    def winner(self) -> np.ndarray:
        """The likeliest hypothesis of each answer [N]."""
        return np.asarray(objectives.winners(jnp.asarray(self.log_p), jax.random.key(0)))

    @property
    def losses(self) -> np.ndarray:
        """Winner-takes-all loss of each answer, −max_k log p / tokens, in nats a token [N]."""
        return -self.log_p.max(0) / self.tokens

    @property
    def loss(self) -> float:
        """Their mean."""
        return float(self.losses.mean())

    def of_records(self, values: np.ndarray) -> np.ndarray:
        """The mean of values [N] over the answers of each source: answers of one source are not independent."""
        return np.array([values[self.record == record].mean() for record in np.unique(self.record)])


def evaluator(task: Task, method: Method):
    """`evaluate(state, encoded) -> Likelihoods`, compiled once for each length of batch."""
    log_likelihood = task.log_likelihood_fn(method)

    @jax.jit
    def run(params, adapters, batch):
        return jax.vmap(lambda a: log_likelihood(params, a, batch, None))(adapters)

    def evaluate(state, encoded):
        log_p, tokens, modes, records = [], [], [], []
        for batch in data.eval_batches(encoded, task.config.batches):
            real = batch["index"] != data.NO_RECORD
            inputs = {name: batch[name] for name in ("tokens", "target_mask")}
            sums, counts = run(state.params, state.adapters, inputs)
            log_p.append(np.asarray(sums)[:, real])
            tokens.append(np.asarray(counts)[0, real])
            modes.append(batch["mode"][real])
            records.append(batch["index"][real])
        return Likelihoods(np.concatenate(log_p, 1), *map(np.concatenate, (tokens, modes, records)))

    return evaluate


def prompts_of(task: Task, records: tuple[data.Record, ...], batch_size: int) -> Iterator[tuple[dict, int]]:
    """Batches of prompts padded on the left, all of one shape, and how many rows of each are real."""
    prompts = [task.prompt.encode(task.tokenizer, record.source) for record in records]
    longest = max(map(len, prompts))
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        rows = part + [part[-1]] * (batch_size - len(part))
        tokens, mask = np.zeros((batch_size, longest), np.int32), np.zeros((batch_size, longest), bool)
        for row, keep, prompt in zip(tokens, mask, rows, strict=True):
            row[longest - len(prompt) :], keep[longest - len(prompt) :] = prompt, True
        yield {"tokens": tokens, "mask": mask}, len(part)
