"""Makes llava/: tiny random LLaVA-NeXTs saved by Hugging Face, what it computes with them, and how it packs pictures.

In an environment of its own (`pip install torch==2.13.0 "transformers>=5.23,<6" pillow`):

    python tests/golden/make_llava.py

Each folder is what `save_pretrained` writes, with expected.npz beside it, of a batch of four rows padded on the left,
the second without a picture:

    pixels [3, P, 3, S, S]   uint8 noise; pixel_values are pixels / 64 - 2
    sizes [3, 2]             height and width of the three pictures
    tokens, mask [4, T]      with the placeholder repeated
    states [L + 1, P, n, D]  hidden states of the vision tower for the first picture
    embeddings [4, T, D]     what the language model is given
    logits [4, T, V]         and generated [4, 7], greedily

llama/ has the files of a processor too. tiling.npz holds, for each of several tilings, indices of patches as
`pack_image_features` puts them, of all `sizes` one behind the other and written as differences, which compress.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextModel,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

FOLDER = Path(__file__).with_name("llava")
PLACEHOLDER, VOCABULARY = 36, 37
WORDS = ["<unk>", "<s>", "</s>", "<pad>", "USER", ":", "ASSISTANT", "a", "red", "dog", "what", "is", "this", "?"]
TEXT = dict(
    vocab_size=VOCABULARY,
    hidden_size=16,
    intermediate_size=19,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    max_position_embeddings=128,
    bos_token_id=None,
    eos_token_id=None,
)
TOWER = dict(hidden_size=10, intermediate_size=13, num_hidden_layers=3, num_attention_heads=5)
grid = lambda size: [[size, 2 * size], [2 * size, size], [2 * size, 2 * size], [3 * size, size], [size, 3 * size]]

MODELS = {
    "llama": dict(
        text_config=dict(TEXT, model_type="llama", rope_theta=100.0),
        vision_config=dict(TOWER, image_size=12, patch_size=4),
        image_grid_pinpoints=grid(12),
    ),
    "mistral": dict(  # patches that do not fill a tile; two layers side by side; no biases
        text_config=dict(TEXT, model_type="mistral", sliding_window=5),
        vision_config=dict(TOWER, image_size=10, patch_size=4, hidden_act="gelu"),
        image_grid_pinpoints=grid(10),
        vision_feature_layer=[-2, 1],
        multimodal_projector_bias=False,
    ),
    "qwen2": dict(
        text_config=dict(TEXT, model_type="qwen2", tie_word_embeddings=True),
        tie_word_embeddings=True,
        vision_config=dict(TOWER, image_size=6, patch_size=3),
        image_grid_pinpoints=[[6, 6], [12, 18], [18, 6]],
        vision_feature_layer=-1,
        projector_hidden_act="quick_gelu",
    ),
}
SIZES = [(9, 31), (57, 20), (30, 30)]
TILINGS = {  # image_size, patch_size, pinpoints
    "7b": (336, 14, [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]),
    "llama": (12, 4, grid(12)),
    "mistral": (10, 4, grid(10)),
    "qwen2": (6, 3, [[6, 6], [12, 18], [18, 6]]),
}
PACKED_SIZES = [
    (1, 1), (2, 3), (1, 5000), (5000, 1), (3, 4000), (4000, 3), (336, 336), (335, 337), (672, 672), (671, 673),
    (480, 640), (640, 480), (427, 640), (1080, 1920), (1920, 1080), (4000, 3000), (101, 103), (7, 211), (211, 7),
    (1008, 336), (336, 1008), (333, 1001), (500, 333), (10, 12), (12, 25), (37, 11), (6000, 6000), (24, 72),
]  # fmt: skip


def config_of(fields: dict) -> LlavaNextConfig:
    text, vision = AutoConfig.for_model(**fields["text_config"]), CLIPVisionConfig(**fields["vision_config"])
    rest = {key: value for key, value in fields.items() if key not in ("text_config", "vision_config")}
    return LlavaNextConfig(text_config=text, vision_config=vision, image_token_index=PLACEHOLDER, **rest)


def packed(config, size: tuple[int, int]) -> torch.Tensor:
    """Index of each token of a picture: tile · n + patch, -1 for a newline."""
    image_size, patches = (
        config.vision_config.image_size,
        (config.vision_config.image_size // config.vision_config.patch_size) ** 2,
    )
    best = select_best_resolution(size, config.image_grid_pinpoints)
    tiles = 1 + best[0] * best[1] // image_size**2
    numbers = torch.arange(tiles * patches, dtype=torch.float32).reshape(tiles, patches, 1)
    (features,), _ = LlavaNextModel.pack_image_features(
        SimpleNamespace(config=config), [numbers], [list(size)], "default", image_newline=torch.tensor([-1.0])
    )
    return features[:, 0].int()


def save_tilings() -> None:
    found = {"sizes": np.array(PACKED_SIZES)}
    for name, (image_size, patch_size, pinpoints) in TILINGS.items():
        vision = SimpleNamespace(image_size=image_size, patch_size=patch_size)
        config = SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints)
        indices = [packed(config, size).numpy() for size in PACKED_SIZES]
        found[f"{name}/tiling"] = np.array(json.dumps([pinpoints, image_size, patch_size]))
        found[f"{name}/lengths"] = np.array([len(index) for index in indices])
        found[f"{name}/differences"] = np.diff(np.concatenate(indices), prepend=0).astype(np.int16)
    np.savez_compressed(FOLDER / "tiling.npz", **found)


def prompts(config, rng) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask: words, a picture in all rows but the second, words."""
    word = lambda number: rng.integers(5, PLACEHOLDER, number).tolist()
    pictures = [[PLACEHOLDER] * len(packed(config, size)) for size in SIZES]
    pictures.insert(1, [])
    rows = [word(2 + b) + picture + word(5 - b) for b, picture in enumerate(pictures)]
    T = max(map(len, rows))
    tokens = np.array([[3] * (T - len(row)) + row for row in rows])
    return tokens, np.array([[False] * (T - len(row)) + [True] * len(row) for row in rows])


def processor(config) -> LlavaNextProcessor:
    vocabulary = {word: number for number, word in enumerate(WORDS)} | {"<image>": PLACEHOLDER}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(
        unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>", additional_special_tokens=["<image>"]
    )
    size = config.vision_config.image_size
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_grid_pinpoints=config.image_grid_pinpoints,
    )
    return LlavaNextProcessor(
        images,
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names),
        num_additional_image_tokens=1,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default",
    )


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    save_tilings()
    for name, fields in MODELS.items():
        config, rng = config_of(fields), np.random.default_rng(len(name))
        torch.manual_seed(len(name) + 1)
        model = LlavaNextForConditionalGeneration(config).eval()
        for tensor, parameter in model.named_parameters():  # biases and norms too: at 0 and 1 they would hide a mistake
            spread = 0.35 if parameter.ndim > 1 else 0.1
            parameter.data = spread * torch.randn_like(parameter) + (
                1.0 if "norm" in tensor and "weight" in tensor else 0.0
            )
        model.tie_weights()
        model.save_pretrained(FOLDER / name)
        (FOLDER / name / "generation_config.json").unlink(missing_ok=True)
        if name == "llama":
            processor(config).save_pretrained(FOLDER / name)

        size, tokens_mask = config.vision_config.image_size, prompts(config, rng)
        tiles = 1 + max(h * w for h, w in config.image_grid_pinpoints) // size**2
        pixels = rng.integers(0, 256, (len(SIZES), tiles, 3, size, size), np.uint8)
        tokens, mask = map(torch.tensor, tokens_mask)
        inputs = dict(
            input_ids=tokens,
            attention_mask=mask.long(),
            pixel_values=torch.tensor(pixels / 64 - 2).float(),
            image_sizes=torch.tensor(SIZES),
        )
        seen = []
        model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        with torch.no_grad():
            states = model.model.vision_tower(inputs["pixel_values"][0], output_hidden_states=True).hidden_states
            logits = model(**inputs, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
            embeddings = seen[0]
            generated = model.generate(**inputs, max_new_tokens=7, do_sample=False, eos_token_id=None, pad_token_id=3)
        generated = generated[:, tokens.shape[1] :]
        np.savez_compressed(
            FOLDER / name / "expected.npz",
            pixels=pixels,
            sizes=np.array(SIZES),
            tokens=tokens,
            mask=mask,
            states=torch.stack(states),
            embeddings=embeddings,
            logits=logits,
            generated=generated,
        )
        print(name, sum(p.numel() for p in model.parameters()), tuple(tokens.shape), float(logits.abs().max()))
        print(generated.tolist())


if __name__ == "__main__":
    main()
