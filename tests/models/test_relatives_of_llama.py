"""What configs and tokenizers of Llama 3.x, Qwen2.5, Qwen3, SmolLM3 and the distillations of R1 say, as published."""

import json

import pytest
from published_sizes import FILES, config_of
from tiny_tokenizers import like_qwen2
from transformers import AutoConfig

from mcl_jax.models import LlamaConfig, families, tokenizer_files


def test_what_a_qwen3_or_smollm3_leaves_out_is_transformers_default():
    sizes = dict(vocab_size=41, hidden_size=64, intermediate_size=12, num_hidden_layers=30, num_attention_heads=4)
    qwen3 = LlamaConfig.from_hf({"model_type": "qwen3", "num_key_value_heads": 2, "use_sliding_window": True} | sizes)
    assert qwen3.windows == (None,) * 28 + (4096,) * 2
    assert (qwen3.head_dim, qwen3.qk_norm, qwen3.tie_word_embeddings) == (128, True, False)
    smollm3 = LlamaConfig.from_hf({"model_type": "smollm3", "sliding_window": 7, "use_sliding_window": True} | sizes)
    assert smollm3.rope_layers == ((True, True, True, False) * 8)[:30]
    assert smollm3.windows == ((None, None, None, 7) * 8)[:30]
    assert (smollm3.head_dim, smollm3.rope.rope_theta, smollm3.tie_word_embeddings) == (16, 2e6, True)


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_published_settings_are_read_as_transformers_reads_them(name):
    """With all its defaults and in its newer names."""
    config = config_of(name)
    theirs = AutoConfig.for_model(**config).to_dict()
    assert families.build(config)[1].config == families.build(theirs)[1].config


@pytest.mark.parametrize(
    ("name", "theta", "kind", "factor"),
    [
        ("llama-3.1-8b", 5e5, "llama3", 8.0),
        ("llama-3.2-1b", 5e5, "llama3", 32.0),
        ("deepseek-r1-distill-llama-8b", 5e5, "llama3", 8.0),
        ("qwen2.5-7b", 1e6, "default", 1.0),
        ("deepseek-r1-distill-qwen-7b", 1e4, "default", 1.0),
        ("qwen3-8b", 1e6, "default", 1.0),
        ("smollm3-3b", 5e6, "default", 1.0),
    ],
)
def test_positions_and_windows_of_published_models(name, theta, kind, factor):
    """Qwen's files name a window that they do not use."""
    config = families.build(config_of(name))[1].config
    assert (config.rope.rope_theta, config.rope.rope_type, config.rope.factor) == (theta, kind, factor)
    assert config.windows == (None,) * config.num_hidden_layers
    assert config.qk_norm == name.startswith("qwen3")
    assert config.rope_layers == ((True, True, True, False) * 9 if name == "smollm3-3b" else None)


def test_norms_and_layers_without_rotation_are_not_written_together():
    sizes = dict(vocab_size=41, hidden_size=24, intermediate_size=26, num_hidden_layers=2, num_attention_heads=2)
    with pytest.raises(ValueError, match="no model_type of Hugging Face has both qk_norm and rope_layers"):
        LlamaConfig(**sizes, qk_norm=True, rope_layers=[True, False]).to_hf()


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [("qwen2", "LlamaTokenizerFast"), ("llama", "LlamaTokenizerFast"), ("qwen3", "Qwen2Tokenizer")],
)
def test_a_tokenizer_of_bytes_is_read_under_the_class_that_its_files_name(model_type, kind, tmp_path):
    """The distillations of R1 say LlamaTokenizerFast, whose own rules are SentencePiece's."""
    written, text = like_qwen2("<think>"), "A the Dan\n12 is<think>"
    written.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, "eos_token": "<|im_end|>"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    read = tokenizer_files.read_tokenizer(tmp_path)
    assert read.tokenize(text) == written.tokenize(text)
    assert read.decode(read.encode(text)) == text
