"""Fuzz targets: folders of models: configs, tokenizers, processors, weights, as `from_pretrained` reads them."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import safetensors.numpy
from hypothesis import strategies as st

from mcl_jax.models import families, pretrained, tokenizer_files
from mcl_jax.models.hf_config import errors_name, read_config
from tests.fuzz import drawn
from tests.fuzz.targets import READ, Fault, Target, reads

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = [
    GOLDEN / "models" / name
    for name in ("gemma2", "gemma3", "gpt2", "llama", "llama_yarn", "mistral", "phi3_longrope", "qwen2")
]
FOLDERS += [GOLDEN / "llava" / "llama", GOLDEN / "qwen2_audio" / "tied", GOLDEN / "whisper" / "tiny"]
FOLDERS += [GOLDEN / "models" / "gemma", GOLDEN / "smolvlm" / "smolvlm", GOLDEN / "paligemma" / "gemma2"]
TOKENIZERS = [GOLDEN / "llava" / "llama", GOLDEN / "smolvlm" / "smolvlm", GOLDEN / "whisper" / "tiny"]


@functools.cache
def configs() -> list[dict[str, Any]]:
    """The configs of all families."""
    return [json.loads((folder / "config.json").read_text()) for folder in FOLDERS]


ENTRIES = ["model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "rope_scaling", "rope_parameters"]
ENTRIES += [
    "quantization_config",
    "vocab_size",
    "head_dim",
    "layer_types",
    "sliding_window",
    "text_config",
    "vision_config",
    "scale_factor",
    "image_size",
    "tie_word_embeddings",
]


def check_config(folder: Path, content: bytes) -> str:
    """A config is refused, or its module can tell the shapes of its parameters' tensors."""
    (folder / "config.json").write_bytes(content)

    def read() -> Any:
        config = read_config(folder)
        with errors_name(folder / "config.json"):
            return families.build(config)

    outcome, built = reads(read, "config.json", folder.name)
    if outcome == READ:
        families.build(built[1].config.to_hf())  # what we write, we can read
    return outcome


@st.composite
def models(draw: Any) -> tuple[int, str, bytes]:
    """A folder, one of its files, and what became of it."""
    which = draw(st.integers(0, len(FOLDERS) - 1))
    name = draw(st.sampled_from(["config.json", "config.json", "model.safetensors"]))
    content = (FOLDERS[which] / name).read_bytes()
    if name == "config.json":
        return which, name, draw(drawn.json_files([configs()[which]], ENTRIES))
    tensors = safetensors.numpy.load(content)
    victim = draw(st.sampled_from(sorted(tensors)))
    match draw(st.integers(0, 3)):
        case 0:
            return which, name, draw(drawn.mutated([content], 9000))
        case 1:
            tensors[draw(st.sampled_from(["x", "lm_head.weight", victim + "x", "score.weight"]))] = tensors.pop(victim)
        case 2:
            tensors[victim] = tensors[victim][..., : draw(st.integers(0, 9))]
        case _:
            tensors[victim] = tensors[victim].astype(draw(st.sampled_from(["float16", "float64", "int32", "uint8"])))
    return which, name, safetensors.numpy.save(tensors)


def check_model(folder: Path, drawn_model: tuple[int, str, bytes]) -> str:
    which, name, content = drawn_model
    for file in ("config.json", "model.safetensors"):
        shutil.copy(FOLDERS[which] / file, folder)
    (folder / name).write_bytes(content)
    return reads(
        lambda: pretrained.from_pretrained(folder), "config.json", "model.safetensors", folder.name, "weight", "tensor"
    )[0]


@st.composite
def tokenizer_folders(draw: Any) -> tuple[int, dict[str, bytes]]:
    """A folder of a tokenizer and processor, and one or two files that replace its own."""
    which = draw(st.integers(0, len(TOKENIZERS) - 1))
    names = ["tokenizer.json", "tokenizer_config.json", "processor_config.json", "special_tokens_map.json"]
    files = {}
    for name in draw(st.sets(st.sampled_from(names), min_size=1, max_size=2)):
        seed = TOKENIZERS[which] / name
        given = (
            json.loads(seed.read_text()) if seed.is_file() else {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
        )
        files[name] = draw(drawn.json_files([given], ["auto_map", "tokenizer_class", "chat_template", "pad_token"]))
    return which, files


def check_tokenizer(folder: Path, drawn_files: tuple[int, dict[str, bytes]]) -> str:
    which, files = drawn_files
    shutil.copytree(TOKENIZERS[which], folder / "t", ignore=shutil.ignore_patterns("*.npz", "*.safetensors"))
    for name, content in files.items():
        (folder / "t" / name).write_bytes(content)
    evil = f"import pathlib\npathlib.Path({str(folder / 'ran')!r}).touch()\n"
    (folder / "t" / "tokenization_evil.py").write_text(evil)

    def read() -> Any:
        config = read_config(folder / "t")
        family, module = pretrained._build(folder / "t" / "config.json", config, {})
        return pretrained._processor(folder / "t", family, module), tokenizer_files.read_tokenizer(folder / "t")

    outcome, _ = reads(read, *files, str(folder / "t"))
    if (folder / "ran").exists():
        raise Fault("code of the folder ran")
    return outcome


TARGETS = [
    Target("model configs", lambda: drawn.json_files(configs(), ENTRIES), check_config, 1.5),
    Target("model folders", models, check_model, 0.4),
    Target("tokenizer folders", tokenizer_folders, check_tokenizer, 0.4),
]
