"""Makes models/: tiny random models saved by Hugging Face, and the logits that it computes for them on the CPU.

In an environment of its own (`pip install torch==2.13.0 "transformers>=5.23,<6"`):

    python tests/golden/make_models.py

Names of models as arguments make those alone. Each folder is what `save_pretrained` writes (config.json,
model.safetensors), with expected.npz beside it: tokens [3, 11], mask (row 0 padded on the left, row 1 on the right, row
2 not), logits without and padded_logits with padding. The models in GREEDY have greedy [3, 13] too: what Hugging Face
generates, with its cache, after these tokens, of which only row 0 is padded.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

FOLDER = Path(__file__).with_name("models")
SIZES = dict(
    vocab_size=41,
    hidden_size=24,
    intermediate_size=26,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=10,
    max_position_embeddings=64,
    initializer_range=0.3,
)
NO_IDS = dict(pad_token_id=None, bos_token_id=None, eos_token_id=None)  # the published ones are beyond 41 tokens
WIDE = dict(SIZES, num_key_value_heads=6)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
YARN = dict(
    rope_type="yarn", rope_theta=1000.0, factor=4.0, original_max_position_embeddings=16, beta_fast=2.0, beta_slow=0.5
)
DYNAMIC = dict(rope_type="dynamic", rope_theta=1000.0, factor=2.0)
LONG = dict(
    rope_type="longrope",
    rope_theta=1000.0,
    original_max_position_embeddings=8,
    factor=8.0,
    short_factor=[1.0, 1.1, 1.2, 1.3, 1.4],
    long_factor=[2.0, 2.5, 3.0, 3.5, 4.0],
)
# A query_pre_attn_scalar that is no width, and caps that bend most scores and logits.
CAPPED = dict(query_pre_attn_scalar=7, attn_logit_softcapping=1.5, final_logit_softcapping=2.5)
LOCAL_AND_GLOBAL = dict(
    sliding_attention=dict(rope_type="default", rope_theta=30.0),
    full_attention=dict(rope_type="linear", rope_theta=1000.0, factor=4.0),
)
# Six of eight entries of a head are rotated. transformers' check takes the width of a head from the hidden size.
PHI = SIZES | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, head_dim=8)
PARTLY = dict(
    rope_type="longrope",
    rope_theta=1000.0,
    partial_rotary_factor=0.75,
    short_factor=[1.0, 1.2, 1.4],
    long_factor=[2.0, 3.0, 4.0],
)

MODELS = {
    "gemma": GemmaForCausalLM(GemmaConfig(**SIZES, **NO_IDS, hidden_act="gelu")),
    "gemma2": Gemma2ForCausalLM(Gemma2Config(**SIZES, **NO_IDS, **CAPPED, sliding_window=4)),
    "gemma3": Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SIZES,
            **NO_IDS,
            query_pre_attn_scalar=7,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters=LOCAL_AND_GLOBAL,
        )
    ),
    "gpt2": GPT2LMHeadModel(
        GPT2Config(
            vocab_size=41,
            n_embd=20,
            n_layer=3,
            n_head=5,
            n_positions=32,
            n_inner=26,
            initializer_range=0.3,
            bos_token_id=1,
            eos_token_id=2,
        )
    ),
    "llama": LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False, rope_parameters=LLAMA3)),
    "llama_tied_biased": LlamaForCausalLM(
        LlamaConfig(
            **WIDE,
            tie_word_embeddings=True,
            attention_bias=True,
            mlp_bias=True,
            rope_parameters=dict(rope_type="linear", rope_theta=1000.0, factor=2.0),
        )
    ),
    "llama_yarn": LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=YARN)),
    "llama_dynamic": LlamaForCausalLM(LlamaConfig(**SIZES | dict(max_position_embeddings=8), rope_parameters=DYNAMIC)),
    "llama_longrope": LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LONG)),
    "mistral": MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5)),
    "phi3": Phi3ForCausalLM(Phi3Config(**PHI, **NO_IDS, tie_word_embeddings=False, sliding_window=4)),
    "phi3_longrope": Phi3ForCausalLM(
        Phi3Config(
            **PHI, **NO_IDS, tie_word_embeddings=True, original_max_position_embeddings=8, rope_parameters=PARTLY
        )
    ),
    "qwen2": Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen2_windows": Qwen2ForCausalLM(
        Qwen2Config(**SIZES, tie_word_embeddings=False, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    ),
    "qwen3": Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=True)),
    "qwen3_windows": Qwen3ForCausalLM(
        Qwen3Config(
            **SIZES,
            tie_word_embeddings=False,
            attention_bias=True,
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=1,
        )
    ),
    "smollm3": SmolLM3ForCausalLM(  # with yarn, which makes rotated vectors longer but must not change the others
        SmolLM3Config(**SIZES, **NO_IDS, tie_word_embeddings=True, no_rope_layers=[1, 0, 1], rope_parameters=YARN)
    ),
    "smollm3_windows": SmolLM3ForCausalLM(
        SmolLM3Config(
            **SIZES,
            **NO_IDS,
            tie_word_embeddings=False,
            attention_bias=True,
            mlp_bias=True,
            no_rope_layer_interval=2,
            use_sliding_window=True,
            sliding_window=4,
        )
    ),
}
GREEDY = ("gemma", "gemma2", "gemma3", "phi3", "phi3_longrope", "qwen3", "qwen3_windows", "smollm3", "smollm3_windows")


def main() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 41, (3, 11))
    mask = np.ones((3, 11), bool)
    mask[0, :4], mask[1, -3:] = False, False
    for name, model in MODELS.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        torch.manual_seed(len(name))
        for parameter in model.parameters():  # biases and norms too: at 0 and 1 they would hide a mistake
            spread = 0.3 if parameter.ndim > 1 else 0.1
            parameter.data = spread * torch.randn_like(parameter) + (1.0 if _is_norm(model, parameter) else 0.0)
        model.eval()
        model.save_pretrained(FOLDER / name)
        (FOLDER / name / "generation_config.json").unlink(missing_ok=True)
        positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
        with torch.no_grad():
            logits = model(torch.tensor(tokens)).logits
            padded = model(
                torch.tensor(tokens),
                attention_mask=torch.tensor(mask.astype(int)),
                position_ids=torch.tensor(positions),
            ).logits
        more = {"greedy": _greedy(model, tokens, mask)} if name in GREEDY else {}
        np.savez_compressed(
            FOLDER / name / "expected.npz", tokens=tokens, mask=mask, logits=logits, padded_logits=padded, **more
        )
        print(name, sum(p.numel() for p in model.parameters()), float(logits.abs().max()))


def _greedy(model, tokens, mask) -> np.ndarray:
    mask = mask.copy()
    mask[1] = True
    out = model.generate(
        torch.tensor(tokens),
        attention_mask=torch.tensor(mask.astype(int)),
        do_sample=False,
        max_new_tokens=13,
        pad_token_id=0,
    )
    return out[:, tokens.shape[1] :].numpy()


def _is_norm(model, parameter) -> bool:
    return any(
        parameter is p for name, p in model.named_parameters() if ("norm" in name or "ln_" in name) and "weight" in name
    )


if __name__ == "__main__":
    main()
