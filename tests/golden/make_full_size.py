"""Makes full_size/*.txt: name and shape of every tensor of published models, listed on the meta device.

In an environment of its own (`pip install torch==2.13.0 "transformers>=5.23,<6"`):

    python tests/golden/make_full_size.py

Names of models as arguments make those alone.
The first line of a file is the config.json, the others are `name shape`, where {0..31} in a name stands for each of 32
layers. Nothing is downloaded: the configs are those of the models' cards. Names are those of the published files, also
where transformers has others in memory; an output layer that is tied to the embeddings is not listed.
"""

import copy
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM
from transformers.core_model_loading import revert_weight_conversion

AUTO = {
    "idefics3": AutoModelForImageTextToText,
    "llava_next": AutoModelForImageTextToText,
    "paligemma": AutoModelForImageTextToText,
    "qwen2_audio": AutoModelForMultimodalLM,
    "smolvlm": AutoModelForImageTextToText,
}
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


def llama3(hidden: int, wide: int, layers: int, heads: int, **more) -> dict:
    """Llama 3.1 to 3.3; `factor` is 32 for those of 3.2, which are tied."""
    rope = dict(
        rope_type="llama3",
        factor=more.pop("factor", 8.0),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    return dict(
        model_type="llama",
        vocab_size=128256,
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling=rope,
        attention_bias=False,
        mlp_bias=False,
    ) | dict({"tie_word_embeddings": False} | more)


def qwen(kind: str, hidden: int, wide: int, layers: int, heads: tuple[int, int], **more) -> dict:
    """Qwen2.5 and 3; `heads` are those of queries, and those of keys and values."""
    return dict(
        model_type=kind,
        vocab_size=151936,
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_theta=1000000.0,
        use_sliding_window=False,
        max_window_layers=layers,
    ) | dict({"tie_word_embeddings": False, "sliding_window": 32768} | more)


LARGE_QWEN = dict(vocab_size=152064, max_position_embeddings=131072, sliding_window=131072)
R1 = dict(max_position_embeddings=131072, sliding_window=4096, use_mrope=False)
QWEN3 = dict(max_position_embeddings=40960, head_dim=128, attention_bias=False, rope_scaling=None, sliding_window=None)
CONFIGS |= {
    "llama-3.1-8b": llama3(4096, 14336, 32, 32),
    "llama-3.1-70b": llama3(8192, 28672, 80, 64),
    "llama-3.1-405b": llama3(16384, 53248, 126, 128),
    "llama-3.2-1b": llama3(2048, 8192, 16, 32, head_dim=64, factor=32.0, tie_word_embeddings=True),
    "llama-3.2-3b": llama3(3072, 8192, 28, 24, head_dim=128, factor=32.0, tie_word_embeddings=True),
    "qwen2.5-0.5b": qwen("qwen2", 896, 4864, 24, (14, 2), tie_word_embeddings=True),
    "qwen2.5-1.5b": qwen("qwen2", 1536, 8960, 28, (12, 2), tie_word_embeddings=True),
    "qwen2.5-3b": qwen("qwen2", 2048, 11008, 36, (16, 2), tie_word_embeddings=True),
    "qwen2.5-7b": qwen("qwen2", 3584, 18944, 28, (28, 4), **LARGE_QWEN),
    "qwen2.5-14b": qwen("qwen2", 5120, 13824, 48, (40, 8), **LARGE_QWEN),
    "qwen2.5-32b": qwen("qwen2", 5120, 27648, 64, (40, 8), **LARGE_QWEN),
    "qwen2.5-72b": qwen("qwen2", 8192, 29568, 80, (64, 8), **LARGE_QWEN),
    "deepseek-r1-distill-qwen-1.5b": qwen("qwen2", 1536, 8960, 28, (12, 2), rope_theta=10000, **R1),
    "deepseek-r1-distill-qwen-7b": qwen("qwen2", 3584, 18944, 28, (28, 4), vocab_size=152064, rope_theta=10000, **R1),
    "deepseek-r1-distill-qwen-14b": qwen("qwen2", 5120, 13824, 48, (40, 8), **LARGE_QWEN),
    "deepseek-r1-distill-qwen-32b": qwen("qwen2", 5120, 27648, 64, (40, 8), **LARGE_QWEN),
    "deepseek-r1-distill-llama-8b": llama3(4096, 14336, 32, 32),
    "deepseek-r1-distill-llama-70b": llama3(8192, 28672, 80, 64, head_dim=128),
    "qwen3-0.6b": qwen("qwen3", 1024, 3072, 28, (16, 8), tie_word_embeddings=True, **QWEN3),
    "qwen3-1.7b": qwen("qwen3", 2048, 6144, 28, (16, 8), tie_word_embeddings=True, **QWEN3),
    "qwen3-4b": qwen("qwen3", 2560, 9728, 36, (32, 8), tie_word_embeddings=True, **QWEN3),
    "qwen3-8b": qwen("qwen3", 4096, 12288, 36, (32, 8), **QWEN3),
    "qwen3-14b": qwen("qwen3", 5120, 17408, 40, (40, 8), **QWEN3),
    "qwen3-32b": qwen("qwen3", 5120, 25600, 64, (64, 8), **QWEN3),
    "smollm3-3b": dict(
        model_type="smollm3",
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=65536,
        rms_norm_eps=1e-6,
        rope_theta=5000000.0,
        rope_scaling=None,
        attention_bias=False,
        mlp_bias=False,
        layer_types=["full_attention"] * 36,
        max_window_layers=28,
        no_rope_layer_interval=4,
        no_rope_layers=[1, 1, 1, 0] * 9,
        sliding_window=None,
        use_sliding_window=False,
    ),
}


def gemma(kind: str, hidden: int, wide: int, layers: int, heads: tuple[int, int], **more) -> dict:
    """Gemma 2 and 3 as published; `heads` are those of queries, and those of keys and values."""
    return dict(
        model_type=kind,
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        attention_bias=False,
        hidden_activation="gelu_pytorch_tanh",
        rms_norm_eps=1e-6,
    ) | dict({"head_dim": 256, "query_pre_attn_scalar": 256} | more)


GEMMA2 = dict(
    vocab_size=256000,
    max_position_embeddings=8192,
    hidden_act="gelu_pytorch_tanh",
    rope_theta=10000.0,
    sliding_window=4096,
    attn_logit_softcapping=50.0,
    final_logit_softcapping=30.0,
)
GEMMA3 = dict(
    vocab_size=262144,
    max_position_embeddings=32768,
    rope_theta=1000000,
    rope_local_base_freq=10000,
    rope_scaling=None,
    sliding_window=512,
    attn_logit_softcapping=None,
    final_logit_softcapping=None,
)
# Gemma 1, of which the first files call the activation "gelu".
GEMMA1 = dict(
    model_type="gemma",
    attention_bias=False,
    head_dim=256,
    hidden_act="gelu",
    max_position_embeddings=8192,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    vocab_size=256000,
)
SIX = (["sliding_attention"] * 5 + ["full_attention"]) * 3
# The text_config inside those that see, which leaves out what equals the defaults.
TEXT = dict(model_type="gemma3_text", rope_scaling=dict(factor=8.0, rope_type="linear"), sliding_window=1024)
CONFIGS |= {
    "gemma-2b": GEMMA1
    | dict(
        hidden_size=2048, intermediate_size=16384, num_attention_heads=8, num_hidden_layers=18, num_key_value_heads=1
    ),
    "gemma-7b": GEMMA1
    | dict(
        hidden_size=3072, intermediate_size=24576, num_attention_heads=16, num_hidden_layers=28, num_key_value_heads=16
    ),
    "gemma-2-2b": gemma("gemma2", 2304, 9216, 26, (8, 4), **GEMMA2),
    "gemma-2-9b": gemma("gemma2", 3584, 14336, 42, (16, 8), **GEMMA2),
    "gemma-2-27b": gemma("gemma2", 4608, 36864, 46, (32, 16), head_dim=128, query_pre_attn_scalar=144, **GEMMA2),
    "gemma-3-270m": gemma("gemma3_text", 640, 2048, 18, (4, 1), layer_types=SIX, **GEMMA3),
    "gemma-3-1b": gemma("gemma3_text", 1152, 6912, 26, (4, 1), sliding_window_pattern=6, **GEMMA3),
    "gemma-3-4b-text": dict(hidden_size=2560, intermediate_size=10240, num_hidden_layers=34) | TEXT,
    "gemma-3-12b-text": dict(
        hidden_size=3840,
        intermediate_size=15360,
        num_attention_heads=16,
        num_hidden_layers=48,
        num_key_value_heads=8,
    )
    | TEXT,
    "gemma-3-27b-text": dict(
        head_dim=128,
        hidden_size=5376,
        intermediate_size=21504,
        num_attention_heads=32,
        num_hidden_layers=62,
        num_key_value_heads=16,
        query_pre_attn_scalar=168,
    )
    | TEXT,
}


def phi(hidden: int, wide: int, layers: int, heads: tuple[int, int], window: int | None, **more) -> dict:
    """Phi-3 and 4 as published; `heads` are those of queries, and those of keys and values."""
    return dict(
        model_type="phi3",
        vocab_size=32064,
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        sliding_window=window,
        attention_bias=False,
        hidden_act="silu",
        rms_norm_eps=1e-5,
        rope_scaling=None,
        rope_theta=10000.0,
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
        tie_word_embeddings=False,
    ) | dict(more)


# As many factors as published, but not their values, which no shape depends on.
LONGROPE = dict(
    max_position_embeddings=131072,
    rope_scaling=dict(type="longrope", short_factor=[1.0] * 48, long_factor=[2.0] * 48),
)
CONFIGS |= {
    "phi-3-mini-4k": phi(3072, 8192, 32, (32, 32), 2047),
    "phi-3-mini-128k": phi(3072, 8192, 32, (32, 32), 262144, **LONGROPE),
    "phi-3-medium-4k": phi(5120, 17920, 40, (40, 10), 2047),
    "phi-3.5-mini": phi(3072, 8192, 32, (32, 32), 262144, **LONGROPE),
    "phi-4": phi(
        5120,
        17920,
        40,
        (40, 10),
        None,
        vocab_size=100352,
        max_position_embeddings=16384,
        original_max_position_embeddings=16384,
        rope_theta=250000,
        pad_token_id=None,
    ),
    "phi-4-mini": phi(
        3072,
        8192,
        32,
        (24, 8),
        262144,
        vocab_size=200064,
        tie_word_embeddings=True,
        partial_rotary_factor=0.75,
        pad_token_id=None,
        **LONGROPE,
    ),
}


def smolvlm(kind: str, text: dict, vision: dict, scale: int, image_token: int, vocabulary: int = 49280) -> dict:
    """SmolVLM and SmolVLM2 as published."""
    shared = dict(
        model_type="llama",
        head_dim=64,
        max_position_embeddings=8192,
        pad_token_id=2,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        vocab_size=vocabulary,
    )
    return dict(
        model_type=kind,
        image_token_id=image_token,
        scale_factor=scale,
        tie_word_embeddings=False,
        text_config=shared | text,
        vision_config=dict(model_type=f"{kind}_vision") | vision,
    )


SIGLIP_BASE = dict(hidden_size=768, image_size=512, num_attention_heads=12, patch_size=16)
SO400M = dict(hidden_size=1152, intermediate_size=4304, num_attention_heads=16, num_hidden_layers=27, patch_size=14)
CONFIGS |= {
    "smolvlm-256m": smolvlm(
        "idefics3",
        dict(
            hidden_size=576,
            intermediate_size=1536,
            num_attention_heads=9,
            num_hidden_layers=30,
            num_key_value_heads=3,
            rope_theta=100000,
        ),
        SIGLIP_BASE,
        scale=4,
        image_token=49190,
    ),
    "smolvlm-500m": smolvlm(
        "smolvlm",
        dict(
            hidden_size=960,
            intermediate_size=2560,
            num_attention_heads=15,
            num_hidden_layers=32,
            num_key_value_heads=5,
            rope_theta=100000,
        ),
        SIGLIP_BASE,
        scale=4,
        image_token=49190,
    ),
    "smolvlm-2.2b": smolvlm(
        "idefics3",
        dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, rope_theta=273768.0),
        SO400M | dict(image_size=384),
        scale=3,
        image_token=49153,
        vocabulary=49155,
    ),
}


def paligemma(side: int, text: dict) -> dict:
    """PaliGemma 1 and 2 as published."""
    return dict(
        model_type="paligemma",
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        hidden_size=2048,
        image_token_index=257152,
        projection_dim=text["hidden_size"],
        text_config=dict(vocab_size=257216) | text,
        vision_config=dict(model_type="siglip_vision_model", image_size=side, vision_use_head=False) | SO400M,
    )


def gemma2(hidden: int, wide: int, layers: int, heads: tuple[int, int], **more) -> dict:
    """The text of PaliGemma 2; `heads` are those of queries, and those of keys and values."""
    return dict(
        model_type="gemma2",
        hidden_activation="gelu_pytorch_tanh",
        hidden_size=hidden,
        intermediate_size=wide,
        num_attention_heads=heads[0],
        num_hidden_layers=layers,
        num_key_value_heads=heads[1],
        query_pre_attn_scalar=256,
        sliding_window=4096,
    ) | dict(more)


CONFIGS |= {
    "paligemma-3b-224": paligemma(
        224,
        dict(
            model_type="gemma",
            hidden_size=2048,
            intermediate_size=16384,
            num_attention_heads=8,
            num_hidden_layers=18,
            num_key_value_heads=1,
        ),
    ),
    "paligemma2-3b-224": paligemma(224, gemma2(2304, 9216, 26, (8, 4))),
    "paligemma2-10b-448": paligemma(448, gemma2(3584, 14336, 42, (16, 8))),
    "paligemma2-28b-896": paligemma(896, gemma2(4608, 36864, 46, (32, 16), head_dim=128, query_pre_attn_scalar=144)),
}
TIED = ("gemma", "gemma2", "gemma3_text", "paligemma", "smollm3")  # where a config.json does not say otherwise


def compact(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Lines `name shape`, one for tensors that differ in the number of their layer alone."""
    layers = {}
    for name, shape in shapes.items():
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        pattern = name if number is None else f"{name[: number.start()]}#{name[number.end() :]}"
        layers.setdefault((pattern, shape), []).append(None if number is None else int(number[0]))
    lines = []
    for (pattern, shape), numbers in layers.items():
        if numbers != [None]:
            assert numbers == list(range(len(numbers))), (pattern, numbers)
            pattern = pattern.replace("#", f"{{0..{numbers[-1]}}}")
        lines.append(f"{pattern} {'x'.join(map(str, shape))}")
    return lines


def published(name: str, kind: str) -> str:
    """The name of a tensor in the published files."""
    if kind in ("llava_next", "paligemma"):
        for pattern, into in PUBLISHED:
            name = re.sub(pattern, into, name)
    return name


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, config in CONFIGS.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        kind = config["model_type"]
        auto = AUTO.get(kind, AutoModelForCausalLM)
        with torch.device("meta"):
            model = auto.from_config(AutoConfig.for_model(**copy.deepcopy(config)))  # it changes the dicts in it
        tensors = model.state_dict()
        if kind == "qwen2_audio":  # its published names are those that `save_pretrained` writes
            tensors = revert_weight_conversion(model, tensors)
        if config.get("tie_word_embeddings", kind in TIED):
            tensors.pop("lm_head.weight")
        tensors = {published(tensor, kind): value for tensor, value in tensors.items()}
        lines = compact({tensor: tuple(value.shape) for tensor, value in tensors.items()})
        (FOLDER / f"{name}.txt").write_text("\n".join([json.dumps(config), *lines]) + "\n")
        print(name, len(tensors), sum(p.numel() for p in model.parameters()))


if __name__ == "__main__":
    main()
