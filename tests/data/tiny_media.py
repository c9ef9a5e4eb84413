"""Small pictures and clips in files, and folders of them in the layouts of the data sets."""

import io
import json
import struct
import zlib
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


def raw_png(depth: int, colour: int, width: int, *rows: bytes, transparent: bytes = b"") -> bytes:
    """A PNG file of any depth, with a chunk tRNS if asked for: Pillow writes 8 bits alone for most."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + (chunk(b"tRNS", transparent) if transparent else b"")
        + pixels
        + chunk(b"IEND", b"")
    )


def raw_tiff(width: int, height: int, bits: int, pixels: bytes, sample_format=1, negative=False) -> bytes:
    """A grey TIFF file of any depth; formats of samples are 1, 2 and 3: without a sign, with one, float."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: int(not negative), 273: 200, 277: 1, 278: height}
    tags |= {279: len(pixels), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head.ljust(200, b"\0") + pixels


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
