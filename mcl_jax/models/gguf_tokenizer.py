"""Tokenizers of GGUF files: byte-level BPE (GPT-2, Llama 3, Qwen2 and 3, SmolLM2 and 3, the distillations of R1) and
SentencePiece BPE (Llama 2, Mistral).

The entries under `tokenizer.ggml` and their meaning follow llama.cpp's `llama-vocab.cpp`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcl_jax.extras import needed_for

PREFIX = "tokenizer.ggml."
# Splitting before the bytes, by tokenizer.ggml.pre: digits one by one and GPT-2's rule; GPT-2's rule alone; or a
# regular expression.
DIGITS, PLAIN = ("smollm",), ("default", "gpt-2")
RULE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = ("qwen2", "deepseek-r1-qwen")  # texts are normalised too
RULES = dict.fromkeys(QWEN, RULE % "") | dict.fromkeys(("llama-bpe", "smaug-bpe"), RULE % "{1,3}")
WHOLE_WORDS = ("llama-bpe",)  # a word in the vocabulary is one token, whatever the merges say; texts begin with a token
SPACE = "▁"  # SentencePiece's space
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # values of tokenizer.ggml.token_type
NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
LISTS = {
    "tokens": (str, "texts"),
    "merges": (str, "texts"),
    "token_type": (int, "integers"),
    "scores": ((int, float), "numbers"),
}
FLAGS = ("add_bos_token", "add_eos_token", "add_space_prefix")
LONGEST = 1024  # characters of a SentencePiece token; all its cuts are tried
SENTENCEPIECE_IDS = {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # where the file does not say


def build(file: Path, metadata: Mapping[str, Any]) -> Any:
    """Builds a transformers tokenizer from the metadata of a GGUF file; None if they hold no vocabulary.

    Raises:
      ValueError: if the kind of tokenizer is not supported, or metadata are missing or inconsistent; names the file.
    """
    with needed_for("reading the tokenizer of a GGUF file", "text"):
        from transformers import PreTrainedTokenizerFast  # takes seconds to import
    given = {name.removeprefix(PREFIX): value for name, value in metadata.items() if name.startswith(PREFIX)}
    if not given.get("tokens"):
        return None
    sentencepiece, ids = given.get("model") == "llama", {}
    if sentencepiece:
        ids = SENTENCEPIECE_IDS
    elif given.get("model") != "gpt2" or given.get("pre") not in (*DIGITS, *PLAIN, *RULES):
        raise ValueError(
            f"{file}: the tokenizer {given.get('model')!r} with pre-tokenizer {given.get('pre')!r} is not supported; "
            "put the file in a folder with the model's Hugging Face tokenizer files and load that folder"
        )
    _check_types(file, given)
    _check(file, given, "scores" if sentencepiece else "merges")
    tokens = given["tokens"]
    named = {name: tokens[i] for name, key in NAMED.items() if (i := given.get(key, ids.get(key))) is not None}
    try:
        tokenizer = _sentencepiece(given, named) if sentencepiece else _byte_level(given)
    except Exception as error:  # tokenizers raises plain Exceptions, for example if a merge contains no token
        raise ValueError(f"{file}: its tokenizer cannot be read: {error}") from error
    _add_tokens(tokenizer, tokens, given["token_type"])
    begins = given.get("add_bos_token", sentencepiece or given.get("pre") in WHOLE_WORDS)
    _frame(file, tokenizer, named, begins, given.get("add_eos_token", False))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    fast.name_or_path = str(file)
    fast.chat_template = metadata.get("tokenizer.chat_template")
    if not isinstance(fast.chat_template, (str, type(None))):
        raise ValueError(f"{file}: tokenizer.chat_template must be a text, got {fast.chat_template!r}")
    return fast


def _check_types(file: Path, given: Mapping[str, Any]) -> None:
    """Raises a ValueError if an entry is of another type than tokenizers have."""
    for name, (kind, called) in LISTS.items():
        entries = given.get(name, [])
        odd = [entry for entry in entries if not isinstance(entry, kind)] if isinstance(entries, list) else [entries]
        if odd:
            raise ValueError(f"{file}: {PREFIX}{name} must hold {called}, got {odd[:3]}")
    for name in FLAGS:
        if not isinstance(given.get(name, False), bool):
            raise ValueError(f"{file}: {PREFIX}{name} must be true or false, got {given[name]!r}")
    if given["model"] == "llama" and any(len(token) > LONGEST for token in given["tokens"]):
        raise ValueError(f"{file}: {PREFIX}tokens must have at most {LONGEST} characters each")


def _check(file: Path, given: dict[str, Any], needed: str) -> None:
    """Adds missing token types; raises a ValueError if the metadata are inconsistent."""
    size = len(given["tokens"])
    if needed not in given:
        raise ValueError(f"{file} must have {PREFIX}{needed} for its tokenizer {given['model']!r}, but has none")
    given.setdefault("token_type", [NORMAL] * size)
    for name in ("token_type", "scores"):
        if name in given and len(given[name]) != size:
            raise ValueError(f"{file}: {PREFIX}{name} must have {size} entries, one per token, got {len(given[name])}")
    for key in NAMED.values():
        if not isinstance(given.get(key, 0), int) or not 0 <= given.get(key, 0) < size:
            raise ValueError(f"{file}: {PREFIX}{key} must be one of {size} tokens, got {given[key]}")
    if broken := [pair for pair in given.get("merges", ()) if pair.count(" ") != 1][:3]:
        raise ValueError(f"{file}: {PREFIX}merges must be pairs of tokens separated by a space, got {broken}")


def _byte_level(given: Mapping[str, Any]) -> Any:
    import tokenizers as tk

    pre, merges = given["pre"], [tuple(pair.split(" ")) for pair in given["merges"]]
    vocabulary = {token: i for i, token in enumerate(given["tokens"])}
    tokenizer = tk.Tokenizer(tk.models.BPE(vocabulary, merges, ignore_merges=pre in WHOLE_WORDS))
    rule = RULES.get(pre)
    if pre in QWEN:
        tokenizer.normalizer = tk.normalizers.NFC()
    steps = [tk.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule is None)]
    if rule is not None:
        steps.insert(0, tk.pre_tokenizers.Split(tk.Regex(rule), "isolated"))
    elif pre in DIGITS:
        steps.insert(0, tk.pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = tk.pre_tokenizers.Sequence(steps)
    tokenizer.decoder = tk.decoders.ByteLevel()
    return tokenizer


def _sentencepiece(given: Mapping[str, Any], named: Mapping[str, str]) -> Any:
    """Builds SentencePiece's BPE, which first merges the two neighbours whose union has the highest score."""
    import tokenizers as tk

    vocabulary = {token: i for i, token in enumerate(given["tokens"])}
    ranked = []
    for token, score, kind in zip(given["tokens"], given["scores"], given["token_type"], strict=True):
        if kind == NORMAL:
            cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
            ranked += [(-score, vocabulary[token], *cut) for cut in cuts if all(part in vocabulary for part in cut)]
    merges = [(left, right) for _, _, left, right in sorted(ranked)]
    unknown = named.get("unk_token")
    tokenizer = tk.Tokenizer(tk.models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaced = [tk.normalizers.Prepend(SPACE)] if given.get("add_space_prefix", True) else []
    tokenizer.normalizer = tk.normalizers.Sequence([*spaced, tk.normalizers.Replace(" ", SPACE)])
    steps = [tk.decoders.Replace(SPACE, " "), tk.decoders.ByteFallback(), tk.decoders.Fuse()]
    tokenizer.decoder = tk.decoders.Sequence([*steps, *([tk.decoders.Strip(" ", 1, 0)] if spaced else [])])
    return tokenizer


def _add_tokens(tokenizer: Any, tokens: list[str], kinds: list[int]) -> None:
    """Keeps control tokens (which are special) and user-defined tokens whole wherever they occur."""
    import tokenizers as tk

    def added(chosen_kind: int, special: bool) -> list[Any]:
        chosen = (token for token, kind in zip(tokens, kinds, strict=True) if kind == chosen_kind)
        return [tk.AddedToken(token, special=special, normalized=False) for token in chosen]

    tokenizer.add_special_tokens(added(CONTROL, special=True))
    tokenizer.add_tokens(added(USER_DEFINED, special=False))


def _frame(file: Path, tokenizer: Any, named: Mapping[str, str], begins: bool, ends: bool) -> None:
    """Makes texts begin and end with special tokens if the file says so."""
    import tokenizers as tk

    special = [name for name, asked in (("bos_token", begins), ("eos_token", ends)) if asked]
    if missing := [name for name in special if name not in named]:
        raise ValueError(
            f"{file} needs {PREFIX}{NAMED[missing[0]]}, since texts begin or end with {missing}, but has none"
        )
    if special:
        first, second = ([*special[: int(begins)], text, *special[int(begins) :]] for text in ("$A", "$B"))
        ids = {name: tokenizer.token_to_id(named[name]) for name in special}
        tokenizer.post_processor = tk.processors.TemplateProcessing(
            single=first,
            pair=first + second,
            special_tokens=[{"id": name, "ids": [ids[name]], "tokens": [named[name]]} for name in special],
        )
