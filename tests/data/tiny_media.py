"""Small pictures and clips in files, and folders of them in the layouts of the data sets."""

import io
import json
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

PIXELS = np.random.default_rng(7).integers(0, 256, (5, 7, 3), dtype=np.uint8)  # height 5, width 7


def png(pixels=PIXELS, **options) -> bytes:
    return encoded(Image.fromarray(pixels), "PNG", **options)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def tone(seconds=0.3, rate=16_000, hertz=440.0, loudness=0.2) -> np.ndarray:
    """A sine with an RMS of `loudness`."""
    time = np.arange(round(seconds * rate)) / rate
    return (loudness * np.sqrt(2) * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def sound(samples=None, rate=16_000, kind="WAV", subtype="FLOAT", **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone() if samples is None else samples, rate, format=kind, subtype=subtype, **options)
    return file.getvalue()


def mp3(samples=None, rate=16_000, headed=True) -> bytes:
    """Of varying bit rate; without the header that states the number of frames, as a pipe gives it."""
    file = io.BytesIO()
    samples = tone() if samples is None else samples
    soundfile.write(file, samples, rate, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
    content = file.getvalue()
    return content if headed else content[content.index(content[:2], 4) :]


def ogg(**options) -> bytes:
    return sound(tone(rate=44_100, **options), 44_100, "OGG", "VORBIS")


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_lines(path: Path, *lines: dict) -> None:
    write(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
