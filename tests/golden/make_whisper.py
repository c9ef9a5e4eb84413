"""Makes whisper/tiny: a tiny random Whisper saved by Hugging Face, and what it computes for clips on the CPU.

In an environment of its own (`pip install torch==2.13.0 "transformers>=5.23,<6"`):

    python tests/golden/make_whisper.py

The clips are those of qwen2_audio/clips.npz. The folder is what `save_pretrained` writes (model and processor), with
expected.npz beside it: mel [4, 7, 100] and features [4, 50, 20]; tokens [4, 9] and mask (row 0 padded on the left, row
1 on the right); logits without and padded_logits with padding; prompts [4, 3], and the tokens [4, 11] that greedy
decoding adds, by a loop without a cache.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

HERE = Path(__file__).parent
FOLDER = HERE / "whisper" / "tiny"
CHARACTERS = "abcdefghijklmnopqrstuvwxyz.:Ġ"
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|fr|>", "<|transcribe|>", "<|notimestamps|>"]
END = len(CHARACTERS)
CONFIG = dict(
    vocab_size=END + len(SPECIAL),
    num_mel_bins=7,
    d_model=20,
    encoder_layers=2,
    encoder_attention_heads=5,
    encoder_ffn_dim=22,
    max_source_positions=50,
    decoder_layers=3,
    decoder_attention_heads=4,
    decoder_ffn_dim=26,
    max_target_positions=23,
    pad_token_id=END,
    bos_token_id=END,
    eos_token_id=END,
    decoder_start_token_id=END + 1,
)


def make_processor() -> WhisperProcessor:
    vocab = {character: i for i, character in enumerate(CHARACTERS)} | {SPECIAL[0]: END}
    tokenizer = WhisperTokenizer(vocab=vocab, merges=[], extra_special_tokens=SPECIAL[1:])
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == list(range(END, END + len(SPECIAL)))
    return WhisperProcessor(WhisperFeatureExtractor(feature_size=7, chunk_length=1), tokenizer)


def make_model() -> WhisperForConditionalGeneration:
    model = WhisperForConditionalGeneration(WhisperConfig(**CONFIG)).eval()
    torch.manual_seed(7)
    for name, parameter in model.named_parameters():  # biases and norms too: at 0 and 1 they would hide a mistake
        spread = 0.3 if parameter.ndim > 1 else 0.1
        parameter.data = spread * torch.randn_like(parameter) + ("norm" in name and "weight" in name)
    model.tie_weights()
    return model


@torch.no_grad()
def expected(model: WhisperForConditionalGeneration, mel: torch.Tensor) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tokens, mask = torch.tensor(rng.integers(0, END, (4, 9))), torch.ones(4, 9, dtype=torch.long)
    mask[0, :4], mask[1, -3:] = 0, 0
    prompts = torch.tensor([[END + 1, END + 2 + row % 2, END + 5] for row in range(4)])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = model(
        mel, decoder_input_ids=tokens, decoder_attention_mask=mask, decoder_position_ids=positions, use_cache=False
    )
    whole = prompts
    for _ in range(11):
        logits = model(mel, decoder_input_ids=whole, use_cache=False).logits
        whole = torch.cat([whole, logits[:, -1:].argmax(-1)], dim=1)
    arrays = dict(
        mel=mel,
        features=model.model.encoder(mel).last_hidden_state,
        tokens=tokens,
        mask=mask.bool(),
        logits=model(mel, decoder_input_ids=tokens, use_cache=False).logits,
        padded_logits=padded.logits,
        prompts=prompts,
        greedy=whole[:, 3:],
    )
    return {name: value.numpy() for name, value in arrays.items()}


def main() -> None:
    processor, model = make_processor(), make_model()
    clips = [wave.astype(np.float32) / 16 for wave in np.load(HERE / "qwen2_audio" / "clips.npz").values()]
    mel = processor(audio=clips, sampling_rate=16000, return_tensors="pt").input_features
    model.save_pretrained(FOLDER)
    (FOLDER / "generation_config.json").unlink(missing_ok=True)
    processor.save_pretrained(FOLDER)
    found = expected(model, mel)
    np.savez_compressed(FOLDER / "expected.npz", **found)
    print(sum(p.numel() for p in model.parameters()), {name: value.shape for name, value in found.items()})
    print(found["greedy"].tolist(), float(np.abs(found["logits"]).max()))


if __name__ == "__main__":
    main()
