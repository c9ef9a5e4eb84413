"""The size that the header of a sound file states, and whether so much is there: WAV, AIFF, AU, CAF, RF64, W64, Ogg."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """How a format lays out its chunks: name, size, content.

    Attributes:
      start: of the first chunk, in bytes.
      order: of the bytes of a size.
      sound: the name of the chunk with the sound; names of all are as long.
      size: bytes of a size.
      align: chunks begin at multiples of this.
      whole: whether the size is that of the whole chunk, with name and size.
      before: bytes of the chunk's content before the samples.
    """

    start: int
    order: Literal["little", "big"]
    sound: bytes = b"data"
    size: int = 4
    align: int = 2
    whole: bool = False
    before: int = 0


UNKNOWN = 0x7F000000  # bytes: SoX, FFmpeg and ALSA write one or another size from here on where they do not know it
TOTALS = (b"RIFF", b"RIFX", b"FORM")  # these state the size of the whole file too, and a 0 may be true
ZERO_IS_UNKNOWN = (*TOTALS, b".snd", b"dns.")
W64 = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # the end of the names of most chunks
CHUNKS = {
    b"RIFF": _Chunks(12, "little"),
    b"RIFX": _Chunks(12, "big"),
    b"FORM": _Chunks(12, "big", sound=b"SSND", before=8),
    b"caff": _Chunks(8, "big", size=8, align=1, before=4),
    b"riff": _Chunks(40, "little", sound=b"data" + W64, size=8, align=8, whole=True),
}


def with_true_size(encoded: bytes) -> bytes:
    """The file with the size of what is there, if it was written to a pipe and states none.

    Raises:
      ValueError: for a file shorter than it says.
    """
    magic = encoded[:4]
    if magic == b"OggS":
        _check_pages(encoded)
    if magic == b"RF64" and (found := _find_sound(encoded, CHUNKS[b"RIFF"])):
        return _with_size(encoded, _Size(28, 8, "little", found[0], found[0]))  # of ds64, always the first chunk
    if magic in (b".snd", b"dns."):
        order = "big" if magic == b".snd" else "little"
        start = int.from_bytes(encoded[4:8], order)
        return _with_size(encoded, _Size(8, 4, order, start, start))
    if (layout := CHUNKS.get(magic)) is None or (found := _find_sound(encoded, layout)) is None:
        return encoded  # libsndfile refuses it, if it is one of these formats
    start, at = found
    counted_from = start - len(layout.sound) - layout.size if layout.whole else start
    return _with_size(encoded, _Size(at, layout.size, layout.order, counted_from, start + layout.before))


def _find_sound(encoded: bytes, layout: _Chunks) -> tuple[int, int] | None:
    """Where the content of the chunk with the sound begins, and where its size is."""
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
    """A size in a header: where it is, its bytes and their order, from where it counts, where the samples begin."""

    at: int
    bytes: int
    order: Literal["little", "big"]
    counted_from: int
    samples: int


def _with_size(encoded: bytes, size: _Size) -> bytes:
    said = size.counted_from + int.from_bytes(encoded[size.at : size.at + size.bytes], size.order)
    nothing = said <= size.samples < len(encoded) and encoded[:4] in ZERO_IS_UNKNOWN
    if nothing and encoded[:4] in TOTALS:
        nothing = 8 + int.from_bytes(encoded[4:8], size.order) < len(encoded)
    unknown = said - size.counted_from >= UNKNOWN and said > len(encoded)
    if nothing or unknown:
        true = (len(encoded) - size.counted_from).to_bytes(size.bytes, size.order)
        return encoded[: size.at] + true + encoded[size.at + size.bytes :]
    if len(encoded) < said:
        raise ValueError(f"a clip cut off after {len(encoded)} of {said} bytes")
    return encoded


def _check_pages(encoded: bytes) -> None:
    """Raises ValueError for an Ogg file that ends inside a page, or before the last page of a stream."""
    at, open_streams = 0, set()
    while encoded[at : at + 4] == b"OggS":
        header = encoded[at : at + 27]
        table = encoded[at + 27 : at + 27 + (header[26] if len(header) == 27 else 255)]
        end = at + 27 + len(table) + sum(table)
        if len(header) < 27 or len(table) < header[26] or end > len(encoded):
            raise ValueError(f"a clip cut off after {len(encoded)} bytes, inside a page")
        last, stream = header[5] & 4, header[14:18]
        open_streams = open_streams - {stream} if last else open_streams | {stream}
        at = end
    if open_streams:
        raise ValueError(f"a clip cut off after {len(encoded)} bytes, before its last page")
