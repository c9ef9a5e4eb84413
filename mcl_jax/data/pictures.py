"""Picture files of any kind → RGB, 8 bits a channel: what is transparent is white, and up is up."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

WHITE = (255, 255, 255, 255)
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # Pillow gives 16-bit grey as one of these


def decode_picture(encoded: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of a picture; of an animation, those of its first frame.

    A camera's orientation (EXIF) is applied; palettes, grey, CMYK and 16 bits are converted; what is transparent is put
    on white.

    Args:
      encoded: a file that Pillow reads, such as PNG, JPEG, GIF, WebP, TIFF.
    Raises:
      ValueError: if it is none, or broken or cut off; says how.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(_on_white(ImageOps.exif_transpose(image)))
    except UnidentifiedImageError as error:  # its text has the address of the BytesIO
        raise ValueError("not a picture that can be read: of no kind that Pillow knows") from error
    except (
        Exception
    ) as error:  # a broken file makes Pillow's plugins raise anything: OSError, SyntaxError, struct.error
        raise ValueError(f"not a picture that can be read: {error}") from error


def _on_white(image: Image.Image) -> Image.Image:
    """As RGB."""
    if image.mode in SIXTEEN_BITS:
        image = Image.fromarray((np.asarray(image, np.int32) / 257).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image.convert("RGBA"))
    return image.convert("RGB")


def encode_jpeg(pixels: UInt8[np.ndarray, "H W 3"], longest: int) -> bytes:
    """A JPEG file for a page, made smaller until neither side is longer than `longest` pixels."""
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((longest, longest))
    image.save(file, format="JPEG", quality=90)
    return file.getvalue()
