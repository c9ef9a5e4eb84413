"""Tokenizers without files: one of Hugging Face that adds tokens of its own, and the least that is needed."""

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


class Letters:
    """A token a character; no padding token, no special tokens."""

    eos_token_id = 0

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids) -> str:
        return "".join(chr(i) for i in ids)


def words(vocabulary: str) -> PreTrainedTokenizerFast:
    """A token a word, between <s> (1) and </s> (2); padding is 3, an unknown word 0."""
    names = {name: i for i, name in enumerate(["<unk>", "<s>", "</s>", "<pad>", *vocabulary.split()])}
    tokenizer = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


MERGES = "t h,th e,i n,a n,an d,e r,D a,Da s,i s,Ġ A,Ġ th,Ġ D,Ġ a,Ġa s"  # Ġ is a space
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def like_llama(*special: str) -> PreTrainedTokenizerFast:
    """Works as that of Llama 2 does: a space before each text, no words, bytes for what is unknown, and <s> first."""
    merges = _merges("▁")
    names = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *_printable(),
        *map("".join, merges),
    ]
    tokenizer = Tokenizer(models.BPE(_ids(names), merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", *special])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def like_qwen2(*special: str) -> PreTrainedTokenizerFast:
    """Works as that of Qwen2 does: words with the space before them, as bytes, and no first token."""
    merges = _merges("Ġ")
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    tokenizer = Tokenizer(models.BPE(_ids(names), merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_end|>", *special])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


def _merges(space: str) -> list[tuple[str, str]]:
    return [tuple(pair.replace("Ġ", space).split()) for pair in MERGES.split(",")]


def _printable() -> list[str]:
    return [chr(code) for code in range(33, 127)]


def _ids(names: list[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(dict.fromkeys(names))}
