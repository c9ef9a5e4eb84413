"""GGUF files (llama.cpp's format) of Llama and Qwen2 models: config, tokenizer and dequantised tensors.

Tensors are presented under their Hugging Face names and in Hugging Face's order of rows: llama.cpp interleaves the
halves of each rotated head of Llama models, which is undone here.
"""

import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ARCHITECTURES = ("llama", "qwen2")
ROPE_FACTORS = "rope_freqs.weight"  # of Llama 3: by what each frequency is divided
CONTROL_TOKEN = 3  # of tokenizer.ggml.token_type
# What comes before the bytes, by tokenizer.ggml.pre: digits one by one and GPT-2's rule; GPT-2's rule alone; or a rule
# as a regular expression.
DIGITS, PLAIN = ("smollm",), ("default", "gpt-2")
RULE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
RULES = {"qwen2": RULE % "", "llama-bpe": RULE % "{1,3}"}


def find(path: Path) -> Path | None:
    """The GGUF file at `path`, or the one in it; None if there is none.

    Raises:
      ValueError: if `path` does not exist, or a folder without config.json holds several.
    """
    if not path.exists():
        raise ValueError(f"there is no {path}; needed a Hugging Face folder or a GGUF file")
    if path.is_file():
        return path
    files = sorted(path.glob("*.gguf"))
    if (path / "config.json").is_file() or not files:
        return None
    if len(files) > 1:
        raise ValueError(f"{path} holds several GGUF files; name one of {[file.name for file in files]}")
    return files[0]


class GGUF:
    """A GGUF file as a source of tensors, with its config and tokenizer.

    Raises:
      ValueError: for a file that is no GGUF file or cut short, or another architecture than those known.
    """

    def __init__(self, file: Path):
        import gguf  # brings a dozen modules: only where it is needed

        self.file, self._dequantize = file, gguf.dequantize
        try:
            reader = gguf.GGUFReader(file)
            self.fields = {name: field.contents() for name, field in reader.fields.items()}
        except Exception as error:
            raise ValueError(f"{file} is no whole GGUF file: {error}") from error
        self.architecture = self.fields.get("general.architecture")
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"{file}: architecture {self.architecture!r} is not one of {ARCHITECTURES}")
        self.rope_factors = [t.data.astype(float).tolist() for t in reader.tensors if t.name == ROPE_FACTORS]
        self.tensors = {self._hf_name(t.name): t for t in reader.tensors if t.name != ROPE_FACTORS}
        self.shapes = {name: tuple(int(n) for n in tensor.shape[::-1]) for name, tensor in self.tensors.items()}

    def _hf_name(self, name: str) -> str:
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
        if match is None or match[2] not in NAMES:
            raise ValueError(f"{self.file}: unknown tensor {name!r}")
        layer = "" if match[1] is None else f"model.layers.{match[1]}."
        return f"{layer}{NAMES[match[2]]}.{match[3]}"

    def read(self, name: str) -> np.ndarray:
        """The tensor in float32, dequantised."""
        tensor = self.tensors[name]
        values = self._dequantize(tensor.data, tensor.tensor_type).reshape(self.shapes[name])
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        if heads is None or self.architecture != "llama":
            return values
        pairs = values.reshape(self.hf_config[heads], -1, 2, *values.shape[1:])  # [heads, d/2, 2, in]
        return pairs.swapaxes(1, 2).reshape(values.shape)

    def _of_architecture(self, name: str, default: Any = None) -> Any:
        value = self.fields.get(f"{self.architecture}.{name}", default)
        if value is None:
            raise ValueError(f"{self.file} has no {self.architecture}.{name}")
        return value

    @cached_property
    def hf_config(self) -> dict[str, Any]:
        """What a `config.json` of the same model says.

        Raises:
          ValueError: for a missing field, or rotary scaling.
        """
        if self.fields.get(f"{self.architecture}.rope.scaling.type", "none") != "none":
            raise ValueError(f"{self.file}: rotary scaling is not read from GGUF files")
        of = self._of_architecture
        rope = {"rope_type": "default", "rope_theta": of("rope.freq_base", 10000.0)}
        for factors in self.rope_factors:
            rope |= dict(rope_type="longrope", short_factor=factors, long_factor=factors, attention_factor=1.0)
        return {
            "model_type": self.architecture,
            "vocab_size": self.shapes["model.embed_tokens.weight"][0],
            "hidden_size": of("embedding_length"),
            "intermediate_size": of("feed_forward_length"),
            "num_hidden_layers": of("block_count"),
            "num_attention_heads": of("attention.head_count"),
            "num_key_value_heads": of("attention.head_count_kv", of("attention.head_count")),
            "head_dim": of("attention.key_length", of("embedding_length") // of("attention.head_count")),
            "max_position_embeddings": of("context_length"),
            "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
            "rope_parameters": rope,
            "tie_word_embeddings": "lm_head.weight" not in self.shapes,
        }

    def tokenizer(self) -> Any:
        """The byte-level BPE tokenizer in the file, as a transformers tokenizer.

        Raises:
          ValueError: for another kind of tokenizer.
        """
        import tokenizers as tk
        from transformers import PreTrainedTokenizerFast

        of = lambda name: self.fields.get(f"tokenizer.ggml.{name}")
        if of("model") != "gpt2" or of("pre") not in (*DIGITS, *PLAIN, *RULES):
            raise ValueError(
                f"{self.file}: tokenizer {of('model')!r} with pre-tokenizer {of('pre')!r} is not read from GGUF files; "
                "put it in a folder with the model's Hugging Face tokenizer files and load that"
            )
        tokens = of("tokens")
        bpe = tk.models.BPE(
            {token: i for i, token in enumerate(tokens)}, [tuple(pair.split(" ", 1)) for pair in of("merges")],
            ignore_merges=of("pre") == "llama-bpe",
        )  # fmt: skip
        tokenizer, rule = tk.Tokenizer(bpe), RULES.get(of("pre"))
        if of("pre") == "qwen2":
            tokenizer.normalizer = tk.normalizers.NFC()
        steps = [tk.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule is None)]
        if rule is not None:
            steps.insert(0, tk.pre_tokenizers.Split(tk.Regex(rule), "isolated"))
        elif of("pre") in DIGITS:
            steps.insert(0, tk.pre_tokenizers.Digits(individual_digits=True))
        tokenizer.pre_tokenizer = tk.pre_tokenizers.Sequence(steps)
        tokenizer.decoder = tk.decoders.ByteLevel()
        special = [token for token, kind in zip(tokens, of("token_type"), strict=True) if kind == CONTROL_TOKEN]
        tokenizer.add_special_tokens(special)
        named = {
            name: tokens[of(key)]
            for name, key in [
                ("bos_token", "bos_token_id"),
                ("eos_token", "eos_token_id"),
                ("unk_token", "unknown_token_id"),
                ("pad_token", "padding_token_id"),
            ]
            if of(key) is not None
        }
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
        fast.chat_template = self.fields.get("tokenizer.chat_template")
        return fast
