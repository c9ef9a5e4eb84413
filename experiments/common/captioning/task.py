"""Base model, tower and captions."""

import dataclasses
import zlib
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp

import mcl_jax as mcl
from experiments import datasets
from experiments.common.captioning.config import Config
from experiments.common.captioning.modality import Modality
from experiments.common.captioning.small_base import SmallBase, prompt_for, small_base, tokenizer_of
from experiments.common.perception import MediaPrompt, Perception
from experiments.common.smollm2 import check_targets, outline
from experiments.common.splits import usable, with_validation
from experiments.common.task import Task
from mcl_jax import data, metrics
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
    if config.base:
        family, module = outline(config.base)
        check_targets(config, module)
        if config.prompt:
            family.processor.from_pretrained(config.base, module.config).prompt(config.prompt, num_features=1)
    if config.corenlp:
        metrics.check_spice(config.corenlp)
    check = partial(usable, needed=modality.media, option=f"--data {config.data}", batch_size=config.batch_size)
    corpus = datasets.load_captions(
        config.data, config.cache, config.folder, modes=config.kept_modes, families=config.families, check=check
    )
    corpus = with_validation(check(corpus))
    if config.base:
        folder, asked = config.base, modality.placeholder
    else:
        mode = next(iter(config.kept_modes or corpus.modes), "")
        held_out = {record.id for record in corpus.split("validation")}  # some may be of the training split
        folder, asked = _small(config, modality, held_out), prompt_for(modality.placeholder, mode)
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
    return dataclasses.replace(corpus, records=tuple(records))


def _small(config: Config, modality: Modality, held_out: Collection[str] = ()) -> Path:
    """The folder of the small base of a data set, which knows the captions of all modes.

    Records whose ids are in `held_out` are for its validation too.
    """
    corpus = datasets.load_captions(config.data, config.cache, config.folder, families=config.families)
    held_out = frozenset(held_out)
    records = (dataclasses.replace(r, split="validation" if r.id in held_out else r.split) for r in corpus.records)
    corpus = dataclasses.replace(corpus, records=tuple(records)).with_validation()
    check_targets(config, modality.small(tokenizer_of(corpus.split("train"), modality.placeholder))[0])
    settings = SmallBase(steps=config.base_steps, max_length=config.max_length)
    made_of = settings, modality, corpus.made_of, [(r.id, r.split, r.targets) for r in corpus.records]
    name = f"{corpus.name.replace('/', '-')}-{zlib.crc32(repr(made_of).encode()):08x}-{config.base_steps}"
    return small_base(config.cache / "small-bases" / name, settings, modality, corpus)
