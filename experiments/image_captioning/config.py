"""Configuration of the experiment on pictures, and its presets."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.common import options
from experiments.common.captioning import config as shared


@dataclasses.dataclass(frozen=True)
class Config(shared.Config):
    """Compares K hypotheses of a model that sees with one model, on pictures that have several right captions.

    The default preset, stamps-bilingual, learns English or French captions of Tux Paint's stamps on a laptop. --preset
    textcaps-llava-7b and textcaps-bilingual are the paper's recipes; they need --base and --folder.
    """


# Takes minutes on two cores.
STAMPS: dict[str, Any] = dict(
    data="stamps/pictures",
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
    max_length=64,
)
PAPER_PROMPT = "USER: <image>\nPlease carefully observe the image and come up with a caption for the image.\nASSISTANT:"
# Letzelter et al. (arXiv 2507.10419).
TEXTCAPS: dict[str, Any] = dict(
    data="textcaps/english",
    num_hypotheses=3,
    objective="relaxed",
    epsilon=0.1,
    rank=8,
    alpha=32.0,
    epochs=1,
    batch_size=16,
    learning_rate=2e-4,
    warmup=0.03,
    dtype="bfloat16",
    prompt=PAPER_PROMPT,
    max_length=3072,
    max_new_tokens=64,
    cache_features=False,
    nearest_items=0,
    remat="full",
    test_items=500,
    decode_items=500,
    num_beams=3,
)
PRESETS: dict[str, dict[str, Any]] = {
    "stamps-bilingual": STAMPS,
    "textcaps-llava-7b": TEXTCAPS,
    "textcaps-bilingual": TEXTCAPS | dict(data="textcaps/bilingual", num_hypotheses=2, num_beams=2),
}
LLAVA = "the Hugging Face folder of llava-hf/llava-v1.6-vicuna-7b-hf"
NEEDED = {name: {"base": LLAVA} for name in ("textcaps-llava-7b", "textcaps-bilingual")}


def parse(args: Sequence[str] | None = None) -> Config:
    """Parses a command line; see `options.parse`."""
    return options.parse(Config, args, presets=PRESETS, needed=NEEDED, default="stamps-bilingual")
