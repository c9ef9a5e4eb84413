"""Tokenizer and processor files of a Hugging Face folder: transformers reads them, we check and replace them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcl_jax.extras import MissingExtra, needed_for
from mcl_jax.json_io import read_json, read_text

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
    """Whether the folder holds the files of a tokenizer and of an image or audio processor."""
    return has_vocabulary(folder) and any((folder / name).is_file() for name in PROCESSORS)


def read_tokenizer(folder: Path) -> Any:
    """Reads the tokenizer of the folder, None if there is none.

    A SentencePiece model alone does not say whether texts begin with a special token; here they do, as in the training
    of Llama and Mistral.

    Raises:
      ValueError, MissingExtra: as `read`.
    """
    if not has_vocabulary(folder):
        return None
    with needed_for("reading a tokenizer", "text"):
        from transformers import AutoTokenizer  # takes seconds to import

        if (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
            import google.protobuf  # noqa: F401  (transformers reads SentencePiece models with these two)
            import sentencepiece

            _check_sentencepiece(folder / "tokenizer.model", sentencepiece.SentencePieceProcessor)
    alone = not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json"))
    options = {"trust_remote_code": False} | ({"add_bos_token": True} if alone else {})  # runs no code of the folder
    return read(folder, lambda: AutoTokenizer.from_pretrained(folder, **options))


def read(folder: Path, with_transformers: Callable[[], Any]) -> Any:
    """Reads the tokenizer or processor files of a folder.

    Args:
      folder: the folder.
      with_transformers: reads them, after the checks here.
    Returns:
      The result of `with_transformers`.
    Raises:
      ValueError: for a file that is no JSON or no text, a vocabulary without its merges, or whatever transformers and
        the tokenizers themselves do not take; in one sentence that names the file or the folder.
      MissingExtra: if a library that reads them is not installed.
    """
    for name in JSON:
        if (folder / name).is_file():
            read_json(folder / name)
    for name in TEXT:
        if (folder / name).is_file():
            read_text(folder / name)
    whole = ("tokenizer.json", "tokenizer.model", "merges.txt")
    if (folder / "vocab.json").is_file() and not any((folder / name).is_file() for name in whole):
        raise ValueError(f"{folder} holds vocab.json without merges.txt; a tokenizer needs both, or a tokenizer.json")
    try:
        return with_transformers()
    except MissingExtra:
        raise
    except Exception as error:  # tokenizers raises plain Exceptions, transformers nearly every kind
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        raise ValueError(f"{folder}: the tokenizer or processor files cannot be read: {reason}") from error


def replace(folder: Path, tokenizer: Any) -> None:
    """Writes the files of a tokenizer or processor and removes those of any other in the folder."""
    for name in {*VOCABULARIES, *JSON, *TEXT}:
        (folder / name).unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)


def _check_sentencepiece(file: Path, processor: Callable[..., Any]) -> None:
    """Raises a ValueError for a file that transformers would take for another kind of vocabulary."""
    model = file.read_bytes()
    try:
        size = processor(model_proto=model).get_piece_size() if model else 0
        if not size:
            raise RuntimeError("no pieces")
    except RuntimeError as error:
        raise ValueError(
            f"{file} is not a SentencePiece model: it was cut short, or is of another kind, which is not read here"
        ) from error
