"""Samples of sound files, and whether a file is whole: libsndfile takes one that was cut off for a shorter one.

What can be found out differs by format:

    WAV, AIFF, AU, CAF, RF64, W64, SPHERE   state the size of the sound: every cut is found
    FLAC                  states the number of samples, and half a frame is an error: every cut is found
    Ogg Vorbis, Ogg Opus  marks its last page: every cut is found
    MP3                   half a frame is found; where a Xing or Info header states the number of frames, as in most
                          files, so is a loss of more than one frame, else a cut between two frames is not found

A file that was written to a pipe could not go back and state its size: its header says 0, or 2 GiB and more, or that
the number of samples is unknown. It is read to its end, and nobody can know whether that is the whole. Formats in which
a cut is not found here, such as VOC, are refused.
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
MOST = 1 << 62  # samples: libsndfile states more where a file does not say how many it has
SEEK_FAILED = 39  # libsndfile's SFE_BAD_SEEK, at the end of a FLAC file that does not say how long it is


def read_sound(encoded: bytes) -> tuple[Float32[np.ndarray, "T C"], int]:
    """The samples of each channel, in [-1, 1] unless the file has floats beyond, and how many there are in a second.

    Raises:
      ValueError: for a file that libsndfile cannot read, that is cut off, or of a format in which that cannot be told.
    """
    encoded = with_true_size(_without_tag(encoded))
    try:
        with soundfile.SoundFile(io.BytesIO(encoded)) as file:
            if file.format not in FORMATS:
                raise ValueError(
                    f"a clip in the format {file.format}, in which a file that was cut off looks whole; needed "
                    f"{', '.join(FORMATS)}"
                )
            if file.format == "MP3":
                mp3_frames.check_last(encoded)
                if not mp3_frames.states_length(encoded):
                    return _read_as_stream(encoded)
            said = _sphere_samples(encoded, file.frames) if file.format == "NIST" else file.frames
            samples, rate = _samples(file), file.samplerate
    except soundfile.SoundFileError as error:
        reason = str(error).rpartition(">: ")[2]  # without the address of the BytesIO
        raise ValueError(f"not a clip that can be read: {reason}") from error
    may_lack = mp3_frames.SAMPLES if file.format == "MP3" else 0
    if len(samples) + may_lack < said < MOST:
        raise ValueError(f"a clip cut off after {len(samples)} of {said} samples")
    return samples, rate


def _samples(file: soundfile.SoundFile) -> Float32[np.ndarray, "T C"]:
    return np.concatenate([np.zeros((0, file.channels), np.float32), *_blocks(file)])


def _blocks(file: soundfile.SoundFile) -> Iterator[Float32[np.ndarray, "N C"]]:
    """The samples, without faith in the number that the file states: a broken header may ask for any memory."""
    while True:
        block = np.full((BLOCK, file.channels), np.nan, np.float32)
        try:
            count = len(file.read(out=block))
        except soundfile.LibsndfileError as error:
            if error.code != SEEK_FAILED:
                raise
            count = BLOCK - int(np.isnan(block[:, 0]).sum())  # read, but soundfile could not go where it then was
        if count:
            yield block[:count]
        if count < BLOCK:
            return


def _read_as_stream(encoded: bytes) -> tuple[Float32[np.ndarray, "T C"], int]:
    """An MP3 file to its end. Where it can seek, libsndfile stops after the samples that it guesses from the bit rate
    of the first frame, which is too early by any factor if the rate varies."""
    reader, writer = os.pipe()

    def write() -> None:
        try:
            with open(writer, "wb") as file:
                file.write(encoded)
        except BrokenPipeError:
            pass  # the reader has failed, and says so

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        with soundfile.SoundFile(reader, closefd=False) as file:
            return _samples(file), file.samplerate
    finally:
        os.close(reader)
        thread.join()


def _without_tag(encoded: bytes) -> bytes:
    """Without an ID3v2 tag before the sound."""
    while encoded[:3] == b"ID3" and len(encoded) >= 10:
        size = sum((byte & 127) << shift for byte, shift in zip(encoded[6:10], (21, 14, 7, 0), strict=True))
        encoded = encoded[10 + size :]
    return encoded


def _sphere_samples(encoded: bytes, there: int) -> int:
    """What the header of a SPHERE file states, or what is there: written to a pipe, it states nothing."""
    stated = re.search(rb"^sample_count -i (\d+)$", encoded[:1024], re.MULTILINE)
    return int(stated[1]) if stated else there
