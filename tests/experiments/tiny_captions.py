"""Folders of tiny pictures and clips with captions in two modes, and the tiny bases that see and hear."""

from pathlib import Path

import numpy as np
from tiny_media import png, sound, tone, write, write_lines

GOLDEN = Path(__file__).parents[1] / "golden"
LLAVA, QWEN = GOLDEN / "llava" / "llama", GOLDEN / "qwen2_audio" / "grouped"
WHISPER = GOLDEN / "whisper" / "tiny"
SPLITS = ("train", "train", "train", "validation", "test", "test")
RECORDS = 24  # 12 to train on, 4 to validate, 8 to test
SIZES = ((9, 17), (14, 11))  # height and width of pictures: they take different numbers of tokens
SECONDS = (0.3, 0.47, 0.62)
SEEN = {"en": "a red dog", "fr": "what is this"}  # words that the tiny LLaVA has
HEARD = {"en": "a red dog", "fr": "un chien noir"}  # the tiny Qwen2-Audio spells


def pictures_in(folder):
    """A folder of pictures of noise."""
    rng = np.random.default_rng(0)
    files = [(f"{i:02}.png", png(rng.integers(0, 256, (*SIZES[i % 2], 3), dtype=np.uint8))) for i in range(RECORDS)]
    return captioned(folder, files, SEEN)


def clips_in(folder):
    """A folder of tones."""
    files = [(f"{i:02}.wav", sound(tone(SECONDS[i % 3], hertz=200.0 + 90 * i))) for i in range(RECORDS)]
    return captioned(folder, files, HEARD)


def captioned(folder, files, words):
    """Each file with a caption of two to four words in each mode."""
    rng, lines = np.random.default_rng(1), []
    for i, (name, content) in enumerate(files):
        write(folder / name, content)
        for mode, known in words.items():
            caption = " ".join(rng.choice(known.split(), rng.integers(2, 5)))
            lines.append({"file": name, "caption": caption, "mode": mode, "split": SPLITS[i % len(SPLITS)]})
    write_lines(folder / "captions.jsonl", *lines)
    return folder


def tiny(config, folder, base, **changes):
    """A configuration of a few steps."""
    values = dict(
        workdir=folder.parent / "run",
        cache=folder.parent / "cache",
        data=str(folder),
        base=base,
        steps=5,
        batch_size=4,
        eval_every=3,
        eval_items=3,
        selector_items=3,
        test_items=7,
        decode_items=3,
        max_new_tokens=4,
        max_length=64,
        lengths=(),  # compiles once
        num_hypotheses=3,
        num_beams=3,
        rank=2,
        alpha=3.0,
        methods=("mcl",),
    )
    return config.from_options(**(values | changes))
