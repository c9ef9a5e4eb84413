"""Images and audio clips of records. They stay in their file or data set until they are read.

record.media.read()        # Picture: uint8 [H, W, 3];  Clip: float32 [T] at 16 kHz
record.media.data_uri()    # for a web page: <img src=...>, <audio src=...>
"""

import abc
import base64
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, UInt8

from mcl_jax.data.clips import decode_clip, encode_flac

ON_A_PAGE = 480  # pixels of the longer side


class Unreadable(ValueError):
    """An image or clip that is missing or damaged.

    Attributes:
      name: name of its file.
      reason: what is wrong.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


@dataclasses.dataclass(frozen=True)
class Media(abc.ABC):
    """An image or audio clip that is read when needed; see `Picture` and `Clip`.

    Attributes:
      kind: "picture" or "clip".
      endings: endings of the file names of this kind.
      name: name of the file, for messages and pages.
      load: returns the bytes of the file; a bound method or partial, so that media can be pickled.
    """

    kind: ClassVar[str]
    endings: ClassVar[tuple[str, ...]]
    name: str
    load: Callable[[], bytes] = dataclasses.field(repr=False, compare=False)

    def read(self) -> np.ndarray:
        """Reads the image or clip as an array.

        Raises:
          Unreadable: if the file is missing or broken; says which file and how.
          MissingExtra: if the library that reads it is not installed.
        """
        try:
            return self._decode(self.load())
        except FileNotFoundError as error:
            raise Unreadable(self.name, "no such file") from error
        except (OSError, ValueError) as error:
            raise Unreadable(self.name, str(error)) from error

    @abc.abstractmethod
    def _decode(self, encoded: bytes) -> np.ndarray: ...

    @abc.abstractmethod
    def pack(self) -> bytes:
        """Returns bytes for a data set, which `read` understands; raises as `read` does."""

    @abc.abstractmethod
    def data_uri(self) -> str:
        """Returns a data: URI that any browser can show or play; raises as `read` does."""


class Picture(Media):
    """An image; `read` returns uint8 [H, W, 3], RGB, see `pictures`."""

    kind = "picture"
    endings = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif")

    def _decode(self, encoded: bytes) -> UInt8[np.ndarray, "H W 3"]:
        from mcl_jax.data.pictures import decode_picture  # needs a library that a core install lacks

        return decode_picture(encoded)

    def pack(self) -> bytes:
        """Returns the unchanged file, after reading it once as a check."""
        self.read()
        return self.load()

    def data_uri(self) -> str:
        """Returns a JPEG image of at most 480 pixels per side."""
        from mcl_jax.data.pictures import encode_jpeg

        return _data_uri("image/jpeg", encode_jpeg(self.read(), ON_A_PAGE))


class Clip(Media):
    """An audio clip; `read` returns float32 [T] at 16 kHz with a common loudness, see `clips`."""

    kind = "clip"
    endings = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au")

    def _decode(self, encoded: bytes) -> Float32[np.ndarray, "T"]:
        return decode_clip(encoded)

    def pack(self) -> bytes:
        """Returns a FLAC file of the decoded clip, so that later reads need not resample."""
        return encode_flac(self.read())

    def data_uri(self) -> str:
        """Returns a FLAC file of the decoded clip."""
        return _data_uri("audio/flac", encode_flac(self.read()))


KINDS: dict[str, type[Media]] = {media.kind: media for media in (Picture, Clip)}


def media_in(path: Path, name: str) -> Media:
    """Returns the image or clip in a file; the ending of its name tells the kind.

    Args:
      path: the file.
      name: its name for messages.
    Raises:
      ValueError: if the ending is unknown; names the known ones.
    """
    for kind in KINDS.values():
        if path.suffix.lower() in kind.endings:
            return kind(name, path.read_bytes)
    endings = ", ".join(ending for kind in KINDS.values() for ending in kind.endings)
    raise ValueError(f"file {name!r} must be an image or an audio clip; its name must end in one of {endings}")


def _data_uri(mime_type: str, encoded: bytes) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(encoded).decode()}"
