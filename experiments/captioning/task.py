"""Base model, tower and captions."""

import dataclasses
import zlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp

import mcl_jax as mcl
from experiments.captioning.config import Config
from experiments.captioning.modality import Modality
from experiments.captioning.small_base import SmallBase, prompt_for, small_base
from experiments.language_model.perception import MediaPrompt, Perception
from experiments.language_model.task import Task
from mcl_jax import data
from mcl_jax.models import pretrained


def load(config: Config, modality: Modality, **options: Any) -> Task:
    """Reads the data and the base, which is trained first if none is given; `options` are the base's, such as scan.

    Raises:
      ValueError: if either cannot be had, or they do not fit together.
    """
    if config.base and pretrained.media_of(config.base) != modality.media:
        raise ValueError(
            f"--base {config.base} has no processor of {modality.media}; needed a LLaVA-1.6 for pictures, a "
            "Qwen2-Audio for clips"
        )
    if config.prompt and config.base is None and (found := config.prompt.count(modality.placeholder)) != 1:
        raise ValueError(
            f"--prompt needs {modality.placeholder} of the small base once, got it {found} times: {config.prompt!r}"
        )
    corpus = data.load_captions(
        config.data, config.cache, config.folder, modes=config.kept_modes, families=config.families
    )
    if (found := f"{corpus.records[0].media.kind}s") != modality.media:
        raise ValueError(f"--data {config.data} has {found}, needed {modality.media}")
    if (number := len(corpus.split("train"))) < config.batch_size:
        raise ValueError(
            f"--data {config.data} has {number} records to train on, fewer than --batch-size {config.batch_size}"
        )
    if config.base:
        folder, asked = config.base, modality.placeholder
    else:
        mode = next(iter(config.kept_modes or corpus.modes), "")
        folder, asked = _small(config, modality), prompt_for(modality.placeholder, mode)
    asked = config.prompt or asked
    options = {
        "dtype": jnp.dtype(config.dtype),
        "param_dtype": jnp.dtype(config.dtype),
        "remat": config.remat,
    } | options
    module, params, processor = mcl.models.from_pretrained(folder, **options)
    processor.prompt(asked, num_features=1)  # refuses one that does not fit before pictures or clips are measured
    perception = Perception(
        module, params, processor, modality.read,
        inputs=lambda media: modality.inputs(processor, media),
        augment=lambda key, media: modality.augment(processor, key, media),
        cache=config.cache_features, devices=config.devices,
    )  # fmt: skip
    prompt = MediaPrompt(asked, processor, perception.counts(corpus.records))
    return Task(config, module, params, processor.tokenizer, weighted(corpus, config), prompt, perception)


def weighted(corpus: data.Corpus, config: Config) -> data.Corpus:
    """Training captions of each mode as many times as --mode-weights says: one of them is drawn in each epoch."""
    if not config.mode_weights:
        return corpus
    weights = dict(zip(config.kept_modes, config.mode_weights, strict=True))
    repeat = lambda targets: tuple(target for target in targets for _ in range(weights[target.mode]))
    records = (
        dataclasses.replace(record, targets=repeat(record.targets)) if record.split == "train" else record
        for record in corpus.records
    )
    return data.Corpus(corpus.name, tuple(records), corpus.left_out)


def _small(config: Config, modality: Modality) -> Path:
    """The folder of the small base of a data set, which knows the captions of all modes."""
    corpus = data.load_captions(config.data, config.cache, config.folder, families=config.families)
    settings = SmallBase(steps=config.base_steps, max_length=config.max_length)
    made_of = settings, modality, [(r.id, r.split, r.targets) for r in corpus.records]
    name = f"{corpus.name.replace('/', '-')}-{zlib.crc32(repr(made_of).encode()):08x}-{config.base_steps}"
    return small_base(config.cache / "small-bases" / name, settings, modality, corpus)
