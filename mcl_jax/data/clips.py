"""Sound files of any kind to mono float32 at 16 kHz with a common loudness, and cropping or padding to a fixed length.

Recordings differ in loudness by language and speaker (20-fold among the stamps), which a model could exploit, so every
clip is scaled to the same RMS when it is read.
"""

import functools
import io
import math

import numpy as np
from jaxtyping import Float32

from mcl_jax.extras import needed_for

SAMPLE_RATE = 16_000  # Hz
SHORTEST = 0.025  # s, one window of a spectrogram
LOUDNESS = 0.1  # RMS relative to full scale (−20 dB); lower if a peak would leave [−1, 1]


def decode_clip(encoded: bytes) -> Float32[np.ndarray, "T"]:
    """Decodes a clip: averages its channels, resamples it to 16 kHz and scales it to the common loudness.

    Args:
      encoded: content of a file in one of the formats of `sound_files`, such as WAV, FLAC, Ogg Vorbis or MP3.
    Returns:
      The samples.
    Raises:
      ValueError: if the file is not a sound file, truncated (as far as its format tells, see `sound_files`) or shorter
        than `SHORTEST`, or has samples that are not finite.
    """
    from mcl_jax.data.sound_files import read_sound  # needs a library that a core install lacks

    samples, rate = read_sound(encoded)
    if not len(samples):
        raise ValueError("the clip has no samples")
    if not np.isfinite(samples).all():
        raise ValueError("the clip has samples that are not finite")
    if len(samples) < SHORTEST * rate:
        raise ValueError(
            f"the clip must have at least {1000 * SHORTEST:.0f} ms, got {1000 * len(samples) / rate:.1f} ms"
        )
    channels = samples.shape[1]
    return with_loudness(resample(samples @ np.full(channels, 1 / channels, np.float32), rate))


def resample(samples: Float32[np.ndarray, "T"], rate: int) -> Float32[np.ndarray, "T2"]:
    """Resamples from `rate` (in Hz) to 16 kHz with a polyphase filter: T2 = ⌈T · 16000 / rate⌉."""
    from scipy.signal import resample_poly  # takes a second to import

    common = math.gcd(rate, SAMPLE_RATE)
    up, down = SAMPLE_RATE // common, rate // common
    return samples if up == down else resample_poly(samples, up, down, window=_low_pass(max(up, down)))


@functools.lru_cache(maxsize=16)
def _low_pass(factor: int) -> Float32[np.ndarray, "N"]:
    """Returns the default filter of `resample_poly`, which takes longer to design than to apply to a short clip."""
    from scipy.signal import firwin

    return firwin(20 * factor + 1, 1 / factor, window=("kaiser", 5.0)).astype(np.float32)


def with_loudness(samples: Float32[np.ndarray, "T"]) -> Float32[np.ndarray, "T"]:
    """Scales to an RMS of `LOUDNESS`, or to a peak of 1 if that is less; silence stays silent."""
    rms, peak = np.sqrt(np.mean(samples**2)), np.abs(samples).max()
    return samples * np.float32(min(LOUDNESS / rms, 1 / peak)) if rms > 0 else samples


def fit_length(samples: Float32[np.ndarray, "T"], seconds: float) -> tuple[Float32[np.ndarray, "N"], int]:
    """Crops a clip to `seconds`, or pads it with silence.

    Args:
      samples: mono samples at 16 kHz.
      seconds: the length, such as 10 for AudioCaps and 30 for Clotho.
    Returns:
      N = 16000 · seconds samples, and the number of samples that come from the clip, min(T, N).
    Raises:
      ValueError: if the clip has several channels.
    """
    if np.ndim(samples) != 1:
        raise ValueError(f"a clip must be mono, [T], got shape {np.shape(samples)}")
    length = round(seconds * SAMPLE_RATE)
    kept = samples[:length]
    return np.pad(kept, (0, length - len(kept))), len(kept)


def encode_flac(samples: Float32[np.ndarray, "T"]) -> bytes:
    """Returns a FLAC file with 16 kHz and 16 bits, which browsers can play."""
    with needed_for("writing a clip", "media"):
        import soundfile
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()
