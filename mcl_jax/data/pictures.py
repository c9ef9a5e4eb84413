"""Picture files of any kind → RGB, 8 bits a channel: what is transparent is white, and up is up.

What is black and what is white differs by Pillow's mode:

    1, L, P, RGB, CMYK, YCbCr, LAB, HSV     0 to 255, or a palette of such; also where a file has fewer bits for a
                                            channel, or 16, of which Pillow gives the upper 8
    LA, La, PA, RGBA, RGBa                  the same, and how opaque
    I;16 (grey, 16 bits)                    0 to 65535; in a TIFF of 12 bits, 0 to 4095
    I (grey, 32 bits)                       0 to 65535 in a PGM file; in others nobody knows, and it is refused
    F (grey, floats)                        0 to 1; anything beyond is refused
"""

import io
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from mcl_jax.extras import needed_for

with needed_for("reading a picture", "media"):
    from PIL import Image, ImageOps, UnidentifiedImageError

WHITE = (255, 255, 255, 255)
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
SCALED = (*SIXTEEN_BITS, "I", "F")  # modes whose white is not 255
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # a TIFF tag, and its value for a negative


class _Stored(NamedTuple):
    """What of a file Pillow does not tell once its pixels are read.

    Attributes:
      format: such as "PNG".
      raw: how its pixels are stored, such as "L;2" for grey of 2 bits; empty where Pillow does not say.
      negative: whether grey is stored as a negative and Pillow leaves it so.
    """

    format: str
    raw: str
    negative: bool


def decode_picture(encoded: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of a picture; of an animation, those of its first frame.

    A camera's orientation (EXIF) is applied; palettes, grey, CMYK and 16 bits are converted; what is transparent is put
    on white.

    Args:
      encoded: a file that Pillow reads, such as PNG, JPEG, GIF, WebP, TIFF.
    Raises:
      ValueError: if it is none, or broken or cut off, or its black and white are not known, see the top of this file;
        says how.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            stored = _stored(image)
            return np.asarray(_on_white(_eight_bits(ImageOps.exif_transpose(image), stored)))
    except UnidentifiedImageError as error:  # its text has the address of the BytesIO
        raise ValueError("not a picture that can be read: of no kind that Pillow knows") from error
    except (
        Exception
    ) as error:  # a broken file makes Pillow's plugins raise anything: OSError, SyntaxError, struct.error
        raise ValueError(f"not a picture that can be read: {error}") from error


def _stored(image: Image.Image) -> _Stored:
    """Of a picture that was opened and not yet read."""
    arguments = image.tile[0].args if image.tile else ""
    raw = arguments if isinstance(arguments, str) else next(iter(arguments or ()), "")
    negative = image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO and image.mode in SCALED
    return _Stored(str(image.format), str(raw), negative)


def _eight_bits(image: Image.Image, stored: _Stored) -> Image.Image:
    """The same with 0 to 255 in every channel, and the colour that stands for transparency, if any, as it is then.

    Raises:
      ValueError: if white is not known.
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
    """The transparent colour of a PNG file, which Pillow gives as stored, on the scale of the pixels, 0 to 255.

    Of 16 bits the upper 8 decide, since Pillow gives no others: nearly the same colours are transparent too.
    """
    if raw in ("L;2", "L;4"):
        return key * 255 // (2 ** int(raw[-1]) - 1)
    return tuple(value >> 8 for value in key) if raw == "RGB;16B" else key


def _white(values: Float[np.ndarray, "H W"], mode: str, stored: _Stored) -> float:
    """The value of white in a grey picture, where black is 0.

    Raises:
      ValueError: if it is not known.
    """
    if mode in SIXTEEN_BITS:
        return 4095 if stored.raw == "I;12" else 65535
    if mode == "I" and stored.format == "PPM":
        return 65535
    low, high = values.min(), values.max()
    if mode == "I":
        raise ValueError(
            f"whole numbers of 32 bits, or with a sign, of which white is not known (here {low:.0f} to {high:.0f}); "
            "needed 8 or 16 bits"
        )
    if not (low >= 0 and high <= 1):  # also of NaN
        raise ValueError(f"floats from {low:g} to {high:g}; needed 0 (black) to 1 (white)")
    return 1


def _on_white(image: Image.Image) -> Image.Image:
    """As RGB."""
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image.convert("RGBA"))
    return image.convert("RGB")


def encode_jpeg(pixels: UInt8[np.ndarray, "H W 3"], longest: int) -> bytes:
    """A JPEG file for a page, made smaller until neither side is longer than `longest` pixels."""
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((longest, longest))
    image.save(file, format="JPEG", quality=90)
    return file.getvalue()
