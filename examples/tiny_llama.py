"""A tiny random Llama in a Hugging Face folder, and a tokenizer of whole words: for trying the examples in seconds."""

from pathlib import Path

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

import mcl_jax as mcl
from mcl_jax.models import Llama, LlamaConfig


def word_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """One token for each word of the texts. 0 is an unknown word, 1 the end of an answer, 2 padding."""
    words = dict.fromkeys(word for text in texts for word in text.split())
    ids = {word: i for i, word in enumerate(["<unk>", "</s>", "<pad>", *words])}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="<pad>")


def make(folder: str | Path, texts: list[str]) -> Path:
    """Writes the folder: config.json, model.safetensors and the files of a tokenizer for the words of the texts."""
    tokenizer = word_tokenizer(texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
        initializer_range=0.2,  # larger than usual, so that a frozen random output layer can tell words apart
    )
    module = Llama(config)
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    mcl.models.save_pretrained(folder, module, params, tokenizer)
    return Path(folder)
