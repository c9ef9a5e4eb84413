"""Base model and verses, or anyone's text."""

import jax.numpy as jnp

import mcl_jax as mcl
from experiments import datasets
from experiments.common.smollm2 import check_targets, outline, smollm2
from experiments.common.splits import usable, with_validation
from experiments.common.task import Task
from experiments.translation.config import Config
from mcl_jax import data
from mcl_jax.models import gguf_file, pretrained


def load(config: Config) -> Task:
    """Reads the data and the base, in this order: text is read sooner than weights.

    Raises:
      ValueError: if either cannot be had; the message names the file or the command that gets it.
    """
    path = config.base or smollm2()
    if (media := pretrained.media_of(path)) is not None:
        raise ValueError(f"--base {path} takes {media} beside text; needed a model of text alone")
    if config.targets or not gguf_file.find(path):  # the header of a GGUF file alone takes seconds
        check_targets(config, outline(path)[1])
    corpus = datasets.load_corpus(
        config.data or config.task, config.cache, config.sword_dir, source=config.source_language,
        target=config.target_language, most=config.wmt_pairs,
    )  # fmt: skip
    option = f"--data {config.data}" if config.data else f"--task {config.task}"
    corpus = with_validation(usable(corpus, option=option, batch_size=config.batch_size))
    dtype = jnp.dtype(config.dtype)
    options = {"dtype": dtype, "param_dtype": dtype, "remat": config.remat}
    module, params, tokenizer = mcl.models.from_pretrained(path, **options)
    return Task(config, module, params, tokenizer, corpus, data.Prompt(config.prompt))
