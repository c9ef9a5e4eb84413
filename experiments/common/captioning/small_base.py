"""A small model that sees or hears, trained from scratch on captions in all languages: a base for a laptop.

Its prompt names the mode of the caption, so it answers in the language of the prompt, as large models do. It is trained
with the same step as adapters, with one "hypothesis" that holds all its parameters. Like any run it resumes, and its
folder `WORKDIR/model` is a Hugging Face folder like any base.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers as tk
from transformers import PreTrainedTokenizerFast

import mcl_jax as mcl
from experiments.common.captioning.modality import Modality
from experiments.common.perception import MediaPrompt, Perception, stacked
from experiments.common.task import spread
from mcl_jax import data, objectives
from mcl_jax.run import Run

EOS = "<|endoftext|>"
VOCABULARY = 2048


@dataclasses.dataclass(frozen=True)
class SmallBase:
    """Settings of the training of a small base.

    Attributes:
      steps: number of training steps.
      batch_size: captions per step; all of them if there are fewer.
      learning_rate: highest learning rate.
      max_length: longest example in tokens.
      eval_every: steps between evaluations; the best of these checkpoints is kept.
      eval_items: number of records to evaluate, evenly spread over the split.
      seed: random seed.
    """

    steps: int = 600
    batch_size: int = 32
    learning_rate: float = 2e-3
    max_length: int = 64
    eval_every: int = 50
    eval_items: int = 64
    seed: int = 0


def prompt_for(placeholder: str, mode: str) -> str:
    """Returns the prompt of a small base for a caption of a mode; "" stands for captions without a mode."""
    return f"{placeholder}{mode}:"


def small_base(folder: Path, settings: SmallBase, modality: Modality, corpus: data.Corpus) -> Path:
    """Trains the small base unless that is done, and returns the folder of the model.

    Args:
      folder: run directory of the training.
      settings: settings of the training.
      modality: pictures or clips.
      corpus: captions; the model is trained on "train" and evaluated on "validation".
    """
    config = dataclasses.asdict(settings) | {"corpus": corpus.name, "records": len(corpus.records)}
    with Run(folder, config) as run:
        if not run.finished:
            module, processor = modality.small(tokenizer_of(corpus.split("train"), modality.placeholder))
            params, loss = _train(run, settings, modality, module, processor, corpus)
            mcl.models.save_pretrained(folder / "model", module, params, processor)
            run.finish({"validation_loss": loss})
    return folder / "model"


def tokenizer_of(records: tuple[data.Record, ...], placeholder: str) -> PreTrainedTokenizerFast:
    """Trains a byte-pair tokenizer on the training captions."""
    model = tk.Tokenizer(tk.models.BPE())
    model.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tk.decoders.ByteLevel()
    trainer = tk.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[EOS, placeholder],
        show_progress=False,
        initial_alphabet=tk.pre_tokenizers.ByteLevel.alphabet(),
    )
    model.train_from_iterator((target.text for record in records for target in record.targets), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token=EOS, pad_token=EOS)


@dataclasses.dataclass(frozen=True)
class _PromptByMode(MediaPrompt):
    """Prompt for records with one caption each, whose mode is the source; the template is the placeholder."""

    def encode_record(self, tokenizer: Any, record: data.Record) -> np.ndarray:
        return self.processor.prompt(prompt_for(self.template, record.source), self.counts[record.id])


def _captions(records: Sequence[data.Record]) -> list[data.Record]:
    """Returns one record for each caption; those of one picture or clip share its id."""
    return [
        dataclasses.replace(record, source=target.mode or "", targets=(target,), further_references=())
        for record in records
        for target in record.targets
    ]


def _encoded(
    captions: Sequence[data.Record], prompt: _PromptByMode, settings: SmallBase, corpus: data.Corpus
) -> data.Encoded:
    """Returns the tokens of captions and of their prompts."""
    return data.encode_records(
        captions,
        prompt.processor.tokenizer,
        prompt,
        max_length=settings.max_length,
        too_long="drop",
        mode_names=corpus.modes,
    )


def _train(run: Run, settings: SmallBase, modality: Modality, module, processor, corpus) -> tuple[Any, float]:
    """Returns the parameters at the best evaluation, and the validation loss there in nats per token."""
    perception = Perception(
        module,
        {},
        processor,
        modality.read,
        lambda media: modality.inputs(processor, media),
        augment=lambda *_: {},
        cache=False,
    )
    splits = {"train": corpus.split("train"), "validation": spread(corpus.split("validation"), settings.eval_items)}
    captions = {name: _captions(records) for name, records in splits.items()}
    by_id = {record.id: record for records in splits.values() for record in records}
    prompt = _PromptByMode(modality.placeholder, processor, perception.counts(list(by_id.values())))
    encoded = {name: _encoded(records, prompt, settings, corpus) for name, records in captions.items()}

    # Cached, since reading costs more than training.
    tower_inputs = functools.cache(lambda key: perception.tower_inputs([by_id.get(key)]))

    batch_size = min(settings.batch_size, len(encoded["train"].prompts))
    shapes = data.BatchConfig(batch_size, (settings.max_length,), settings.seed)

    def inputs(name, batch):
        rows = [tower_inputs(None if i == data.NO_RECORD else captions[name][i].id) for i in batch["index"]]
        return {key: batch[key] for key in ("tokens", "target_mask")} | {"tower": stacked(rows)}

    def log_likelihood(_, params, batch, rng, vary=True):
        tower = modality.vary(rng, batch["tower"]) if vary else batch["tower"]
        tokens, variables = batch["tokens"], {"params": params}
        features = module.apply(variables, **tower, method="encode")
        hidden = module.apply(variables, tokens[:, :-1], None, features, method="hidden")
        return mcl.chunked_sequence_log_likelihood(
            hidden, module.unembedding(params), tokens[:, 1:], batch["target_mask"]
        )

    @jax.jit
    def losses(params, batch):
        log_p, tokens = log_likelihood({}, jax.tree.map(lambda x: x[0], params), batch, None, vary=False)
        return -log_p.sum(), tokens.sum()

    def evaluate(state):
        nats, tokens = map(sum, zip(*(losses(state.adapters, batch) for batch in held_out), strict=True))
        return {"eval_loss": float(nats / tokens)}

    batches = data.train_batches(encoded["train"], shapes)
    held_out = [inputs("validation", batch) for batch in data.eval_batches(encoded["validation"], shapes)]
    peak = settings.learning_rate
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, settings.steps // 10, settings.steps, peak / 100)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.1))
    step = mcl.make_train_step(log_likelihood, objectives.mle(), optimizer, backward="all")
    key = jax.random.key(settings.seed)
    params = module.init(key, jnp.zeros((1, 2), jnp.int32))["params"]
    state = mcl.TrainState.create(
        params={}, adapters=jax.tree.map(lambda x: x[None], params), optimizer=optimizer, rng=key
    )
    fitted = mcl.fit(
        step,
        state,
        batches,
        steps=settings.steps,
        run=run,
        inputs=lambda batch: inputs("train", batch),
        evaluate=evaluate,
        eval_every=settings.eval_every,
        keep_best=True,
    )
    return jax.tree.map(lambda x: x[0], fitted.state.adapters), fitted.evaluation["eval_loss"]
