"""Tokenizers and processors in the files of a Hugging Face folder: read by transformers, checked and replaced here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcl_jax.json_io import read_json

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
JSON = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "chat_template.json",
    *PROCESSORS,
)
TEXT = ("merges.txt", "chat_template.jinja")


def has_vocabulary(folder: Path) -> bool:
    """Whether the folder holds the files of a tokenizer."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def has_processor(folder: Path) -> bool:
    """Whether the folder holds the files of a tokenizer and of what prepares pictures or clips."""
    return has_vocabulary(folder) and any((folder / name).is_file() for name in PROCESSORS)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of the folder, None if there is none.

    A SentencePiece model on its own does not say whether texts begin with a token; here they do, as Llama and Mistral
    were trained.

    Raises:
      ValueError: as `read`.
    """
    if not has_vocabulary(folder):
        return None
    from transformers import AutoTokenizer  # seconds to import: only where it is needed

    alone = not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json"))
    return read(folder, lambda: AutoTokenizer.from_pretrained(folder, **({"add_bos_token": True} if alone else {})))


def read(folder: Path, with_transformers: Callable[[], Any]) -> Any:
    """What transformers makes of the folder's tokenizer and processor files.

    Raises:
      ValueError: for a file that is no JSON or no text, a vocabulary without its merges, or whatever transformers and
        the tokenizers themselves do not take; in one sentence that names the file or the folder.
    """
    for name in JSON:
        if (folder / name).is_file():
            read_json(folder / name)
    for name in TEXT:
        if (folder / name).is_file():
            _check_text(folder / name)
    has = lambda name: (folder / name).is_file()
    if has("vocab.json") and not (has("tokenizer.json") or has("tokenizer.model") or has("merges.txt")):
        raise ValueError(f"{folder} holds vocab.json without merges.txt: a tokenizer needs both, or a tokenizer.json")
    try:
        return with_transformers()
    except Exception as error:  # tokenizers raises plain Exceptions, transformers nearly every kind
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        raise ValueError(f"{folder}: its tokenizer or processor files cannot be read: {reason}") from error


def replace(folder: Path, tokenizer: Any) -> None:
    """Writes the files of a tokenizer or processor in the place of those of any other that the folder holds."""
    for name in {*VOCABULARIES, *JSON, *TEXT}:
        (folder / name).unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)


def _check_text(file: Path) -> None:
    try:
        file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8 ({error}): repair it or move it away") from error
