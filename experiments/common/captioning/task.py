"""Loads the base model, its tower and the captions."""

import dataclasses
import zlib
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import mcl_jax as mcl
from experiments import datasets
from experiments.common.captioning.config import Config
from experiments.common.captioning.modality import Modality
from experiments.common.captioning.small_base import SmallBase, prompt_for, small_base, tokenizer_of
from experiments.common.perception import MediaPrompt, Perception
from experiments.common.smollm2 import check_targets, outline
from experiments.common.splits import usable, with_held_out, with_test_split_of
from experiments.common.task import Task
from mcl_jax import data, hosts, metrics
from mcl_jax.models import pretrained


def load(config: Config, modality: Modality, **options: Any) -> Task:
    """Reads the data and the base.

    Args:
      config: the configuration.
      modality: pictures or clips.
      **options: arguments of `mcl.models.from_pretrained`, such as scan.
    Raises:
      ValueError: if the data or the base cannot be read, or they do not fit together.
    """
    with hosts.first_before_others("load the data"):
        corpus = load_data(config, modality)
    return load_base(config, modality, corpus, **options)


def load_data(config: Config, modality: Modality) -> data.Corpus:
    """Returns the captions of all splits, with their pictures or clips. Wrong options are refused first."""
    config.training.check_devices()
    _check_base_and_prompt(config, modality)
    if config.evaluation.corenlp:
        metrics.check_spice(config.evaluation.corenlp)
    given = config.data
    check = partial(usable, needed=modality.media, option=f"--data {given.name}", training=config.training)
    corpus = datasets.load_captions(
        given.name,
        given.cache,
        given.folder,
        modes=given.kept_modes,
        families=given.families,
        spoken=given.spoken,
        check=check,
    )
    if given.test_data is not None:
        other = dataclasses.replace(given, name=given.test_data)
        chosen = {"modes": other.kept_modes, "families": given.families, "spoken": given.spoken}
        tested = datasets.load_captions(other.name, given.cache, given.test_folder, held_out=0.0, **chosen)
        corpus = with_test_split_of(corpus, tested)
    return with_held_out(check(corpus))


def _check_base_and_prompt(config: Config, modality: Modality) -> None:
    base, prompt = config.base.folder, config.data.prompt
    if base and pretrained.media_of(base) != modality.media:
        raise ValueError(
            f"--base {base} has no processor for {modality.media}; use a LLaVA-1.6, a SmolVLM or a PaliGemma "
            "for pictures, or a Qwen2-Audio or a Whisper for clips"
        )
    if config.data.chat and base is None:
        raise ValueError("--chat needs a --base with a chat template, which the small base does not have")
    if prompt and base is None and (times := prompt.count(modality.placeholder)) != 1:
        raise ValueError(
            f"--prompt must contain {modality.placeholder}, the placeholder of the small base, once, but contains it "
            f"{times} times: {prompt!r}"
        )
    if base:
        family, module = outline(base)
        check_targets(config, module)
        if prompt or config.data.chat:
            _prompt(config, family.processor.from_pretrained(base, module.config), modality.question)


def _prompt(config: Config, processor: Any, default: str) -> MediaPrompt:
    """Returns the prompt without counts. Raises a ValueError if the base does not take it as a prompt or a chat."""
    prompt = MediaPrompt(config.data.prompt or default, processor, chat=config.data.chat)
    processor.prompt(prompt.text, num_features=1)
    return prompt


def load_base(config: Config, modality: Modality, corpus: data.Corpus, **options: Any) -> Task:
    """Reads the base with its prompt and its tower. Trains a small base first if none is given."""
    if config.base.folder:
        folder, asked = config.base.folder, modality.question if config.data.chat else modality.placeholder
    else:
        mode = next(iter(config.data.kept_modes or corpus.modes), "")
        held_out = {record.id for record in corpus.split("validation")}  # may come from the training split
        with hosts.first_before_others("train a small base"):
            folder = _small(config, modality, held_out)
        asked = prompt_for(modality.placeholder, mode)
    options = config.base.options(config.training) | config.lora.base_options | options
    module, params, processor = mcl.models.from_pretrained(folder, **options)
    processor = modality.prepared(processor)
    prompt = _prompt(config, processor, asked)  # refuses a wrong one before pictures or clips are measured
    perception = Perception(
        module,
        params,
        processor,
        modality.read,
        inputs=lambda media: modality.inputs(processor, media),
        augment=lambda key, media: modality.augment(processor, key, media),
        cache=config.data.cache_features,
        mesh=config.training.device_mesh(),
        limits=modality.limits(processor),
    )
    prompt = dataclasses.replace(prompt, counts=perception.counts(corpus.records))
    return Task(config, module, params, processor.tokenizer, weighted(corpus, config), prompt, folder, perception)


def weighted(corpus: data.Corpus, config: Config) -> data.Corpus:
    """Repeats the training captions of each mode as --mode-weights says; each epoch draws one caption of a record."""
    if not config.data.mode_weights:
        return corpus
    weights = dict(zip(config.data.kept_modes, config.data.mode_weights, strict=True))
    repeat = lambda targets: tuple(target for target in targets for _ in range(weights[target.mode]))
    records = (
        dataclasses.replace(record, targets=repeat(record.targets)) if record.split == "train" else record
        for record in corpus.records
    )
    return dataclasses.replace(corpus, records=tuple(records))


def _small(config: Config, modality: Modality, held_out: Collection[str] = ()) -> Path:
    """Returns the folder of the small base of a data set, which learns the captions of all modes.

    Records whose ids are in `held_out` are in its validation split too.
    """
    given = config.data
    corpus = datasets.load_captions(given.name, given.cache, given.folder, families=given.families)
    held_out = frozenset(held_out)
    records = (dataclasses.replace(r, split="validation" if r.id in held_out else r.split) for r in corpus.records)
    corpus = dataclasses.replace(corpus, records=tuple(records)).with_validation()
    check_targets(config, modality.small(tokenizer_of(corpus.split("train"), modality.placeholder))[0])
    settings = SmallBase(steps=config.base.base_steps, max_length=config.training.max_length)
    made_of = settings, modality, corpus.made_of, [(r.id, r.split, r.targets) for r in corpus.records]
    name = f"{corpus.name.replace('/', '-')}-{zlib.crc32(repr(made_of).encode()):08x}-{config.base.base_steps}"
    return small_base(given.cache / "small-bases" / name, settings, modality, corpus)
