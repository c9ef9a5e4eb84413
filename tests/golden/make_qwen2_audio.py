"""Makes qwen2_audio/: tiny random Qwen2-Audio models saved by Hugging Face, and what it computes for clips on the CPU.

In an environment of its own (`pip install torch==2.13.0 "transformers>=5.23,<6"`):

    python tests/golden/make_qwen2_audio.py

clips.npz holds the clips, in steps of 1/16, that all models hear. Each folder is what `save_pretrained` writes (the
processor's files are in one), with expected.npz beside it: tokens and mask [4, T], padded on the left; mel [4, M, 100]
and frames [4]; the tower's output and the projected features, zero behind the end of each clip; merged embeddings and
logits, zero on padding; and the tokens that greedy decoding adds.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Tokenizer,
    WhisperFeatureExtractor,
)

FOLDER = Path(__file__).with_name("qwen2_audio")
AUDIO = dict(num_mel_bins=7, d_model=20, encoder_ffn_dim=22, encoder_attention_heads=5, max_source_positions=50)
TEXT = dict(vocab_size=37, hidden_size=24, intermediate_size=26, num_attention_heads=6, max_position_embeddings=128)
SPECIAL = ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
MODELS = {
    "grouped": (
        dict(AUDIO, encoder_layers=3),
        dict(TEXT, num_hidden_layers=2, num_key_value_heads=2, tie_word_embeddings=False),
    ),
    "tied": (
        dict(AUDIO, encoder_layers=1),
        dict(TEXT, num_hidden_layers=1, num_key_value_heads=6, tie_word_embeddings=True),
    ),
}
AUDIO_PROMPT = "<|audio_bos|><|AUDIO|><|audio_eos|>"
PROMPTS = [
    AUDIO_PROMPT + "what is it:",
    "hear " + AUDIO_PROMPT + ":",
    AUDIO_PROMPT + "q.",
    "now say what it is." + AUDIO_PROMPT,
]
SAMPLES = [16000, 4801, 9001, 6400]  # the whole window of 100 frames; 31, 57 and 40 frames


def make_clips() -> list[np.ndarray]:
    """Rising tones, int8."""
    seconds = [np.arange(samples) / 16000 for samples in SAMPLES]
    return [
        np.round(9 * np.sin(2 * np.pi * (200 + 170 * i) * t * (1 + t)) + 2 * np.sin(9000 * t * t)).astype(np.int8)
        for i, t in enumerate(seconds)
    ]


def make_processor() -> Qwen2AudioProcessor:
    vocab = {character: i for i, character in enumerate("abcdefghijklmnopqrstuvwxyz.:Ġ")}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=[],
        pad_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token=None,
        extra_special_tokens=SPECIAL,
    )
    return Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=7, chunk_length=1), tokenizer)


def make_model(audio: dict, text: dict, audio_token: int) -> Qwen2AudioForConditionalGeneration:
    config = Qwen2AudioConfig(
        audio_config=dict(audio, model_type="qwen2_audio_encoder"),
        text_config=dict(text, model_type="qwen2"),
        audio_token_index=audio_token,
    )
    model = Qwen2AudioForConditionalGeneration(config).eval()
    torch.manual_seed(7)
    for name, parameter in model.named_parameters():  # biases and norms too: at 0 and 1 they would hide a mistake
        spread = 0.3 if parameter.ndim > 1 else 0.1
        parameter.data = spread * torch.randn_like(parameter) + ("norm" in name and "weight" in name)
    if text["tie_word_embeddings"]:  # this version of transformers does not tie them
        model.lm_head.weight.data = model.model.language_model.embed_tokens.weight.data.clone()
    return model


@torch.no_grad()
def expected(model: Qwen2AudioForConditionalGeneration, inputs: dict) -> dict[str, np.ndarray]:
    mask, seen = inputs["attention_mask"], {}
    greedy = model.generate(**inputs, max_new_tokens=11, do_sample=False, pad_token_id=29)
    keep = lambda name: lambda module, args, output: seen.update({name: getattr(output, "last_hidden_state", output)})
    model.model.audio_tower.register_forward_hook(keep("tower"))
    model.model.multi_modal_projector.register_forward_hook(keep("features"))
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(merged=kwargs["inputs_embeds"]), with_kwargs=True
    )
    seen["logits"] = model(**inputs, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    seen = {name: value.numpy() for name, value in seen.items()}
    frames = inputs["feature_attention_mask"].sum(1)
    _, lengths = model.model.audio_tower._get_feat_extract_output_lengths(frames)
    heard = np.arange(seen["tower"].shape[1])[None] < lengths.numpy()[:, None]
    for name, real in [("tower", heard), ("features", heard), ("merged", mask.numpy()), ("logits", mask.numpy())]:
        seen[name] = np.where(real[..., None], seen[name], 0)
    arrays = dict(tokens=inputs["input_ids"], mask=mask.bool(), mel=inputs["input_features"], frames=frames)
    return seen | {name: value.numpy() for name, value in arrays.items()} | {"greedy": greedy[:, mask.shape[1] :]}


def main() -> None:
    waves, processor = make_clips(), make_processor()
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(FOLDER / "clips.npz", *waves)
    clips = [wave.astype(np.float32) / 16 for wave in waves]
    for name, (audio, text) in MODELS.items():
        model = make_model(audio, text, processor.audio_token_id)
        model.save_pretrained(FOLDER / name)
        (FOLDER / name / "generation_config.json").unlink(missing_ok=True)
        if name == "grouped":
            processor.save_pretrained(FOLDER / name)
        inputs = dict(
            processor(
                text=PROMPTS, audio=clips, sampling_rate=16000, padding=True, padding_side="left", return_tensors="pt"
            )
        )
        found = expected(model, inputs)
        np.savez_compressed(FOLDER / name / "expected.npz", **found)
        print(name, sum(p.numel() for p in model.parameters()), {k: np.shape(v) for k, v in found.items()})
        print(found["frames"], found["greedy"].tolist(), float(np.abs(found["logits"]).max()))


if __name__ == "__main__":
    main()
