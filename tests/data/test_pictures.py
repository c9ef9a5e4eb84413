"""Pictures of every kind come out as RGB, upright, on white."""

import numpy as np
import pytest
from PIL import Image
from tiny_media import PIXELS, encoded, png, raw_png, raw_tiff

from mcl_jax.data.pictures import decode_picture, encode_jpeg

ALPHA = np.array([0, 255, 128, 0, 255], np.uint8)[:, None].repeat(7, 1)  # by row
ON_WHITE = (PIXELS * (ALPHA / 255.0)[..., None] + 255 * (1 - ALPHA / 255.0)[..., None]).round()


def test_rgb_is_as_it_was():
    pixels = decode_picture(png())
    assert pixels.dtype == np.uint8 and pixels.shape == (5, 7, 3)
    np.testing.assert_array_equal(pixels, PIXELS)


def test_transparency_becomes_white():
    pixels = decode_picture(png(np.dstack([PIXELS, ALPHA])))
    np.testing.assert_allclose(pixels, ON_WHITE, atol=1)
    assert (pixels[0] == 255).all() and (pixels[1] == PIXELS[1]).all()


def test_grey_with_transparency():
    grey = Image.fromarray(PIXELS[..., 0])
    grey.putalpha(Image.fromarray(ALPHA))
    assert grey.mode == "LA"
    pixels = decode_picture(encoded(grey, "PNG"))
    expected = PIXELS[..., :1] * (ALPHA / 255.0)[..., None] + 255 * (1 - ALPHA / 255.0)[..., None]
    np.testing.assert_allclose(pixels, expected.repeat(3, 2), atol=1)


def test_palette_with_a_transparent_colour():
    image = Image.new("P", (3, 2))
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 150, 0])
    image.putdata([0, 1, 2, 2, 1, 0])
    colours = np.array([[10, 20, 30], [200, 0, 0], [0, 150, 0]], np.uint8)
    plain = colours[[[0, 1, 2], [2, 1, 0]]]
    np.testing.assert_array_equal(decode_picture(encoded(image, "PNG")), plain)
    colours[1] = 255
    np.testing.assert_array_equal(
        decode_picture(encoded(image, "PNG", transparency=1)), colours[[[0, 1, 2], [2, 1, 0]]]
    )


def test_sixteen_bits_are_scaled_not_cut_off():
    grey = np.array([[0, 257, 65535], [128 * 257, 65000, 1000]], np.uint16)
    expected = (grey / 257).round().astype(np.uint8)[..., None].repeat(3, 2)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode_picture(encoded(Image.fromarray(grey), kind)), expected, err_msg=kind)


GREY = np.array([[0, 257, 65535], [128 * 257, 65000, 1000]], np.uint16)


def grey_of(shares):
    """The expected picture for shares of white."""
    return (255 * np.asarray(shares, np.float64)).round().astype(np.uint8)[..., None].repeat(3, 2)


@pytest.mark.parametrize("dtype", ["<f4", ">f4"])
def test_floats_are_from_0_to_1(dtype):
    shares = np.array([[0.0, 0.25, 0.5], [0.75, 0.999, 1.0]], dtype)
    for kind in ("TIFF", "PPM"):
        pixels = decode_picture(encoded(Image.fromarray(shares.astype(np.float32)), kind))
        np.testing.assert_array_equal(pixels, grey_of(shares), err_msg=kind)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, 254.0], r"float pixels must be in \[0, 1\] .*, got 0 to 254"),
        ([-0.5, 0.5], r"float pixels must be in \[0, 1\] .*, got -0.5 to 0.5"),
        ([0.5, np.nan], r"float pixels must be in \[0, 1\] .*, got nan"),
        ([0.5, np.inf], r"float pixels must be in \[0, 1\] .*, got 0.5 to inf"),
    ],
)
def test_floats_beyond_are_refused(values, message):
    with pytest.raises(ValueError, match=f"the image cannot be read: {message}"):
        decode_picture(encoded(Image.fromarray(np.array([values], np.float32)), "TIFF"))


def test_whole_numbers_of_32_bits_are_of_a_known_range_in_pgm_alone():
    image = Image.fromarray(GREY.astype(np.int32))
    np.testing.assert_array_equal(decode_picture(encoded(image, "PPM")), grey_of(GREY / 65535))
    with pytest.raises(ValueError, match=r"must have 8 or 16 bits, got .*32-bit integers from 0 to 65535"):
        decode_picture(encoded(image, "TIFF"))
    signed = raw_tiff(3, 2, 16, (GREY >> 1).astype("<i2").tobytes(), sample_format=2)
    with pytest.raises(ValueError, match=r"got signed or 32-bit integers from 0 to 32767"):
        decode_picture(signed)


def test_twelve_bits_of_a_tiff():
    packed = bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x10])  # 0x000, 0xfff, 0x800, 0x010
    np.testing.assert_array_equal(
        decode_picture(raw_tiff(4, 1, 12, packed)), grey_of([[0, 1, 0x800 / 4095, 0x10 / 4095]])
    )


def test_a_negative_is_developed():
    values = GREY.astype("<u2").tobytes()
    np.testing.assert_array_equal(decode_picture(raw_tiff(3, 2, 16, values)), grey_of(GREY / 65535))
    np.testing.assert_array_equal(decode_picture(raw_tiff(3, 2, 16, values, negative=True)), grey_of(1 - GREY / 65535))
    floats = np.array([0.25, 1.0], "<f4").tobytes()
    np.testing.assert_array_equal(decode_picture(raw_tiff(2, 1, 32, floats, 3, negative=True)), grey_of([[0.75, 0.0]]))
    np.testing.assert_array_equal(decode_picture(raw_tiff(2, 1, 8, b"\x00\x33", negative=True)), grey_of([[1, 0.8]]))


GREY_PNG, RGB_PNG, GREY_ALPHA_PNG, RGBA_PNG = 0, 2, 4, 6


@pytest.mark.parametrize(
    ("depth", "row", "transparent", "expected"),
    [
        (1, b"\x40", b"\0\0", [255, 255]),  # 0, 1
        (2, b"\x60", b"\0\2", [85, 255]),  # 1, 2
        (4, b"\x2c", b"\0\2", [255, 12 * 17]),
        (8, b"\x02\x70", b"\0\2", [255, 0x70]),
        (16, b"\x70\x71\x70\x72", b"\x70\x72", [0x70, 255]),
        (16, b"\x80\x00\x00\x00", b"\x00\x00", [0x80, 255]),
    ],
)
def test_the_transparent_grey_of_a_png(depth, row, transparent, expected):
    pixels = decode_picture(raw_png(depth, GREY_PNG, 2, row, transparent=transparent))
    np.testing.assert_array_equal(pixels[0, :, 1], expected)
    opaque = decode_picture(raw_png(depth, GREY_PNG, 2, row))
    assert (opaque[0, :, 1] != pixels[0, :, 1]).sum() == 1


@pytest.mark.parametrize("depth", [8, 16])
def test_the_transparent_colour_of_a_png(depth):
    values = np.array([[1, 2, 3], [4, 5, 6], [4, 5, 7]]) * (256 if depth == 16 else 1)
    stored = values.astype(">u2" if depth == 16 else np.uint8).tobytes()
    content = raw_png(depth, RGB_PNG, 3, stored, transparent=values[1].astype(">u2").tobytes())
    np.testing.assert_array_equal(decode_picture(content), [[[1, 2, 3], [255, 255, 255], [4, 5, 7]]])


def test_opacity_of_16_bits():
    grey = raw_png(16, GREY_ALPHA_PNG, 2, bytes([0x80, 0, 0, 0, 0x30, 0, 0xFF, 0xFF]))
    np.testing.assert_array_equal(decode_picture(grey), [[[255] * 3, [0x30] * 3]])
    colour = raw_png(16, RGBA_PNG, 2, bytes([9, 0, 8, 0, 7, 0, 0xFF, 0xFF, 9, 0, 8, 0, 7, 0, 0, 0]))
    np.testing.assert_array_equal(decode_picture(colour), [[[9, 8, 7], [255] * 3]])


def test_a_palette_that_is_partly_opaque():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 150, 0])
    image.putdata([0, 1, 2])
    pixels = decode_picture(encoded(image, "PNG", transparency=bytes([0, 255, 128])))
    np.testing.assert_allclose(pixels, [[[255] * 3, [200, 0, 0], [127, 202, 127]]], atol=1)
    np.testing.assert_array_equal(decode_picture(encoded(image, "GIF", transparency=2))[0, 2], [255] * 3)


def test_orientation_and_16_bits_together():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode_picture(encoded(Image.fromarray(GREY), "PNG", exif=exif, transparency=1000))
    expected = grey_of(GREY / 65535)
    expected[1, 2] = 255
    np.testing.assert_array_equal(turned, np.rot90(expected, -1))


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [
        ("L", ("PNG", "TIFF", "WEBP", "AVIF", "BMP", "GIF")),
        ("RGB", ("PNG", "TIFF", "WEBP", "AVIF", "BMP")),
        ("CMYK", ("TIFF",)),
        ("YCbCr", ("TIFF",)),
        ("LAB", ("TIFF",)),
        ("PA", ("TIFF",)),
        ("RGBA", ("PNG", "TIFF", "WEBP", "AVIF")),
    ],
)
def test_black_stays_black_and_white_white(mode, kinds):
    board = np.array([[0, 255] * 8, [255, 0] * 8] * 8, np.uint8).repeat(8, 0).repeat(8, 1)
    grey = Image.fromarray(board)
    image = grey.convert("P").convert(mode) if mode == "PA" else grey.convert("RGB").convert(mode)
    for kind in kinds:
        pixels = decode_picture(encoded(image, kind))[4::8, 4::8]
        np.testing.assert_allclose(pixels, board[4::8, 4::8, None].repeat(3, 2), atol=4, err_msg=kind)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
@pytest.mark.filterwarnings("ignore:.*(Corrupt EXIF|Truncated File)")
def test_a_picture_that_was_cut_is_refused(kind):
    content = encoded(Image.fromarray(np.random.default_rng(3).integers(0, 256, (53, 67, 3), dtype=np.uint8)), kind)
    for share in (0.03, 0.6, 0.97):
        with pytest.raises(ValueError, match="the image cannot be read"):
            decode_picture(content[: int(share * len(content))])


def test_cmyk():
    image = Image.new("CMYK", (4, 3), (0, 255, 255, 0))
    pixels = decode_picture(encoded(image, "JPEG"))
    assert pixels.shape == (3, 4, 3)
    np.testing.assert_allclose(pixels, np.broadcast_to([255, 0, 0], (3, 4, 3)), atol=6)


def test_black_and_white():
    image = Image.fromarray(np.array([[0, 255, 0]], np.uint8)).convert("1")
    np.testing.assert_array_equal(decode_picture(encoded(image, "PNG"))[..., 1], [[0, 255, 0]])


def test_the_orientation_of_the_camera_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the picture has to be turned clockwise by a quarter
    pixels = decode_picture(png(exif=exif))
    np.testing.assert_array_equal(pixels, np.rot90(PIXELS, -1))


def test_the_first_frame_of_an_animation():
    red, blue = Image.new("RGB", (2, 2), (255, 0, 0)), Image.new("RGB", (2, 2), (0, 0, 255))
    pixels = decode_picture(encoded(red, "GIF", save_all=True, append_images=[blue]))
    np.testing.assert_array_equal(pixels, np.broadcast_to([255, 0, 0], (2, 2, 3)))


@pytest.mark.parametrize("content", [b"", b"no picture", png()[:60], encoded(Image.fromarray(PIXELS), "JPEG")[:-40]])
def test_broken_files_are_errors(content):
    with pytest.raises(ValueError, match="the image cannot be read: [^<]+$"):
        decode_picture(content)


def test_a_flipped_bit_in_a_png_is_an_error():
    content = bytearray(png())
    content[content.index(b"IDAT") + 8] ^= 1
    with pytest.raises(ValueError, match="the image cannot be read"):
        decode_picture(bytes(content))


def test_pages_show_a_smaller_jpeg():
    pixels = np.full((90, 300, 3), (0, 128, 255), np.uint8)
    shown = decode_picture(encode_jpeg(pixels, longest=100))
    assert shown.shape == (30, 100, 3)
    np.testing.assert_allclose(shown, pixels[:30, :100], atol=6)
    assert decode_picture(encode_jpeg(PIXELS, longest=100)).shape == PIXELS.shape


def test_every_byte_of_a_png_is_checked():
    """Pillow alone shows other pixels for some of them."""
    content = png()
    for at in range(8, len(content) - 12):  # its end has no content
        with pytest.raises(ValueError, match="the image cannot be read"):
            decode_picture(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
