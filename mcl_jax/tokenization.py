"""Texts to token ids: prompts begin with the tokenizer's first tokens (such as bos), answers end with its end token.

Prompt and answer are encoded separately, so a prompt has the same tokens when the model generates.
"""

import inspect
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from jaxtyping import Int

from mcl_jax.extras import needed_for

AnswerStart = Literal["alone", "space", "direct"]
ANCHOR = "\n"  # a token of its own for every tokenizer here, whatever follows


class Tokenizer(Protocol):
    """The interface of a tokenizer; Hugging Face's `PreTrainedTokenizerFast` has it.

    `encode` may take `add_special_tokens`. Then prompts begin with the tokenizer's first tokens, and answers do not.
    A `pad_token_id` is used if there is one. `chat_ids` needs `chat_template` and `apply_chat_template`.
    """

    eos_token_id: int

    def encode(self, text: str) -> list[int]: ...


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Raises a TypeError if the tokenizer has no end token."""
    eos = getattr(tokenizer, "eos_token_id", None)
    if not isinstance(eos, (int, np.integer)):
        name = type(tokenizer).__name__
        raise TypeError(f"the tokenizer needs eos_token_id, the token that ends targets, but {name} has {eos!r}")


def prompt_ids(tokenizer: Tokenizer, text: str) -> Int[np.ndarray, " P"]:
    """Returns the token ids of a prompt, with the tokenizer's first tokens (such as bos) but without the end token.

    A prompt that begins with the first of these tokens itself, as those of Whisper do, is taken as it is written.

    Raises:
      ValueError: if the prompt has no tokens.
    """
    ids, written = _encode(tokenizer, text), plain_ids(tokenizer, text)
    if len(written) and written[0] == ids[0]:
        ids = written
    if len(ids) and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    if not len(ids):
        raise ValueError(f"the prompt {text!r} must have at least one token, got none")
    return ids


def chat_ids(tokenizer: Any, text: str) -> Int[np.ndarray, " P"]:
    """Returns the token ids of a chat with one message of a user, up to where the answer begins.

    They are those of Hugging Face's `apply_chat_template(..., add_generation_prompt=True)`.

    Raises:
      ValueError: if the tokenizer has no chat template, or the template does not take the message; names the file.
      MissingExtra: if jinja2, which fills the template, is not installed.
    """
    return plain_ids(tokenizer, chat_text(tokenizer, text))


def chat_text(tokenizer: Any, content: str | list[dict[str, str]]) -> str:
    """Returns the text of a chat with one message of a user, up to where the answer begins; raises as `chat_ids` does.

    Args:
      tokenizer: a tokenizer, or a processor of Hugging Face.
      content: the message; for the template of a processor its parts, such as {"type": "text", "text": "Hello."}.
    """
    check_chat(tokenizer)
    with needed_for("a chat template", "text"):
        import jinja2
    messages = [{"role": "user", "content": content}]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (jinja2.TemplateError, TypeError) as error:  # TypeError: the template joins text to what is none
        raise ValueError(f"{_template_of(tokenizer)} does not take a message of a user: {error}") from error


def check_chat(tokenizer: Any) -> None:
    """Raises a ValueError if a tokenizer or processor has no chat template; names the file that could have one."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"a prompt as a chat needs {_template_of(tokenizer)}, but there is none; write the prompt out")


def _template_of(tokenizer: Any) -> str:
    """Returns what could hold the chat template of a tokenizer or processor, for messages."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    path = getattr(tokenizer, "name_or_path", "")
    if not path:
        return f"the chat template of the tokenizer {type(tokenizer).__name__}"
    if Path(path).is_file():
        return f"tokenizer.chat_template in {path}"
    return f"chat_template in {Path(path) / 'tokenizer_config.json'} or the file {Path(path) / 'chat_template.jinja'}"


def answer_ids(tokenizer: Tokenizer, text: str, name: str, start: AnswerStart = "alone") -> Int[np.ndarray, " N"]:
    """Returns the token ids of an answer and the end token, without any first tokens.

    Args:
      tokenizer: the tokenizer.
      text: the answer.
      name: subject of the errors, such as "record '7'".
      start: "alone" encodes the answer by itself, which begins with a space for a tokenizer that puts one before every
        text (Llama) and without one for others (Qwen2). "space" and "direct" encode it as the end of a longer text,
        after a space or directly after what is before it.
    Raises:
      ValueError: if the text is empty or contains the end token, or the start is unknown.
    """
    match start:
        case "alone":
            ids = plain_ids(tokenizer, text)
        case "space" | "direct":
            before = plain_ids(tokenizer, ANCHOR)
            ids = plain_ids(tokenizer, ANCHOR + " " * (start == "space") + text)[len(before) :]
        case _:
            raise ValueError(f"the start of an answer must be one of {get_args(AnswerStart)}, got {start!r}")
    if not text or not len(ids):
        raise ValueError(f"{name}: the target {text!r} is empty, or has no tokens")
    if tokenizer.eos_token_id in ids:
        raise ValueError(f"{name}: the target contains the end-of-sequence token: {text[:60]!r}")
    return np.append(ids, np.int32(tokenizer.eos_token_id))


def plain_ids(tokenizer: Tokenizer, text: str) -> Int[np.ndarray, " N"]:
    """Returns the token ids of a text as it is written, without any first or last tokens."""
    return _encode(tokenizer, text, **_without_special(tokenizer))


def pad_id(tokenizer: Tokenizer) -> int:
    """Returns the padding token, or the end token if there is none."""
    pad = getattr(tokenizer, "pad_token_id", None)
    return int(tokenizer.eos_token_id if pad is None else pad)


def _without_special(tokenizer: Any) -> dict[str, bool]:
    """Returns the option of `encode` that leaves out special tokens, if there is one."""
    takes = "add_special_tokens" in inspect.signature(tokenizer.encode).parameters
    return {"add_special_tokens": False} if takes else {}


def _encode(tokenizer: Any, text: str, **options: bool) -> Int[np.ndarray, " N"]:
    ids = tokenizer.encode(text, **options)
    try:
        return np.array(ids, np.int32).reshape(len(ids))
    except (TypeError, ValueError):
        raise TypeError(f"tokenizer.encode must return a list of token ids, got {type(ids).__name__}") from None
