"""Pictures of every kind come out as RGB, upright, on white."""

import numpy as np
import pytest
from PIL import Image
from tiny_media import PIXELS, encoded, png

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
    with pytest.raises(ValueError, match="not a picture that can be read: [^<]+$"):
        decode_picture(content)


def test_a_flipped_bit_in_a_png_is_an_error():
    content = bytearray(png())
    content[content.index(b"IDAT") + 8] ^= 1
    with pytest.raises(ValueError, match="not a picture that can be read"):
        decode_picture(bytes(content))


def test_pages_show_a_smaller_jpeg():
    pixels = np.full((90, 300, 3), (0, 128, 255), np.uint8)
    shown = decode_picture(encode_jpeg(pixels, longest=100))
    assert shown.shape == (30, 100, 3)
    np.testing.assert_allclose(shown, pixels[:30, :100], atol=6)
    assert decode_picture(encode_jpeg(PIXELS, longest=100)).shape == PIXELS.shape
