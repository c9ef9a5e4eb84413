"""A finished run of three methods, K = 3, with texts that a page must not take for HTML."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from mcl_jax.data import Clip, Picture, Record, Target
from mcl_jax.run import Run

SECONDS, HEIGHT, WIDTH = 0.7, 5, 11
NUM_SAMPLES = 23
METHODS = {"mcl": 3, "mle_rk/beam": 5, "moe/tta": 2}  # numbers of answers
TRAPS = (
    "<script>window.trapped = 1</script>",
    '<img src=x onerror="window.trapped = 2">',
    "AT&T &amp; <b>bold</b>",
    "</td><td>'single' and \"double\" quotes",
    "{{ 7 * 7 }} {% raw %}",
    "مرحبا, a line\nand another",
)
NAMES = ('a "stamp" <b>.png', "spoken.flac", "broken.png", "missing.flac")
COLUMNS = {
    "test loss": "test_loss",
    "above <MCL>": "loss_above_mcl",
    "CIDEr-D": "cider",
    "SPICE": "spice",
    "win rate": "win_rate",
}


def png() -> bytes:
    pixels, file = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def flac() -> bytes:
    samples, file = np.sin(np.arange(round(SECONDS * 8000)) * 0.3), io.BytesIO()
    soundfile.write(file, samples, 8000, format="FLAC")
    return file.getvalue()


def missing() -> bytes:
    raise FileNotFoundError


def records() -> tuple[Record, ...]:
    """A picture, a clip, a picture that is none, a clip that is not there, and text; the other samples have none.

    They belong to every other sample, those that a page of 12 shows.
    """
    picture, clip, broken, lost = NAMES
    media = (Picture(picture, png), Clip(clip, flac), Picture(broken, lambda: b"no"), Clip(lost, missing), None)
    return tuple(Record(f"id {2 * i}", "text", (Target("a"),), media=of) for i, of in enumerate(media))


def results() -> dict[str, Any]:
    """As experiments have them when they finish: arrays too."""
    texts = traps()
    samples = [
        {
            "id": f"id {i}",
            "source": next(texts) if i % 2 else "",
            "references": [{"text": next(texts), "mode": "<fr>"}, {"text": next(texts), "mode": None}],
            "answers": {name: [next(texts) for _ in range(n)] for name, n in METHODS.items()},
            "log_likelihoods": {name: [-(i + k + 1) / 8 / n for k in range(n)] for name, n in METHODS.items()},
        }
        for i in range(NUM_SAMPLES)
    ]
    mcl = {
        "test_loss": 1.25,
        "cider": 0.5,
        "intervals": {"cider": [0.25, 0.75]},
        "win_rate": np.array([0.5, 0.25, 0.25]),
        "win_matrix": np.array([[1, 0, 3], [4, 3, 0]]),
        "modes": ("<fr>", "en"),
        "samples": samples,
    }
    above = {"mean": 0.25, "low": 0.125, "high": 0.375}
    beam = {"test_loss": np.float32(1.5), "loss_above_mcl": above, "win_rate": [1.0]}
    tta = {"test_loss": 2, "spice": None, "not_available": {"spice": "no <Java>"}}
    return {"methods": {"mcl": mcl, "mle_rk/beam": beam, "moe/tta": tta}}


def traps() -> Iterator[str]:
    """Texts that differ, each with one of the traps."""
    return (f"{n}: {TRAPS[n % len(TRAPS)]}" for n in range(10_000))


def run(workdir) -> Run:
    """In a directory, with two figures."""
    made = Run(
        workdir, {"base": "/somewhere/else/llava-7b", "num_hypotheses": 3, "prompt": "<s>{source}", "alpha": None}
    )
    for name in ("loss.png", "something_else.png"):
        made.figure_path(name).write_bytes(png())
    return made
