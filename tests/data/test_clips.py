"""Clips of every rate and loudness come out at 16 kHz, one channel, one loudness; lengths of recipes."""

import contextlib

import numpy as np
import pytest
from scipy.signal import resample_poly
from tiny_media import mp3, sound, tone

from mcl_jax.data.clips import LOUDNESS, decode_clip, encode_flac, fit_length, resample, with_loudness
from mcl_jax.data.mp3_frames import _frames, check_last


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
    with pytest.raises(ValueError, match=r"a clip must be mono, \[T\], got shape \(500, 2\)"):
        fit_length(samples.reshape(500, 2), 0.1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the clip cannot be read: "),
        (b"no sound at all", "the clip cannot be read: .*[^>]$"),
        (sound()[:2000], "the clip is cut off after 2000 of 19"),
        (sound(kind="FLAC", subtype="PCM_16")[:-100], "the clip cannot be read: "),
        (sound(tone(1.0), kind="OGG", subtype="VORBIS")[:-100], "the clip is cut off after .* bytes, inside a page"),
        (sound(np.zeros(0, np.float32)), "the clip has no samples"),
        (sound(np.array([0.1, np.nan], np.float32)), "samples that are not finite"),
        (sound(tone(9.0), 128), "the clip must have 1000 to 768000 samples per second, got 128"),
        (sound(tone(2.0), 10**6), "the clip must have 1000 to 768000 samples per second, got 1000000"),
        (sound(tone(0.0249)), "the clip must have at least 25 ms, got 24.9 ms"),
    ],
    # Not the bytes: a WAV file holds the time it was written, and xdist wants equal names.
    ids=["empty", "text", "wav-cut", "flac-cut", "ogg-cut", "no-samples", "not-finite", "slow", "fast", "short"],
)
def test_broken_files_are_errors(content, message):
    with pytest.raises(ValueError, match=message):
        decode_clip(content)


FORMATS = [
    *(("WAV", subtype) for subtype in ("PCM_16", "PCM_24", "ULAW", "MS_ADPCM", "IMA_ADPCM", "GSM610")),
    *(("AIFF", subtype) for subtype in ("PCM_16", "FLOAT", "ALAW", "IMA_ADPCM")),
    *((kind, "PCM_16") for kind in ("WAVEX", "RF64", "W64", "AU", "CAF", "NIST", "FLAC")),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
def test_a_file_that_was_cut_is_not_a_shorter_one(kind, subtype):
    content = sound(tone(1.3), kind=kind, subtype=subtype)
    assert abs(len(decode_clip(content)) - 1.3 * 16_000) < 800  # blocks of a codec are filled up
    for share in (0.6, 0.97):
        with pytest.raises(ValueError, match="cut off after|lost sync"):
            decode_clip(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="cut off after|lost sync"):
        decode_clip(content[:-3])


@pytest.mark.parametrize("endian", ["BIG", "LITTLE"])
@pytest.mark.parametrize("kind", ["WAV", "AU"])
def test_sizes_are_read_in_their_order(kind, endian):
    content = sound(tone(0.5), kind=kind, subtype="PCM_16", endian=endian)
    assert len(decode_clip(content)) == 8000
    with pytest.raises(ValueError, match=f"cut off after 7000 of {len(content)} bytes"):
        decode_clip(content[:7000])


@pytest.mark.parametrize("size", [0, 0x7F000000, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize(
    ("kind", "name", "order", "of_whole"),
    [("WAV", b"data", "little", 4), ("AIFF", b"SSND", "big", 4), ("AU", b".snd\0\0\0\x18", "big", 8)],
)
def test_a_file_written_to_a_pipe_is_whole(kind, name, order, of_whole, size):
    content = bytearray(sound(kind=kind, subtype="PCM_16"))
    at = content.index(name) + len(name)
    content[of_whole : of_whole + 4] = min(size + 36, 2**32 - 1).to_bytes(4, order)
    content[at : at + 4] = size.to_bytes(4, order)
    np.testing.assert_array_equal(decode_clip(bytes(content)), decode_clip(sound(kind=kind, subtype="PCM_16")))


def test_a_header_that_points_out_of_its_file():
    content = bytearray(sound(kind="AU", subtype="PCM_16"))
    content[4:12] = b"\x7f\xff\0\0" + b"\xff" * 4  # where the sound begins, and its size
    with pytest.raises(ValueError, match="the clip is cut off after 9624 of 6442385407 bytes"):
        decode_clip(bytes(content))


def test_no_samples_are_no_unknown_number():
    content = sound(np.zeros(0, np.float32), subtype="PCM_16")
    with pytest.raises(ValueError, match="the clip has no samples"):
        decode_clip(content)


def test_what_follows_the_sound_may_lack():
    content = bytearray(sound(subtype="PCM_16")) + b"LIST" + (1000).to_bytes(4, "little") + b"INFO"
    content[4:8] = (len(content) + 1000).to_bytes(4, "little")
    assert len(decode_clip(bytes(content))) == 4800


def test_a_flac_file_written_to_a_pipe():
    for seconds in (0.3, 4.3):  # less than a block, and more
        samples = tone(seconds)
        content = bytearray(sound(samples, kind="FLAC", subtype="PCM_16"))
        whole = decode_clip(bytes(content))
        content[21] &= 0xF0  # 36 bits: the number of samples
        content[22:26] = bytes(4)
        np.testing.assert_array_equal(decode_clip(bytes(content)), whole)
        content[21] |= 1
        with pytest.raises(ValueError, match=f"cut off after {len(samples)} of {2**32} samples"):
            decode_clip(bytes(content))


def loud_then_silent(seconds=2.0):
    samples = np.random.default_rng(0).normal(size=round(seconds * 16_000)).astype(np.float32) / 5
    return samples * (np.arange(len(samples)) < len(samples) // 3)


def frames_of(content):
    return [content[at : at + length] for at, length in _frames(content)]


def test_an_mp3_of_varying_bit_rate_is_read_to_its_end():
    samples = loud_then_silent()
    headed, piped = mp3(samples), mp3(samples, headed=False)
    assert len({len(frame) for frame in frames_of(headed)}) > 3
    assert len(decode_clip(headed)) == len(samples)
    assert len(samples) <= len(decode_clip(piped)) == 576 * len(frames_of(piped)) < len(samples) + 3 * 576


def test_an_mp3_that_lacks_frames():
    samples = loud_then_silent()
    headed, piped = frames_of(mp3(samples)), frames_of(mp3(samples, headed=False))
    with pytest.raises(ValueError, match=f"the clip is cut off after .* of {len(samples)} samples"):
        decode_clip(b"".join(headed[:-20]))
    with pytest.raises(ValueError, match="the clip is cut off after .* bytes, inside a frame"):
        decode_clip(b"".join(piped[:-20]) + piped[-20][:2])
    assert len(decode_clip(b"".join(piped[:-20]))) == 576 * (len(piped) - 20)  # which nobody can know


def test_tags_around_the_sound():
    tag = b"ID3\x04\0\0" + bytes([0, 0, 1, 3]) + bytes(131)
    for content in (mp3(), mp3(headed=False), sound(), sound(kind="FLAC", subtype="PCM_16")):
        np.testing.assert_array_equal(decode_clip(tag + content), decode_clip(content))
    for end in (b"TAG" + bytes(125), b"APETAGEX" + bytes(200), bytes(700)):
        for content in (mp3(), mp3(headed=False)):
            np.testing.assert_array_equal(decode_clip(content + end), decode_clip(content))


def test_an_ogg_file_without_its_last_page():
    content = sound(loud_then_silent(9.0), kind="OGG", subtype="VORBIS")
    pages = content.split(b"OggS")
    assert len(pages) > 4
    with pytest.raises(ValueError, match="the clip is cut off after .* bytes, before its last page"):
        decode_clip(b"OggS".join(pages[:-1]))


def test_formats_in_which_a_cut_is_not_found_are_refused():
    for kind in ("VOC", "IRCAM"):
        with pytest.raises(
            ValueError, match=f"must have one of the formats .*, got {kind}, in which a truncated file looks complete"
        ):
            decode_clip(sound(kind=kind, subtype="PCM_16"))
    free = bytes([0xFF, 0xFB, 0x04, 0xC4]) + bytes(400)
    with pytest.raises(ValueError, match="the MP3 clip must have a bit rate in every frame"):
        check_last(2 * free)


def test_a_header_that_points_before_its_file_is_refused_in_silence(capfd):
    content = sound(kind="CAF", subtype="PCM_16")
    for at in range(8, 60, 4):
        with contextlib.suppress(ValueError):
            decode_clip(content[:at] + b"\xff" * 4 + content[at + 4 :])
    assert "Traceback" not in capfd.readouterr().err
