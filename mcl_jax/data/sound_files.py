"""Reading of sound files, with a check that they are complete: libsndfile reads a truncated file as a shorter one.

Detection depends on the format:

    WAV, AIFF, AU, CAF, RF64, W64, SPHERE   state the size of the sound: every truncation is detected
    FLAC                  states the number of samples, and half a frame is an error: every truncation is detected
    Ogg Vorbis, Ogg Opus  marks its last page: every truncation is detected
    MP3                   half a frame is detected; so is a loss of more than one frame if a Xing or Info header states
                          their number, as in most files; without it, a cut between two frames is not detected

A file written to a pipe cannot state its size: its header says 0, or 2 GiB and more, or that the number of samples is
unknown. It is read to its end, although it may be incomplete. Formats in which truncation cannot be detected, such as
VOC, are refused.
"""

import io
import os
import re
import threading
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32

from mcl_jax.data import mp3_frames
from mcl_jax.data.sound_sizes import with_true_size
from mcl_jax.extras import needed_for

with needed_for("reading a clip", "media"):
    import soundfile

FORMATS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "FLAC", "OGG", "MP3")
BLOCK = 1 << 16  # samples
MOST = 1 << 62  # samples; libsndfile reports more if a file does not state its length
SLOWEST, FASTEST = 1_000, 768_000  # Hz; resampling by a damaged rate would take any memory and time
SEEK_FAILED = 39  # libsndfile's SFE_BAD_SEEK, at the end of a FLAC file that does not state its length


def read_sound(encoded: bytes) -> tuple[Float32[np.ndarray, "T C"], int]:
    """Reads a sound file.

    Args:
      encoded: content of the file.
    Returns:
      Samples of each channel, in [-1, 1] unless the file has larger floats, and the sampling rate in Hz.
    Raises:
      ValueError: if libsndfile cannot read the file, it is truncated, or its format does not tell whether it is.
    """
    encoded = with_true_size(_without_tag(encoded))
    try:
        with soundfile.SoundFile(_Stream(encoded)) as file:
            if not SLOWEST <= file.samplerate <= FASTEST:
                raise ValueError(f"the clip must have {SLOWEST} to {FASTEST} samples per second, got {file.samplerate}")
            if file.format not in FORMATS:
                raise ValueError(
                    f"the clip must have one of the formats {', '.join(FORMATS)}, got {file.format}, in which a "
                    "truncated file looks complete"
                )
            if file.format == "MP3":
                mp3_frames.check_last(encoded)
                if not mp3_frames.states_length(encoded):
                    return _read_as_stream(encoded)
            stated = _sphere_samples(encoded, file.frames) if file.format == "NIST" else file.frames
            samples, rate = _samples(file), file.samplerate
    except soundfile.SoundFileError as error:
        reason = str(error).rpartition(">: ")[2]  # without the address of the BytesIO
        raise ValueError(f"the clip cannot be read: {reason}") from error
    may_lack = mp3_frames.SAMPLES if file.format == "MP3" else 0
    if len(samples) + may_lack < stated < MOST:
        raise ValueError(f"the clip is cut off after {len(samples)} of {stated} samples")
    return samples, rate


class _Stream(io.BytesIO):
    """Stays within the file: a damaged header may send libsndfile before its start, where BytesIO prints an error."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = (0, self.tell(), len(self.getbuffer()))[whence]
        return super().seek(max(0, start + offset))


def _samples(file: soundfile.SoundFile) -> Float32[np.ndarray, "T C"]:
    return np.concatenate([np.zeros((0, file.channels), np.float32), *_blocks(file)])


def _blocks(file: soundfile.SoundFile) -> Iterator[Float32[np.ndarray, "N C"]]:
    """Yields the samples in blocks, since a damaged header may state any number of samples."""
    while True:
        block = np.full((BLOCK, file.channels), np.nan, np.float32)
        try:
            count = len(file.read(out=block))
        except soundfile.LibsndfileError as error:
            if error.code != SEEK_FAILED:
                raise
            count = BLOCK - int(np.isnan(block[:, 0]).sum())  # the samples were read, only the seek after them failed
        if count:
            yield block[:count]
        if count < BLOCK:
            return


def _read_as_stream(encoded: bytes) -> tuple[Float32[np.ndarray, "T C"], int]:
    """Reads an MP3 file to its end, through a pipe.

    If libsndfile can seek, it stops after the number of samples that it estimates from the bit rate of the first frame,
    which is far too early if the rate varies.
    """
    reader, writer = os.pipe()

    def write() -> None:
        try:
            with open(writer, "wb") as file:
                file.write(encoded)
        except BrokenPipeError:
            pass  # the reader has failed and raises its own error

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        with soundfile.SoundFile(reader, closefd=False) as file:
            return _samples(file), file.samplerate
    finally:
        os.close(reader)
        thread.join()


def _without_tag(encoded: bytes) -> bytes:
    """Removes ID3v2 tags before the sound."""
    start = 0
    while encoded[start : start + 3] == b"ID3" and len(encoded) >= start + 10:
        sizes = encoded[start + 6 : start + 10]
        start += 10 + sum((byte & 127) << shift for byte, shift in zip(sizes, (21, 14, 7, 0), strict=True))
    return encoded[start:]


def _sphere_samples(encoded: bytes, default: int) -> int:
    """Returns the number of samples that a SPHERE header states; one written to a pipe states none."""
    stated = re.search(rb"^sample_count -i (\d+)$", encoded[:1024], re.MULTILINE)
    return int(stated[1]) if stated else default
