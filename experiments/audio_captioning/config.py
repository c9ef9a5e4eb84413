"""Configuration of the experiment on clips, and its presets."""

import dataclasses
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar

from experiments.common import options
from experiments.common.captioning import config as shared
from experiments.common.options import VOLATILE
from experiments.common.whisper_base import WHISPER_BASE

PAPER_PROMPT = "<|audio_bos|><|AUDIO|><|audio_eos|>Generate the caption in English:"


@dataclasses.dataclass(frozen=True)
class Data(shared.Data):
    """Captions, and the clips that they describe."""

    NO_MESSAGE: ClassVar[str] = PAPER_PROMPT

    seconds: float = 3.0
    """Longest clip in seconds; longer ones are cropped."""

    time_mask: float = field(default=0.2, metadata=VOLATILE)
    """Longest span of time that the decoder tta masks, as a share of the clip. There are up to two."""
    frequency_mask: float = field(default=0.25, metadata=VOLATILE)
    """Widest band of frequencies that the decoder tta masks, as a share of all. There are up to two."""

    @property
    def is_speech(self) -> bool:
        """Whether the captions say what is spoken in the clips, so that their words can be right or wrong."""
        return self.name == "stamps/spoken"

    def check(self) -> None:
        super().check()
        if not self.seconds > 0:
            raise ValueError(f"--seconds must be above 0, got {self.seconds}")
        for option in ("time_mask", "frequency_mask"):
            if not 0 <= (share := getattr(self, option)) <= 1:
                raise ValueError(f"--{option.replace('_', '-')} must be from 0 to 1, got {share}")


@dataclasses.dataclass(frozen=True)
class Config(shared.Config):
    """Compares K hypotheses of a Qwen2-Audio or Whisper with one model, on clips that have several right captions.

    The default preset, stamps-spoken, hears a caption in one of 14 languages and writes it in English or French, on a
    laptop. --preset stamps-whisper hears Spanish with Whisper base and writes it in English or Spanish; --preset demo
    is a short form of it. --preset audiocaps-qwen2-7b and clotho-qwen2-7b are the paper's recipes; they need --base and
    --folder.
    """

    data: Data = Data()

    def check(self) -> None:
        super().check()
        if self.base.path is None and self.data.seconds % 1:
            raise ValueError(f"--seconds must be a whole number for the small base, got {self.data.seconds}")


# Takes minutes on two cores, after some forty minutes on one core for the small base.
STAMPS: dict[str, Any] = dict(
    data="stamps/spoken",
    base_steps=900,
    steps=150,
    batch_size=16,
    learning_rate=2e-3,
    alpha=32.0,
    rate=0.01,
    eval_every=10,
    eval_items=80,
    test_items=128,
    decode_items=128,
    max_new_tokens=24,
    max_length=128,
)
# Hears Spanish, and writes it in Spanish or in English: Whisper can do both, and the prompt does not say which. Without
# adapters on the keys and values of what it hears, all hypotheses compute these once.
WHISPER: dict[str, Any] = STAMPS | dict(
    base=Path(WHISPER_BASE),
    spoken=("es",),
    modes=("en", "es"),
    seconds=8.0,  # nine of ten clips are shorter than 3, but Whisper hears better with silence after them
    prompt="<|startoftranscript|><|es|><|translate|><|notimestamps|>",
    targets=("self_attn/q_proj", "self_attn/k_proj", "self_attn/v_proj", "encoder_attn/q_proj", "fc1", "fc2"),
    steps=150,
    learning_rate=1e-3,
    alpha=16.0,
    max_length=32,
    lengths=(),
)
# Seven minutes on two cores.
DEMO: dict[str, Any] = WHISPER | dict(
    methods=("mcl", "mle_rk"),
    mle_decoders=("beam",),
    seconds=6.0,
    batch_size=8,
    steps=60,
    eval_every=20,
    eval_items=16,
    test_items=60,
    decode_items=60,
    retrieval_items=8,
    nearest_items=0,
)
# Letzelter et al. (arXiv 2507.10419), as their scripts have it (train_scripts.sh, eval_scripts.sh and conf/ of
# Qwen2-Audio/). An epoch draws one caption of a clip, as theirs does. `--num-beams 5`, 10 and 25 are theirs for
# 5 answers, and `--mle-decoders tta` with `--time-mask 0.2 --frequency-mask 0.3`, 0.4 and 0.6, 0.6 and 0.9 their
# augmentations.
# Ours on purpose:
# - max_new_tokens: theirs sets none.
# - Theirs masks one band and one span with 0; we mask up to two of each with the mean of the clip (SpecAugment).
AUDIOCAPS: dict[str, Any] = dict(
    data="audiocaps",
    seconds=10.0,
    num_hypotheses=5,
    objective="relaxed",
    epsilon=0.05,
    rank=8,
    alpha=8.0,
    dropout=0.1,
    assign="noisy",  # their only forward pass has dropout, so winners are chosen with it
    epochs=1,
    batch_size=2,
    learning_rate=1e-5,
    warmup=0.1,
    final_rate=0.1,
    weight_decay=0.05,
    adam_epsilon=1e-6,
    beta2=0.98,
    dtype="bfloat16",
    prompt=PAPER_PROMPT,
    answer_start="space",
    max_length=384,
    max_new_tokens=64,
    repetition_penalty=1.1,
    cache_features=False,
    nearest_items=0,
    remat="full",
    eval_every=0.1,
    test_items=None,
    decode_items=None,
    num_beams=5,
    mle_decoders=("beam", "diverse"),
    diversity_penalty=(0.5, 0.8, 1.0),
)
# Ten epochs, each with an evaluation of the whole validation split; one epoch of AudioCaps leaves nothing to choose.
CLOTHO = AUDIOCAPS | dict(
    data="clotho", seconds=30.0, epochs=10, max_length=896, keep="best", patience=10, eval_every=0.1, eval_items=None
)
QWEN = "the Hugging Face folder of Qwen/Qwen2-Audio-7B-Instruct"
NEEDED = {name: {"base": QWEN} for name in ("audiocaps-qwen2-7b", "clotho-qwen2-7b")}
PRESETS = options.Presets(
    {
        "stamps-spoken": STAMPS,
        "demo": DEMO,
        "stamps-whisper": WHISPER,
        "audiocaps-qwen2-7b": AUDIOCAPS,
        "clotho-qwen2-7b": CLOTHO,
    },
    NEEDED,
    default="stamps-spoken",
)


def parse(args: Sequence[str] | None = None) -> Config:
    """Parses a command line; see `options.parse`."""
    return options.parse(Config, args, PRESETS)
