"""Makes smolvlm/: a tiny random SmolVLM and Idefics3 saved by Hugging Face, and what it computes with them.

In an environment of its own (`pip install torch==2.13.0 "transformers>=5.23,<6" pillow`):

    python tests/golden/make_smolvlm.py

Each folder is what `save_pretrained` writes, with expected.npz beside it, of a batch of four rows padded on the left,
the second without a picture:

    pixels [4, P, 3, S, S]   uint8 noise; pixel_values are pixels / 64 - 2
    tiles [4]                number of tiles of each picture; the others are padding, which is 0 for Hugging Face
    tokens, mask [4, T]      with a placeholder for each feature
    states [P, n, D]         the vision tower's for the last picture
    embeddings [4, T, D]     what the language model is given
    logits [4, T, V]         and generated [4, 7], greedily

smolvlm/ has the files of a processor too.
"""

from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

FOLDER = Path(__file__).with_name("smolvlm")
SPECIAL = ["<|im_start|>", "<|im_end|>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyzUA.:?ĠĊ"
IMAGE = len(CHARACTERS) + 1 + SPECIAL.index("<image>")
TEXT = dict(
    model_type="llama",
    vocab_size=53,
    hidden_size=16,
    intermediate_size=19,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    max_position_embeddings=128,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
TOWER = dict(hidden_size=10, intermediate_size=13, num_hidden_layers=3, num_attention_heads=5)
MODELS = {
    "smolvlm": (
        SmolVLMForConditionalGeneration,
        SmolVLMConfig(
            text_config=dict(TEXT, rope_theta=100.0),
            vision_config=dict(TOWER, image_size=12, patch_size=3),
            scale_factor=2,
            image_token_id=IMAGE,
        ),
    ),
    "idefics3": (  # patches that do not fill a tile
        Idefics3ForConditionalGeneration,
        Idefics3Config(
            text_config=dict(TEXT, tie_word_embeddings=True),
            tie_word_embeddings=True,
            vision_config=dict(TOWER, image_size=13, patch_size=2, hidden_act="gelu"),
            scale_factor=3,
            image_token_id=IMAGE,
        ),
    ),
}
TILES = [1, 0, 5, 3]
MOST = 5


def prompts(per_tile: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask: words, the tiles of a picture with a token before each, words."""
    word = lambda number: rng.integers(0, IMAGE, number).tolist()
    rows = []
    for b, tiles in enumerate(TILES):
        picture = [token for _ in range(tiles) for token in (*word(1), *[IMAGE] * per_tile)]
        rows.append(word(2 + b) + picture + word(5 - b))
    T = max(map(len, rows))
    tokens = np.array([[3] * (T - len(row)) + row for row in rows])
    return tokens, np.array([[False] * (T - len(row)) + [True] * len(row) for row in rows])


def processor(config) -> Idefics3Processor:
    """A processor with a tokenizer of characters, which joins two newlines."""
    vocabulary = {character: number for number, character in enumerate([*CHARACTERS, "ĊĊ"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokens = [*SPECIAL, *(f"<row_{r}_col_{c}>" for r in (1, 2, 3) for c in (1, 2, 3))]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    names = dict(bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<|im_end|>")
    size = config.vision_config.image_size
    images = SmolVLMImageProcessorPil(
        size={"longest_edge": 3 * size},
        max_image_size={"longest_edge": size},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    per_tile = (size // config.vision_config.patch_size // config.scale_factor) ** 2
    return Idefics3Processor(
        images, PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names), image_seq_len=per_tile
    )


def randomize(model: torch.nn.Module) -> None:
    """Draws all parameters: biases and norms too, since at 0 and 1 they would hide a mistake."""
    for tensor, parameter in model.named_parameters():
        spread = 0.35 if parameter.ndim > 1 else 0.1
        parameter.data = spread * torch.randn_like(parameter) + float("norm" in tensor and "weight" in tensor)
    model.tie_weights()


@torch.no_grad()
def expected(model: torch.nn.Module, per_tile: int, rng) -> dict[str, np.ndarray]:
    size = model.config.vision_config.image_size
    pixels = rng.integers(0, 256, (len(TILES), MOST, 3, size, size), np.uint8)
    tokens, mask = map(torch.tensor, prompts(per_tile, rng))
    real = torch.arange(MOST)[None] < torch.tensor(TILES)[:, None]
    pixel_values = torch.where(real[..., None, None, None], torch.tensor(pixels / 64 - 2).float(), 0.0)
    inputs = dict(input_ids=tokens, attention_mask=mask.long(), pixel_values=pixel_values)
    seen = []
    model.model.text_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    logits = model(**inputs, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    embeddings = seen[0]
    states = model.model.vision_model(torch.tensor(pixels[-1] / 64 - 2).float()).last_hidden_state
    generated = model.generate(**inputs, max_new_tokens=7, do_sample=False, eos_token_id=None, pad_token_id=3)
    found = dict(tokens=tokens, mask=mask, states=states, embeddings=embeddings, logits=logits)
    found = {name: value.numpy() for name, value in found.items()}
    return found | dict(pixels=pixels, tiles=np.array(TILES), generated=generated[:, tokens.shape[1] :].numpy())


def main() -> None:
    for name, (kind, config) in MODELS.items():
        torch.manual_seed(len(name))
        model = kind(config).eval()
        randomize(model)
        model.save_pretrained(FOLDER / name)
        (FOLDER / name / "generation_config.json").unlink(missing_ok=True)
        if name == "smolvlm":
            processor(config).save_pretrained(FOLDER / name)
        per_tile = (config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor) ** 2
        found = expected(model, per_tile, np.random.default_rng(len(name)))
        np.savez_compressed(FOLDER / name / "expected.npz", **found)
        print(name, sum(p.numel() for p in model.parameters()), found["tokens"].shape, np.abs(found["logits"]).max())
        print(found["generated"].tolist())


if __name__ == "__main__":
    main()
