"""Fuzz targets: pictures, clips, and folders of them."""

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from hypothesis import strategies as st
from PIL import Image
from tiny_media import PIXELS, encoded, mp3, ogg, png, raw_png, raw_tiff, sound, tone

from mcl_jax.data.captions import read_captions
from mcl_jax.data.media import Clip, Picture
from tests.fuzz import drawn
from tests.fuzz.targets import READ, Fault, Target, reads
from tests.fuzz.text_files import json_lines

CHECKED = b"\x89PNG"  # of the formats here, only PNG has a checksum of everything


@functools.cache
def pictures() -> list[bytes]:
    """Small pictures in many formats."""
    image = Image.fromarray(PIXELS)
    made = [encoded(image, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "PCX", "ICO")]
    made += [
        png(PIXELS[..., 0]),
        encoded(image.convert("P"), "PNG", transparency=3),
        encoded(image, "WEBP", lossless=True),
    ]
    made += [
        raw_png(16, 0, 3, bytes(6), bytes(range(6))),
        raw_tiff(3, 2, 16, bytes(12)),
        encoded(image, "TIFF", compression="tiff_lzw"),
    ]
    made += [
        encoded(image, "JPEG2000"),
        encoded(image, "JPEG", progressive=True),
        encoded(image, "GIF", save_all=True, append_images=[image]),
    ]
    return made


@st.composite
def picture_files(draw: Any) -> tuple[bytes, bytes]:
    """A picture, and what became of it."""
    content = draw(st.sampled_from(pictures()))
    return content, draw(drawn.mutated([content], 200))


def check_picture(folder: Path, two: tuple[bytes, bytes]) -> str:
    content, changed = two
    outcome, pixels = reads(Picture("a.png", lambda: changed).read, "a.png")
    if outcome == READ:
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise Fault(f"a picture must be uint8 [H, W, 3], got {pixels.dtype} {pixels.shape}")
        whole = Picture("a.png", lambda: content).read()
        cut = content.startswith(changed) or (changed.startswith(CHECKED) and content.startswith(CHECKED))
        if cut and not np.array_equal(pixels, whole):
            raise Fault("other pixels, although a checksum or the length tells that the file is damaged")
    return outcome


@functools.cache
def clips() -> list[bytes]:
    """Short clips in all formats."""
    short = tone(0.1)
    made = [
        sound(short, kind=kind, subtype="PCM_16")
        for kind in ("WAV", "AIFF", "AU", "CAF", "W64", "RF64", "NIST", "FLAC")
    ]
    made += [
        sound(short),
        sound(np.stack([short, -short], 1), 44_100, subtype="PCM_24"),
        mp3(short),
        mp3(short, headed=False),
    ]
    return [*made, ogg(seconds=0.1), sound(short, 16_000, "OGG", "OPUS"), sound(short, kind="VOC", subtype="PCM_16")]


@st.composite
def clip_files(draw: Any) -> tuple[bytes, bytes]:
    """A clip, and what became of it."""
    content = draw(st.sampled_from(clips()))
    return content, draw(drawn.mutated([content], 120))


def check_clip(folder: Path, two: tuple[bytes, bytes]) -> str:
    content, changed = two
    outcome, samples = reads(Clip("a.wav", lambda: changed).read, "a.wav")
    if outcome == READ:
        if (
            samples.dtype != np.float32
            or samples.ndim != 1
            or not np.isfinite(samples).all()
            or np.abs(samples).max() > 1.001
        ):
            raise Fault(f"a clip must be float32 [T] in [-1, 1], got {samples.dtype} {samples.shape}")
        if content.startswith(changed) and len(content) - len(changed) > 2 and _lost(content, samples):
            raise Fault(f"a clip that was cut off was read as one of {len(samples)} samples")
    return outcome


def _lost(content: bytes, samples: np.ndarray) -> bool:
    """Whether samples are missing; an MP3 without a header may lack whole frames, since nothing tells."""
    file = soundfile.SoundFile(io.BytesIO(content))
    return file.format != "MP3" and len(samples) < len(Clip("a.wav", lambda: content).read())


NAMES = [
    "a.png",
    "b.png",
    "./a.png",
    "sub/../a.png",
    "../out.png",
    "/etc/passwd",
    "sub/c.png",
    "a.wav",
    "a\0.png",
    "x" * 300 + ".png",
    "",
    ".",
    "..",
]
CAPTIONS = [{"file": name, "caption": "a cat", "mode": "en"} for name in NAMES]
CAPTIONS += [{"id": "8", "file": "b.png", "caption": "x", "references": ["y", {"caption": "z"}], "split": "test"}]


def check_captions(folder: Path, content: bytes) -> str:
    inside = folder / "inside"
    (inside / "sub").mkdir(parents=True)
    (folder / "out.png").write_bytes(png())
    for name in ("a.png", "b.png", "sub/c.png"):
        (inside / name).write_bytes(png())
    (inside / "a.wav").write_bytes(sound(tone(0.1)))
    (inside / "captions.jsonl").write_bytes(content)
    outcome, corpus = reads(lambda: read_captions(inside), "captions.jsonl", "inside")
    if outcome == READ and any(
        ".." in record.media.name or record.media.name.startswith("/") for record in corpus.records
    ):
        raise Fault(f"files outside of the folder: {corpus.records}")
    return outcome


TARGETS = [
    Target("pictures", picture_files, check_picture, 2.0),
    Target("clips", clip_files, check_clip, 1.5),
    Target("folders of captions", lambda: json_lines(CAPTIONS), check_captions),
]
