"""Image files of any kind to RGB with 8 bits per channel, upright (EXIF) and with transparent pixels made white.

The values of black and white depend on Pillow's mode:

    1, L, P, RGB, CMYK, YCbCr, LAB, HSV     0 to 255, or a palette of such; also if a file has fewer bits per channel,
                                            or 16, of which Pillow returns the upper 8
    LA, La, PA, RGBA, RGBa                  the same, with opacity
    I;16 (grey, 16 bits)                    0 to 65535; 0 to 4095 in a TIFF of 12 bits
    I (grey, 32 bits)                       0 to 65535 in a PGM file; unknown in others, which are refused
    F (grey, floats)                        0 to 1; other values are refused
"""

import io
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from mcl_jax.extras import needed_for

with needed_for("reading a picture", "media"):
    from PIL import Image, ImageOps, UnidentifiedImageError

PNG = b"\x89PNG\r\n\x1a\n"
WHITE = (255, 255, 255, 255)
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
SCALED = (*SIXTEEN_BITS, "I", "F")  # modes in which white is not 255
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # a TIFF tag, and its value for a negative


class _Stored(NamedTuple):
    """Facts about a file that Pillow no longer tells once the pixels are read.

    Attributes:
      format: name of the format, such as "PNG".
      raw: storage format of the pixels, such as "L;2" for 2-bit grey; empty if Pillow does not say.
      negative: whether grey is stored as a negative, which Pillow does not invert.
    """

    format: str
    raw: str
    negative: bool


def decode_picture(encoded: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes an image; an animation gives its first frame.

    The orientation of the camera (EXIF) is applied; palettes, grey, CMYK and 16 bits are converted; transparent pixels
    are put on white.

    Args:
      encoded: content of a file that Pillow reads, such as PNG, JPEG, GIF, WebP, TIFF.
    Returns:
      The pixels.
    Raises:
      ValueError: if the file is not an image, is damaged or truncated, or its values of black and white are unknown
        (see the top of this file).
    """
    try:
        if encoded.startswith(PNG):
            with Image.open(io.BytesIO(encoded)) as image:
                image.verify()  # Pillow does not compare the checksums of pixels when it decodes them
        with Image.open(io.BytesIO(encoded)) as image:
            stored = _stored(image)
            return np.asarray(_on_white(_eight_bits(ImageOps.exif_transpose(image), stored)))
    except UnidentifiedImageError as error:  # its text contains the address of the BytesIO
        raise ValueError("the image cannot be read: Pillow does not know its format") from error
    except Exception as error:  # for a damaged file, Pillow's plugins raise OSError, SyntaxError, struct.error and more
        raise ValueError(f"the image cannot be read: {error}") from error


def _stored(image: Image.Image) -> _Stored:
    """Returns the facts about an image that is open but not yet read."""
    arguments = image.tile[0].args if image.tile else ""
    raw = arguments if isinstance(arguments, str) else next(iter(arguments or ()), "")
    negative = image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO and image.mode in SCALED
    return _Stored(str(image.format), str(raw), negative)


def _eight_bits(image: Image.Image, stored: _Stored) -> Image.Image:
    """Scales every channel to 0 to 255, and the colour that stands for transparency, if any, alike.

    Raises:
      ValueError: if the value of white is unknown.
    """
    key = image.info.get("transparency")
    if image.mode not in SCALED:
        if key is not None and stored.format == "PNG":
            image.info["transparency"] = _key(key, stored.raw)
        return image
    values = np.asarray(image, np.float64)
    grey = values / _white(values, image.mode, stored)
    scaled = (255 * (1 - grey if stored.negative else grey)).round().clip(0, 255).astype(np.uint8)
    made = Image.fromarray(scaled)
    if key is not None:
        made.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return made


def _key(key: int | tuple[int, ...] | bytes, raw: str) -> int | tuple[int, ...] | bytes:
    """Scales the transparent colour of a PNG file, which Pillow returns as stored, to 0 to 255 like the pixels.

    For 16 bits the upper 8 decide, since Pillow returns no others, so nearly equal colours become transparent too.
    """
    if raw in ("L;2", "L;4"):
        return key * 255 // (2 ** int(raw[-1]) - 1)
    return tuple(value >> 8 for value in key) if raw == "RGB;16B" else key


def _white(values: Float[np.ndarray, "H W"], mode: str, stored: _Stored) -> float:
    """Returns the value of white in a grey image in which black is 0.

    Raises:
      ValueError: if the value is unknown.
    """
    if mode in SIXTEEN_BITS:
        return 4095 if stored.raw == "I;12" else 65535
    if mode == "I" and stored.format == "PPM":
        return 65535
    low, high = values.min(), values.max()
    if mode == "I":
        raise ValueError(
            f"the image must have 8 or 16 bits, got signed or 32-bit integers from {low:.0f} to {high:.0f}, whose "
            "value of white is unknown"
        )
    if not (low >= 0 and high <= 1):  # true for NaN as well
        raise ValueError(f"float pixels must be in [0, 1] (black to white), got {low:g} to {high:g}")
    return 1


def _on_white(image: Image.Image) -> Image.Image:
    """Converts to RGB, on a white background."""
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image.convert("RGBA"))
    return image.convert("RGB")


def encode_jpeg(pixels: UInt8[np.ndarray, "H W 3"], longest: int) -> bytes:
    """Encodes a JPEG file for a web page, shrunk so that no side is longer than `longest` pixels."""
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((longest, longest))
    image.save(file, format="JPEG", quality=90)
    return file.getvalue()
