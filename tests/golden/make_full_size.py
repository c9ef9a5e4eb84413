"""Makes full_size/*.txt: name and shape of every tensor of models of 7 billion parameters, listed on the meta device.

In an environment of its own (`pip install torch==2.13.0 "transformers>=5.23,<6"`):

    python tests/golden/make_full_size.py

The first line of a file is the config.json, the others are `name shape`. Nothing is downloaded: the configs are those
of the models' cards. Names are those of the published files, also where transformers has others in memory.
"""

import json
import re
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM
from transformers.core_model_loading import revert_weight_conversion

AUTO = {"llava_next": AutoModelForImageTextToText, "qwen2_audio": AutoModelForMultimodalLM}
FOLDER = Path(__file__).with_name("full_size")
SEVEN_B = dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, tie_word_embeddings=False)
LLAMA2 = dict(
    model_type="llama",
    vocab_size=32000,
    intermediate_size=11008,
    num_key_value_heads=32,
    max_position_embeddings=4096,
    rms_norm_eps=1e-5,
    **SEVEN_B,
)
# As published: parts leave out what equals the defaults of their classes.
CLIP_L = dict(
    model_type="clip_vision_model",
    hidden_size=1024,
    image_size=336,
    intermediate_size=4096,
    num_attention_heads=16,
    num_hidden_layers=24,
    patch_size=14,
    projection_dim=768,
    vocab_size=32000,
)
LLAVA = dict(
    model_type="llava_next",
    image_token_index=32000,
    projector_hidden_act="gelu",
    tie_word_embeddings=False,
    image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    vision_config=CLIP_L,
    use_image_newline_parameter=True,
    vision_feature_layer=-2,
    vision_feature_select_strategy="default",
)
VICUNA = dict(model_type="llama", max_position_embeddings=4096, pad_token_id=0, rms_norm_eps=1e-5, vocab_size=32064)
MISTRAL = dict(
    model_type="mistral",
    intermediate_size=14336,
    max_position_embeddings=32768,
    num_key_value_heads=8,
    rms_norm_eps=1e-5,
    rope_theta=1e6,
    sliding_window=None,
    vocab_size=32064,
)
PUBLISHED = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.vision_tower\.", "vision_tower.vision_model."),
    (r"^model\.(multi_modal_projector|image_newline)", r"\1"),
)
CONFIGS = {
    "llama-2-7b": LLAMA2,
    "vicuna-7b-v1.5": LLAMA2 | dict(rms_norm_eps=1e-5),
    "mistral-7b-v0.1": dict(
        model_type="mistral",
        vocab_size=32000,
        intermediate_size=14336,
        num_key_value_heads=8,
        max_position_embeddings=32768,
        sliding_window=4096,
        rms_norm_eps=1e-5,
        **SEVEN_B,
    ),
    "qwen2-7b": dict(
        model_type="qwen2",
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        rope_theta=1e6,
        max_position_embeddings=131072,
        tie_word_embeddings=False,
    ),
    "llava-v1.6-vicuna-7b": LLAVA | dict(text_config=VICUNA),
    "llava-v1.6-mistral-7b": LLAVA | dict(text_config=MISTRAL),
    "qwen2-audio-7b-instruct": dict(
        model_type="qwen2_audio",
        audio_token_index=151646,
        audio_config=dict(
            model_type="qwen2_audio_encoder",
            num_mel_bins=128,
            d_model=1280,
            encoder_layers=32,
            encoder_attention_heads=20,
            encoder_ffn_dim=5120,
            max_source_positions=1500,
            activation_function="gelu",
            scale_embedding=False,
        ),
        text_config=dict(
            model_type="qwen2",
            vocab_size=156032,
            intermediate_size=11008,
            rms_norm_eps=1e-5,
            rope_theta=10000,
            max_position_embeddings=8192,
            sliding_window=32768,
        ),
    ),
}


def published(name: str, kind: str) -> str:
    """The name of a tensor in the published files."""
    if kind == "llava_next":
        for pattern, into in PUBLISHED:
            name = re.sub(pattern, into, name)
    return name


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, config in CONFIGS.items():
        kind = config["model_type"]
        auto = AUTO.get(kind, AutoModelForCausalLM)
        with torch.device("meta"):
            model = auto.from_config(AutoConfig.for_model(**config))
        tensors = model.state_dict()
        if kind == "qwen2_audio":  # its published names are those that `save_pretrained` writes
            tensors = revert_weight_conversion(model, tensors)
        tensors = {published(tensor, kind): value for tensor, value in tensors.items()}
        lines = [f"{tensor} {'x'.join(map(str, value.shape))}" for tensor, value in tensors.items()]
        (FOLDER / f"{name}.txt").write_text("\n".join([json.dumps(config), *lines]) + "\n")
        print(name, len(lines), sum(p.numel() for p in model.parameters()))


if __name__ == "__main__":
    main()
