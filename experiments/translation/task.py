"""Base model and verses, or anyone's text."""

import jax.numpy as jnp

import mcl_jax as mcl
from experiments.language_model.base import smollm2
from experiments.language_model.task import Task
from experiments.translation.config import Config
from mcl_jax import data
from mcl_jax.models import pretrained


def load(config: Config) -> Task:
    """Reads the base and the data.

    Raises:
      ValueError: if either cannot be had; the message names the file or the command that gets it.
    """
    dtype, path = jnp.dtype(config.dtype), config.base or smollm2()
    options = {"dtype": dtype, "param_dtype": dtype, "remat": config.remat}
    if (media := pretrained.media_of(path)) is not None:
        raise ValueError(f"--base {path} takes {media} beside text; needed a model of text alone")
    module, params, tokenizer = mcl.models.from_pretrained(path, **options)
    if tokenizer is None:
        raise ValueError(f"--base {path} has no tokenizer files")
    corpus = data.load_corpus(
        config.data or config.task, config.cache, config.sword_dir, source=config.source_language,
        target=config.target_language, most=config.wmt_pairs,
    )  # fmt: skip
    return Task(config, module, params, tokenizer, corpus, data.Prompt(config.prompt))
