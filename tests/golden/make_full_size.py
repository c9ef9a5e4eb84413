"""Makes full_size/*.txt: name and shape of every tensor of models of 7 billion parameters, listed on the meta device.

In an environment of its own (`pip install torch==2.13.0 "transformers>=5.23,<6"`):

    python tests/golden/make_full_size.py

The first line of a file is the config.json, the others are `name shape`. Nothing is downloaded: the configs are those
of the models' cards.
"""

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

FOLDER = Path(__file__).with_name("full_size")
SEVEN_B = dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, tie_word_embeddings=False)
LLAMA2 = dict(model_type="llama", vocab_size=32000, intermediate_size=11008, num_key_value_heads=32,
              max_position_embeddings=4096, rms_norm_eps=1e-5, **SEVEN_B)  # fmt: skip
CONFIGS = {
    "llama-2-7b": LLAMA2,
    "vicuna-7b-v1.5": LLAMA2 | dict(rms_norm_eps=1e-5),
    "mistral-7b-v0.1": dict(model_type="mistral", vocab_size=32000, intermediate_size=14336, num_key_value_heads=8,
                            max_position_embeddings=32768, sliding_window=4096, rms_norm_eps=1e-5, **SEVEN_B),
    "qwen2-7b": dict(model_type="qwen2", vocab_size=152064, hidden_size=3584, intermediate_size=18944,
                     num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, rope_theta=1e6,
                     max_position_embeddings=131072, tie_word_embeddings=False),
}  # fmt: skip


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, config in CONFIGS.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        lines = [f"{tensor} {'x'.join(map(str, value.shape))}" for tensor, value in model.state_dict().items()]
        (FOLDER / f"{name}.txt").write_text("\n".join([json.dumps(config), *lines]) + "\n")
        print(name, len(lines), sum(p.numel() for p in model.parameters()))


if __name__ == "__main__":
    main()
