"""Checks that a sound file is as long as its header says: WAV, AIFF, AU, CAF, RF64, W64, Ogg."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """Layout of the chunks of a format: name, size, content.

    Attributes:
      start: offset of the first chunk, in bytes.
      order: byte order of a size.
      sound: name of the chunk with the sound; all names have this length.
      size: number of bytes of a size.
      align: chunks begin at multiples of this number of bytes.
      whole: whether the size counts the whole chunk, including name and size.
      before: bytes of content before the samples.
    """

    start: int
    order: Literal["little", "big"]
    sound: bytes = b"data"
    size: int = 4
    align: int = 2
    whole: bool = False
    before: int = 0


UNKNOWN = 0x7F000000  # bytes; SoX, FFmpeg and ALSA write some larger size if they do not know it
TOTALS = (b"RIFF", b"RIFX", b"FORM")  # these also state the size of the whole file, and a size of 0 may be true
ZERO_IS_UNKNOWN = (*TOTALS, b".snd", b"dns.")
W64 = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # end of most chunk names
CHUNKS = {
    b"RIFF": _Chunks(12, "little"),
    b"RIFX": _Chunks(12, "big"),
    b"FORM": _Chunks(12, "big", sound=b"SSND", before=8),
    b"caff": _Chunks(8, "big", size=8, align=1, before=4),
    b"riff": _Chunks(40, "little", sound=b"data" + W64, size=8, align=8, whole=True),
}


def with_true_size(encoded: bytes) -> bytes:
    """Returns the file with its true size in the header, if it was written to a pipe and states none.

    Raises:
      ValueError: if the file is shorter than it says.
    """
    magic = encoded[:4]
    if magic == b"OggS":
        _check_pages(encoded)
    if magic == b"RF64" and (sound := _find_sound(encoded, CHUNKS[b"RIFF"])):
        return _with_size(encoded, _Size(28, 8, "little", sound[0], sound[0]))  # in ds64, always the first chunk
    if magic in (b".snd", b"dns."):
        order = "big" if magic == b".snd" else "little"
        start = int.from_bytes(encoded[4:8], order)
        return _with_size(encoded, _Size(8, 4, order, start, start))
    if (layout := CHUNKS.get(magic)) is None or (sound := _find_sound(encoded, layout)) is None:
        return encoded  # libsndfile refuses it if it has one of these formats
    start, at = sound
    counted_from = start - len(layout.sound) - layout.size if layout.whole else start
    return _with_size(encoded, _Size(at, layout.size, layout.order, counted_from, start + layout.before))


def _find_sound(encoded: bytes, layout: _Chunks) -> tuple[int, int] | None:
    """Returns the offset of the content of the sound chunk, and that of its size."""
    at, header = layout.start, len(layout.sound) + layout.size
    while at + header <= len(encoded):
        size_at = at + len(layout.sound)
        if encoded[at:size_at] == layout.sound:
            return at + header, size_at
        size = int.from_bytes(encoded[size_at : at + header], layout.order)
        end = at + max(size if layout.whole else header + size, header)
        at = -(-end // layout.align) * layout.align
    return None


@dataclasses.dataclass(frozen=True)
class _Size:
    """A size in a header.

    Attributes:
      at: offset of the size.
      bytes: number of its bytes.
      order: their order.
      counted_from: offset from which the size counts.
      samples: offset of the samples.
    """

    at: int
    bytes: int
    order: Literal["little", "big"]
    counted_from: int
    samples: int


def _with_size(encoded: bytes, size: _Size) -> bytes:
    """Does the work of `with_true_size` for this size."""
    stated = size.counted_from + int.from_bytes(encoded[size.at : size.at + size.bytes], size.order)
    nothing = stated <= size.samples < len(encoded) and encoded[:4] in ZERO_IS_UNKNOWN
    if nothing and encoded[:4] in TOTALS:
        nothing = 8 + int.from_bytes(encoded[4:8], size.order) < len(encoded)
    unknown = stated - size.counted_from >= UNKNOWN and stated > len(encoded) > size.counted_from
    if nothing or unknown:
        true = (len(encoded) - size.counted_from).to_bytes(size.bytes, size.order)
        return encoded[: size.at] + true + encoded[size.at + size.bytes :]
    if len(encoded) < stated:
        raise ValueError(f"the clip is cut off after {len(encoded)} of {stated} bytes")
    return encoded


def _check_pages(encoded: bytes) -> None:
    """Raises a ValueError if an Ogg file ends inside a page, or before the last page of a stream."""
    at, open_streams = 0, set()
    while encoded[at : at + 4] == b"OggS":
        header = encoded[at : at + 27]
        table = encoded[at + 27 : at + 27 + (header[26] if len(header) == 27 else 255)]
        end = at + 27 + len(table) + sum(table)
        if len(header) < 27 or len(table) < header[26] or end > len(encoded):
            raise ValueError(f"the clip is cut off after {len(encoded)} bytes, inside a page")
        last, stream = header[5] & 4, header[14:18]
        open_streams = open_streams - {stream} if last else open_streams | {stream}
        at = end
    if open_streams:
        raise ValueError(f"the clip is cut off after {len(encoded)} bytes, before its last page")
