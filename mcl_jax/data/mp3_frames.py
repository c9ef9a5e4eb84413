"""Frames of an MP3 file (MPEG audio, layer III). Each frame states its length, so a truncated one is detected.

Source: ISO/IEC 11172-3, section 2.4.2.3, and 13818-3 for the lower rates, MPEG 2 and 2.5.
"""

from collections.abc import Iterator

RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # Hz, by version
KBPS = {
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG 1
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MPEG_1, LAYER_III = 3, 1
SAMPLES = 1152  # samples of a frame (or half as many); encoders differ in whether they count the header's frame
TAGS = (b"TAG", b"APETAGEX", b"LYRICS", b"3DI", b"ID3")  # these may follow the sound
SEARCHED = 1 << 16  # bytes in which to search for the first frame


def check_last(encoded: bytes) -> None:
    """Checks that a file does not end inside a frame. It cannot tell if other data lie between the frames.

    Raises:
      ValueError: if the file ends inside a frame, or has a free bit rate, whose frames do not state their length.
    """
    if _is_header(encoded[:4]) and encoded[2] >> 4 == 0:
        raise ValueError("the MP3 clip must have a bit rate in every frame, got a free bit rate")
    end = 0
    for at, length in _frames(encoded):
        end = at + length
    half_a_header = end and encoded[end : end + 1] == b"\xff" and len(encoded) < end + 4
    if end > len(encoded) or half_a_header:
        raise ValueError(f"the clip is cut off after {len(encoded)} bytes, inside a frame")


def states_length(encoded: bytes) -> bool:
    """Whether the first frame is a Xing or Info header with the number of frames."""
    at, length = next(_frames(encoded), (0, 0))
    header = encoded[at : min(at + length, at + 64)]
    place = max(header.find(b"Xing"), header.find(b"Info"))
    return place > 0 and len(header) > place + 7 and bool(header[place + 7] & 1)


def _frames(encoded: bytes) -> Iterator[tuple[int, int]]:
    """Yields (start, length) of consecutive frames; the last one may extend beyond the end of the file."""
    at = _first(encoded)
    first = encoded[at : at + 4]
    while length := _length(header := encoded[at : at + 4]):
        if _kind(header) != _kind(first):
            return
        yield at, length
        at += length


def _first(encoded: bytes) -> int:
    """Returns the start of the first frame that is followed by another one or ends the file; the end without any."""
    at = encoded.find(b"\xff", 0, SEARCHED)
    while at >= 0:
        if length := _length(header := encoded[at : at + 4]):
            after = encoded[at + length : at + length + 8]
            another = _length(after[:4]) and _kind(after) == _kind(header)
            if len(after) < 4 or another or after.startswith(TAGS):
                return at
        at = encoded.find(b"\xff", at + 1, SEARCHED)
    return len(encoded)


def _kind(header: bytes) -> tuple[int, int]:
    """Returns version, layer and rate, which are the same in all frames."""
    return header[1] & 0xFE, header[2] & 0x0C


def _is_header(header: bytes) -> bool:
    """Whether these four bytes are the header of a layer III frame."""
    known = len(header) == 4 and header[0] == 0xFF and header[1] >> 5 == 7
    return known and header[1] >> 3 & 3 in RATES and header[1] >> 1 & 3 == LAYER_III and header[2] >> 2 & 3 < 3


def _length(header: bytes) -> int | None:
    """Returns the length in bytes of the frame with this header; None if it is no header or the bit rate is free."""
    if not _is_header(header) or (bit_rate := header[2] >> 4) in (0, 15):
        return None
    version, rate, padding = header[1] >> 3 & 3, header[2] >> 2 & 3, header[2] >> 1 & 1
    per_frame = 144 if version == MPEG_1 else 72
    return per_frame * 1000 * KBPS[version == MPEG_1][bit_rate - 1] // RATES[version][rate] + padding
