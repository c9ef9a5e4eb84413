"""The model, the data and the likelihood that all methods of a run share."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import numpy as np

import mcl_jax as mcl
from experiments.common import lists
from experiments.common.config import LIST, Config, Method
from experiments.common.perception import Perception, example_call
from mcl_jax import data, objectives, packing
from mcl_jax.models.narrowed import Narrow

T = TypeVar("T")

# Random number streams of one seed.
ADAPTERS, STEPS, DECODING = range(3)


def stream(seed: int, index: int) -> jax.Array:
    """Returns the random key of a stream."""
    return jax.random.fold_in(jax.random.key(seed), index)


def spread(items: tuple[T, ...], most: int | None) -> tuple[T, ...]:
    """Returns at most `most` of the items, evenly spread; all of them if None."""
    if most is None or most >= len(items):
        return items
    return tuple(items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int))


class Items(NamedTuple):
    """Records and their tokens."""

    records: tuple[data.Record, ...]
    encoded: data.Encoded


@dataclasses.dataclass(frozen=True)
class Task:
    """Base model, tokenizer and records.

    Attributes:
      config: configuration of the run.
      module, params, tokenizer: the base.
      corpus: records of all splits.
      prompt: the form of the prompts.
      base: path of the base.
      perception: the tower of pictures or clips, if records have them.
    """

    config: Config
    module: nn.Module
    params: Any
    tokenizer: Any
    corpus: data.Corpus
    prompt: data.Prompt
    base: Path
    perception: Perception | None = None

    def model(self, method: Method) -> mcl.Hypotheses | mcl.SoftPrompts | mcl.MixtureOfExperts:
        """Returns the hypotheses of a method, or its experts."""
        if method == "prompts":
            return mcl.SoftPrompts(self.module, self._prompt_length)
        config = self.config.lora_of(method, mcl.models.lora_targets(self.module))
        if method == "moe":
            experts = self.config.experts.experts_per_token
            return mcl.MixtureOfExperts(self.module, config, self.config.num_hypotheses, experts)
        return mcl.Hypotheses(self.module, config)

    @cached_property
    def _prompt_length(self) -> int:
        adapters = jax.eval_shape(lambda: self._adapters("mcl"))
        parameters = sum(leaf.size for leaf in jax.tree.leaves(adapters)) / self.config.num_hypotheses
        return self.config.prompts.length(parameters, jax.eval_shape(self.module.unembedding, self.params).shape[0])

    @cached_property
    def limits(self) -> dict[str, Any]:
        """The arguments of `generation.decode` besides the decoder; prints once what the folder of the base decides."""
        found = self.config.decoding.limits(self.base)
        end = self.tokenizer.eos_token_id
        ends = tuple(dict.fromkeys((end, *found.get("eos_token_id", ()))))
        return found | {"eos_token_id": ends, "pad_token_id": end, "tokenizer": self.tokenizer}

    def records(self, split: str, most: int | None = None) -> tuple[data.Record, ...]:
        """Returns at most `most` records of a split, evenly spread over it; of train, at most --train-items."""
        records = self.corpus.split(split)
        if split == "train":
            records = spread(records, self.config.training.train_items)
        return spread(records, most)

    def learned(self, method: Method) -> "Task":
        """Returns the task that a method is trained on: that of list has lists as targets, which are longer."""
        if method != LIST:
            return self
        corpus, most = lists.listed_corpus(self.corpus, self.config.seed)
        config = self.config.replace(max_length=most * self.config.training.max_length)
        return dataclasses.replace(self, corpus=corpus, config=config)

    def encode(self, records: tuple[data.Record, ...]) -> Items:
        """Tokenises records. Over-long ones are left out, and a line on the console counts them."""
        encoded = data.encode_records(
            records,
            self.tokenizer,
            self.prompt,
            max_length=self.config.training.max_length,
            too_long="drop",
            mode_names=self.corpus.modes,
            answer_start=self.config.training.answer_start,
        )
        return Items(records, encoded)

    def inputs(self, items: Items, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Returns the inputs of the likelihood: tokens and target_mask, and the features of pictures or clips."""
        if packing.is_packed(batch):
            return {name: batch[name] for name in packing.INPUTS}
        records = [None if i == data.NO_RECORD else items.records[i] for i in batch["index"]]
        return {name: batch[name] for name in ("tokens", "target_mask")} | self.features(records)

    def features(self, records: Sequence[data.Record | None]) -> dict[str, Any]:
        """Returns {"features": [B, N, D]}, or {} if the records are text."""
        return {} if self.perception is None else {"features": self.perception.features(records)}

    def log_likelihood_fn(
        self, method: Method, *, train: bool = False, chunk_size: int = 256, dtype: Narrow | None = None
    ) -> Any:
        """Returns a function (params, adapters_k, batch, rng) -> (log p of the answers [B] in nats, tokens [B]).

        Args:
          method: the method.
          train: whether to subtract the balance loss of a sparse mixture of experts.
          chunk_size: see `chunked_sequence_log_likelihood`.
          dtype: dtype of the products, see `mcl_jax.models.narrowed`; that of the base by default.
        """
        model = self.model(method)
        if dtype is not None:
            model = dataclasses.replace(model, module=mcl.models.narrowed(self.module, dtype))
        balanced = train and method == "moe" and model.top_k is not None
        weight = self.config.experts.balance_weight if balanced else None
        return mcl.language_model.log_likelihood_fn(model, chunk_size=chunk_size, balance_weight=weight)

    def _adapters(self, method: Method) -> Any:
        """Returns what a method trains, at step 0."""
        positional, keywords = example_call(self.module)
        return self.model(method).init(
            stream(self.config.seed, ADAPTERS),
            self.params,
            *positional,
            num_hypotheses=self.config.hypotheses_of(method),
            method="hidden",
            **keywords,
        )

    def initial_state(
        self, method: Method, optimizer: Any, objective: objectives.Objective, num_examples: int | None = None
    ) -> mcl.TrainState:
        """Returns the state at step 0, with the winners of `num_examples` if it is given."""
        return mcl.TrainState.create(
            params=self.params,
            adapters=self._adapters(method),
            optimizer=optimizer,
            rng=stream(self.config.seed, STEPS),
            objective=objective,
            num_examples=num_examples,
        )


def prompts_of(
    task: Task, records: tuple[data.Record, ...], batch_size: int
) -> Iterator[tuple[tuple[data.Record, ...], dict[str, Any], int]]:
    """Yields batches of records, their prompts (padded on the left to one shape), and the number of real rows."""
    prompts = [task.prompt.encode_record(task.tokenizer, record) for record in records]
    longest = max(map(len, prompts))
    for start in range(0, len(prompts), batch_size):
        part = range(start, min(start + batch_size, len(prompts)))
        chosen = [*part, *[part[-1]] * (batch_size - len(part))]
        batch, rows = tuple(records[i] for i in chosen), [prompts[i] for i in chosen]
        tokens, mask = np.zeros((batch_size, longest), np.int32), np.zeros((batch_size, longest), bool)
        for row, keep, prompt in zip(tokens, mask, rows, strict=True):
            row[longest - len(prompt) :], keep[longest - len(prompt) :] = prompt, True
        yield batch, {"tokens": tokens, "mask": mask} | task.features(batch), len(part)
