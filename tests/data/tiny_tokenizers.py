"""Tokenizers without files: one of Hugging Face that adds tokens of its own, and the least that is needed."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
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
