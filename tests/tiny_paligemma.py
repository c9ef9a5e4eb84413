"""A processor for the tiny PaliGemmas: transformers adds more than a thousand tokens to it, too many for a golden."""

import shutil
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PaliGemmaProcessor, PreTrainedTokenizerFast
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

IMAGE = 47
WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", "\n", "caption", "en", "what", "is", "this", "a", "red", "dog"]


def with_processor(golden: Path, folder: Path) -> Path:
    """Copies a tiny model and writes the files of a processor beside it."""
    words = [*WORDS, *(f"word{number}" for number in range(len(WORDS), IMAGE)), "<image>"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in (*WORDS[:5], "<image>")])
    special = dict(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    pictures = SiglipImageProcessorPil(size={"height": 13, "width": 13}, image_seq_length=9)
    shutil.copytree(golden, folder)
    PaliGemmaProcessor(pictures, PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)).save_pretrained(folder)
    return folder
