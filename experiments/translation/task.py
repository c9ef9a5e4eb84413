"""Loads the base model, and the verses or your own text."""

from functools import partial

import mcl_jax as mcl
from experiments import datasets
from experiments.common.smollm2 import check_targets, check_template, outline, smollm2
from experiments.common.splits import usable, with_held_out, with_test_split_of
from experiments.common.task import Task
from experiments.datasets.hints import with_hints
from experiments.translation.config import Config
from mcl_jax import data, hosts
from mcl_jax.models import gguf_file, pretrained


def load(config: Config) -> Task:
    """Reads the data, and then the base, since text is read sooner than weights.

    Raises:
      ValueError: if either cannot be read; names the file, or the command that gets it.
    """
    with hosts.first_before_others("load the data"):
        corpus = load_data(config)
    return load_base(config, corpus)


def load_data(config: Config) -> data.Corpus:
    """Returns the records of all splits. A missing or wrong base is refused first."""
    config.training.check_devices()
    _check_base(config)
    given = config.data
    load_text = partial(
        datasets.load_corpus,
        data_dir=given.cache,
        sword_dir=given.sword_dir,
        wordnet_dir=given.wordnet_dir,
        locale_dir=given.locale_dir,
        source=given.source_language,
        target=given.target_language,
        most=given.wmt_pairs,
        layout=given.layout,
    )
    corpus = load_text(given.path or given.task)
    if given.test_data is not None:
        corpus = with_test_split_of(corpus, load_text(str(given.test_data), held_out=0.0))
    option = f"--data {given.path}" if given.path else f"--task {given.task}"
    seed = given.split_seed
    corpus = with_held_out(usable(corpus, option=option, training=config.training, seed=seed), seed)
    return with_hints(corpus, given.hints, seed)


def _check_base(config: Config) -> None:
    path = config.base.path or smollm2()
    if (media := pretrained.media_of(path)) is not None:
        raise ValueError(f"--base {path} must be a model for text only, but it takes {media} too")
    if config.lora.targets or not gguf_file.find(path):  # reading just the header of a GGUF file takes seconds
        check_targets(config, outline(path)[1])
    if config.data.chat:
        check_template(path)


def load_base(config: Config, corpus: data.Corpus) -> Task:
    """Reads the base with its tokenizer and its prompt."""
    options = config.base.options(config.training) | config.lora.base_options
    path = config.base.path or smollm2()
    module, params, tokenizer = mcl.models.from_pretrained(path, **options)
    prompt = data.Prompt(config.data.prompt, chat=config.data.chat)
    return Task(config, module, params, tokenizer, corpus, prompt, path)
