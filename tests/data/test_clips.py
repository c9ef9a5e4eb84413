"""Clips of every rate and loudness come out at 16 kHz, one channel, one loudness; lengths of recipes."""

import numpy as np
import pytest
from scipy.signal import resample_poly
from tiny_media import sound, tone

from mcl_jax.data.clips import LOUDNESS, decode_clip, encode_flac, fit_length, resample, with_loudness


def rms(samples):
    return np.sqrt(np.mean(np.square(samples, dtype=np.float64)))


@pytest.mark.parametrize(
    ("rate", "kind", "subtype"),
    [(16_000, "WAV", "PCM_16"), (8_000, "WAV", "PCM_U8"), (44_100, "OGG", "VORBIS"), (48_000, "FLAC", "PCM_24")],
)
def test_a_tone_stays_a_tone(rate, kind, subtype):
    samples = decode_clip(sound(tone(0.7, rate), rate, kind, subtype))
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert abs(len(samples) - 0.7 * 16_000) <= 1
    middle = slice(2000, 9000)  # filters ring at the ends
    expected = tone(0.7, loudness=LOUDNESS)
    np.testing.assert_allclose(samples[middle], expected[: len(samples)][middle], atol=0.005)


def test_what_is_above_8_khz_does_not_fold_down():
    samples = resample(tone(0.5, 44_100, hertz=10_000.0), 44_100)
    assert rms(samples[1000:-1000]) < 0.003


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000])
def test_the_filter_is_that_of_scipy(rate):
    noise = np.random.default_rng(0).normal(size=3001).astype(np.float32)
    common = np.gcd(rate, 16_000)
    expected = resample_poly(noise, 16_000 // common, rate // common)
    np.testing.assert_allclose(resample(noise, rate), expected, atol=1e-5)


def test_channels_are_averaged():
    left, right = tone(hertz=300.0), tone(hertz=500.0)
    samples = decode_clip(sound(np.stack([left, right, np.zeros_like(left)], axis=1)))
    expected = left + right
    np.testing.assert_allclose(samples, expected * (LOUDNESS / rms(expected)), atol=1e-5)


def test_quiet_and_loud_come_out_alike():
    quiet, loud = (decode_clip(sound(tone(loudness=level))) for level in (0.01, 0.5))
    np.testing.assert_allclose(quiet, loud, atol=1e-5)
    assert rms(quiet) == pytest.approx(LOUDNESS, rel=1e-4)


def test_a_click_is_not_cut_off_and_silence_stays():
    click = np.zeros(1000, np.float32)
    click[400] = -0.01
    assert with_loudness(click).min() == pytest.approx(-1.0)
    silence = decode_clip(sound(np.zeros(1000, np.float32)))
    np.testing.assert_array_equal(silence, np.zeros(1000, np.float32))


def test_flac_gives_back_what_was_written():
    samples = decode_clip(sound(tone(0.4)))
    np.testing.assert_allclose(decode_clip(encode_flac(samples)), samples, atol=1e-4)


def test_fit_length_pads_crops_and_says_what_is_sound():
    samples = np.arange(1, 1001, dtype=np.float32)
    padded, length = fit_length(samples, 0.1)
    assert padded.shape == (1600,) and length == 1000 and padded.dtype == np.float32
    np.testing.assert_array_equal(padded, np.concatenate([samples, np.zeros(600, np.float32)]))
    cropped, length = fit_length(samples, 0.05)
    assert length == 800
    np.testing.assert_array_equal(cropped, samples[:800])
    assert fit_length(samples, 1000 / 16_000)[1] == 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a clip that can be read: "),
        (b"no sound at all", "not a clip that can be read: .*[^>]$"),
        (sound()[:2000], "a clip cut off after 2000 of 19"),
        (sound(kind="FLAC", subtype="PCM_16")[:-100], "not a clip that can be read: "),
        (sound(tone(1.0), kind="OGG", subtype="VORBIS")[:-100], "a clip without samples"),
        (sound(np.zeros(0, np.float32)), "a clip without samples"),
        (sound(np.array([0.1, np.nan], np.float32)), "samples that are not finite"),
        (sound(tone(0.0249)), "a clip of 24.9 ms; needed 25 or more"),
    ],
    # Not the bytes: a WAV file holds the time it was written, and xdist wants equal names.
    ids=["empty", "text", "wav-cut", "flac-cut", "ogg-cut", "no-samples", "not-finite", "short"],
)
def test_broken_files_are_errors(content, message):
    with pytest.raises(ValueError, match=message):
        decode_clip(content)


def test_a_wav_file_written_to_a_pipe_does_not_know_its_size():
    content = bytearray(sound(tone(), subtype="PCM_16"))
    content[4:8] = b"\xff" * 4
    assert len(decode_clip(bytes(content))) == 4800
