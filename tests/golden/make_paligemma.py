"""Makes paligemma/: tiny random PaliGemmas saved by Hugging Face, and what it computes with them.

In an environment of its own (`pip install torch==2.13.0 "transformers>=5.23,<6"`):

    python tests/golden/make_paligemma.py

Each folder is what `save_pretrained` writes, with expected.npz beside it. A batch has four rows padded on the left, the
second without a picture:

    pixels [3, 3, S, S]           uint8 noise; pixel_values are pixels / 64 - 2
    states [3, n, D]              the vision tower's
    tokens, mask, answer [4, T]   prompts with a placeholder for each feature, and answers, where `answer` is true
    embeddings [4, T, D]          what the language model is given
    logits [4, T, V]
    prompts, prompt_mask [4, P]   the prompts alone, and generated [4, 9], greedily
"""

from pathlib import Path

import numpy as np
import torch
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

FOLDER = Path(__file__).with_name("paligemma")
IMAGE, VOCABULARY = 47, 53
TEXT = dict(
    vocab_size=VOCABULARY,
    hidden_size=16,
    intermediate_size=19,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    max_position_embeddings=128,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=0,
)
GEMMA2 = dict(
    query_pre_attn_scalar=5,
    sliding_window=4,  # shorter than the prompts, which see one another beyond it
    attn_logit_softcapping=1.5,
    final_logit_softcapping=2.5,
)
TOWER = dict(hidden_size=10, intermediate_size=13, num_hidden_layers=3, num_attention_heads=5, vision_use_head=False)
MODELS = {
    name: PaliGemmaConfig(
        text_config=TEXT | more | dict(model_type=name),
        vision_config=dict(TOWER, model_type="siglip_vision_model", image_size=13, patch_size=4),
        image_token_index=IMAGE,
        projection_dim=16,
        hidden_size=16,
    )
    for name, more in {"gemma": {}, "gemma2": GEMMA2}.items()
}
SEEN = [True, False, True, True]


def padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    T = max(map(len, rows))
    tokens = np.array([[3] * (T - len(row)) + row for row in rows])
    return tokens, np.array([[False] * (T - len(row)) + [True] * len(row) for row in rows])


def randomize(model: torch.nn.Module) -> None:
    """Draws all parameters: biases and norms too, since at their usual values they would hide a mistake."""
    for tensor, parameter in model.named_parameters():
        spread = 0.35 if parameter.ndim > 1 else 0.1
        ones = "norm" in tensor and "weight" in tensor and "vision" in tensor  # a Gemma's norms add 1 themselves
        parameter.data = spread * torch.randn_like(parameter) + float(ones)
    model.tie_weights()


@torch.no_grad()
def expected(model: torch.nn.Module, rng) -> dict[str, np.ndarray]:
    vision = model.config.vision_config
    word = lambda number: rng.integers(4, IMAGE, number).tolist()
    picture = [IMAGE] * (vision.image_size // vision.patch_size) ** 2
    prompts = [picture * seen + word(3 + b) for b, seen in enumerate(SEEN)]
    whole = [prompt + word(8 - b) for b, prompt in enumerate(prompts)]
    (prompt_tokens, prompt_mask), (tokens, mask) = padded(prompts), padded(whole)
    lengths = np.array([len(row) - len(prompt) for row, prompt in zip(whole, prompts, strict=True)])
    answer = np.arange(tokens.shape[1])[None] >= tokens.shape[1] - lengths[:, None]
    pixels = rng.integers(0, 256, (sum(SEEN), 3, vision.image_size, vision.image_size), np.uint8)
    pixel_values, seen = torch.tensor(pixels / 64 - 2).float(), []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    logits = model(
        input_ids=torch.tensor(tokens),
        attention_mask=torch.tensor(mask).long(),
        token_type_ids=torch.tensor(answer).long(),
        position_ids=torch.tensor(mask).cumsum(1),
        pixel_values=pixel_values,
    ).logits
    handle.remove()
    generated = model.generate(
        input_ids=torch.tensor(prompt_tokens),
        attention_mask=torch.tensor(prompt_mask).long(),
        token_type_ids=torch.zeros(prompt_tokens.shape, dtype=torch.long),
        pixel_values=pixel_values,
        max_new_tokens=9,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=3,
    )
    states = model.model.vision_tower(pixel_values).last_hidden_state
    theirs = dict(states=states, embeddings=seen[0], logits=logits, generated=generated[:, prompt_tokens.shape[1] :])
    ours = dict(tokens=tokens, mask=mask, answer=answer, prompts=prompt_tokens, prompt_mask=prompt_mask, pixels=pixels)
    return ours | {name: value.numpy() for name, value in theirs.items()}


def main() -> None:
    for name, config in MODELS.items():
        torch.manual_seed(len(name))
        model = PaliGemmaForConditionalGeneration(config).eval()
        randomize(model)
        model.save_pretrained(FOLDER / name)
        (FOLDER / name / "generation_config.json").unlink(missing_ok=True)
        found = expected(model, np.random.default_rng(len(name)))
        np.savez_compressed(FOLDER / name / "expected.npz", **found)
        print(name, sum(p.numel() for p in model.parameters()), found["tokens"].shape, np.abs(found["logits"]).max())
        print(found["generated"].tolist())


if __name__ == "__main__":
    main()
