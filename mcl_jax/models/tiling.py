"""Any-resolution tiling of LLaVA-NeXT: computes which patch of which tile each image token is, on the host, in NumPy.

An image is resized to one of a few resolutions, `image_grid_pinpoints`, keeping its aspect ratio, and centred on black.
It is cut into tiles of the tower's size. Tile 0, the whole image squeezed into one tile, comes first:

    tokens of an image    tile 0 row by row, then each row of the tiles laid side by side, without the black rows or
                          columns at the edges, followed by a newline

Padded, this array of indices has a static shape, and on the device it is one gather. Source: Hugging Face transformers
5.23, `image_processing_utils.select_best_resolution` and `LlavaNextModel.pack_image_features`.
"""

import dataclasses

import numpy as np
from jaxtyping import Int

NEWLINE, PADDING = -1, -2


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Geometry of the tiles.

    Attributes:
      pinpoints: resolutions to choose from, (height, width) in pixels.
      image_size: height and width of a tile, in pixels.
      patch_size: height and width of a patch, in pixels.
    Raises:
      ValueError: if there is no resolution, or one is not a multiple of the tile size.
    """

    pinpoints: tuple[tuple[int, int], ...]
    image_size: int
    patch_size: int

    def __post_init__(self):
        broken = [point for point in self.pinpoints if not all(n and n % self.image_size == 0 for n in point)]
        if broken or not self.pinpoints:
            raise ValueError(
                f"image_grid_pinpoints must be one or more (height, width), multiples of image_size={self.image_size}, "
                f"got {broken or 'none'}"
            )

    @property
    def side(self) -> int:
        """Number of patches in a row of a tile, which has side² patches."""
        return self.image_size // self.patch_size

    @property
    def most_tiles(self) -> int:
        """P, the largest number of tiles of an image, including tile 0."""
        return 1 + max(height * width for height, width in self.pinpoints) // self.image_size**2

    @property
    def most_tokens(self) -> int:
        """N, the largest number of tokens of an image, including newlines."""
        laid = (
            (height // self.image_size * self.side, width // self.image_size * self.side)
            for height, width in self.pinpoints
        )
        return self.side**2 + max(rows * (columns + 1) for rows, columns in laid)

    def best(self, height: int, width: int) -> tuple[int, int]:
        """Returns the resolution that keeps most of an image's pixels; among several, the one with the least black.

        Args:
          height, width: size of the image in pixels.
        Raises:
          ValueError: if the image has no pixels.
        """
        if height < 1 or width < 1:
            raise ValueError(f"an image must have pixels, got height {height} and width {width}")

        def merit(resolution: tuple[int, int]) -> tuple[int, int]:
            scale = min(resolution[1] / width, resolution[0] / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            return kept, -resolution[0] * resolution[1]

        return max(self.pinpoints, key=merit)

    def index(self, height: int, width: int) -> Int[np.ndarray, " N"]:
        """Returns tile · side² + patch, or NEWLINE, for each token of an image of this size in pixels."""
        rows, columns = (pixels // self.image_size for pixels in self.best(height, width))
        tiles = 1 + np.arange(rows * columns).reshape(rows, 1, columns, 1)
        patches = np.arange(self.side**2).reshape(1, self.side, 1, self.side)
        laid = (tiles * self.side**2 + patches).reshape(rows * self.side, columns * self.side)
        laid = _without_black(laid, height, width)
        lines = np.pad(laid, ((0, 0), (0, 1)), constant_values=NEWLINE)
        return np.concatenate([np.arange(self.side**2), lines.ravel()]).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class OneTile:
    """The whole image as a single tile, without newlines, as LLaVA-1.5 sees it; has the interface of `Tiling`.

    Attributes:
      image_size, patch_size: as in `Tiling`.
    """

    image_size: int
    patch_size: int
    most_tiles = 1

    @property
    def most_tokens(self) -> int:
        """Number of tokens of every image."""
        return (self.image_size // self.patch_size) ** 2

    def index(self, height: int, width: int) -> Int[np.ndarray, " N"]:
        """Returns the patches of tile 0, whatever the size of the image is."""
        return np.arange(self.most_tokens, dtype=np.int32)


def _without_black(laid: Int[np.ndarray, "R C"], height: int, width: int) -> Int[np.ndarray, "r c"]:
    """Removes the rows or columns of patches at the edges that lie entirely outside the image."""
    rows, columns = laid.shape
    if width / height > columns / rows:
        black = (rows - int(round(height * (columns / width), 7))) // 2
        return laid[black : rows - black]
    black = (columns - int(round(width * (rows / height), 7))) // 2
    return laid[:, black : columns - black]
