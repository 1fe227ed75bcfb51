"""The tile contract: an RGB image becomes the uint8 tiles that the vision tower sees.

The rule is the released `dynamic_preprocess` with a thumbnail, to the bit: the grid whose aspect
is nearest to the image's, one bicubic stretch of the whole image, tiles row by row, and the
thumbnail last.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import UsageError
from nvlm_deploy.preprocess.images import ImageSource, load_image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, eq=False)
class TiledImage:
    """One image as the model sees it.

    Attributes:
        grid: (columns, rows) of the regular tiles.
        tiles: uint8 [T, S, S, 3], RGB; the regular tiles row by row, then the thumbnail. A 1 x 1
            grid has one tile, which is the thumbnail.
        crc32: CRC-32 of each tile's S x S x 3 bytes.
    """

    grid: tuple[int, int]
    tiles: npt.NDArray[np.uint8]
    crc32: tuple[int, ...]

    def __len__(self) -> int:
        """Number of tiles, the thumbnail included."""
        return len(self.tiles)

    def report(self) -> dict[str, Any]:
        """JSON-ready facts: `{"tiles": T, "grid": [columns, rows], "crc32": [...]}`."""
        return {"tiles": len(self), "grid": list(self.grid), "crc32": list(self.crc32)}


def candidate_grids(min_tiles: int, max_tiles: int) -> list[tuple[int, int]]:
    """All grids (columns, rows) of `min_tiles` to `max_tiles` tiles: fewest tiles first, then fewest columns.

    The released code sorts a Python set by the number of tiles alone, so grids of equally many
    tiles come in the set's hash order. That order cannot change a choice when `min_tiles` is 1, as
    it is in every released configuration: only equally near grids compete, and two of those that
    have different aspects are neighbours in aspect, which never have equally many tiles.
    """
    grids = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles // columns + 1)
        if columns * rows >= min_tiles
    ]
    return sorted(grids, key=lambda grid: (grid[0] * grid[1], grid[0]))


def choose_grid(
    width: int, height: int, tile_size: int, min_tiles: int = 1, max_tiles: int = 6
) -> tuple[int, int]:
    """Choose (columns, rows) for an image of `width` x `height` pixels.

    The grid with the nearest aspect wins. Of exactly equally near grids a later candidate wins only
    if the image has more than half the pixels of that grid: so a square image becomes 2 x 2 tiles
    when it is large. Only the aspect counts otherwise: a small 2:1 image is enlarged to two tiles.
    Differences are compared as IEEE doubles, as in the released `find_closest_aspect_ratio`.
    """
    aspect = width / height
    best, smallest_difference = (1, 1), math.inf
    for columns, rows in candidate_grids(min_tiles, max_tiles):
        difference = abs(aspect - columns / rows)
        nearer = difference < smallest_difference
        large = width * height > 0.5 * tile_size * tile_size * columns * rows
        if nearer or (difference == smallest_difference and large):
            best, smallest_difference = (columns, rows), difference
    return best


def tile_image(image: Image.Image, config: NvlmConfig) -> TiledImage:
    """Cut an RGB image (from `load_image`) into tiles by the rule of `config`.

    Source: HF `dynamic_preprocess` (NVLM-D-72B README); Pillow's bicubic filter on uint8.
    """
    if image.mode != "RGB":
        raise UsageError(
            f"tiles are cut from RGB images, not from mode {image.mode!r}", hint="load_image converts"
        )
    size = config.tile_size
    columns, rows = choose_grid(image.width, image.height, size, config.min_tiles, config.max_tiles)
    regular = columns * rows
    tiles = np.empty((regular + (regular > 1), size, size, 3), dtype=np.uint8)
    if regular == 1:
        tiles[0] = _stretch(image, size, size)
    else:
        # Pillow works without the interpreter lock, so the thumbnail costs no time of its own.
        with ThreadPoolExecutor(max_workers=1) as thread:
            thumbnail = thread.submit(_stretch, image, size, size)
            whole = _stretch(image, columns * size, rows * size)
            tiles[-1] = thumbnail.result()
        by_tile = whole.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
        tiles[:-1].reshape(rows, columns, size, size, 3)[...] = by_tile
    return TiledImage((columns, rows), tiles, tuple(zlib.crc32(tile.data) for tile in tiles))


def preprocess_images(sources: Sequence[ImageSource], config: NvlmConfig) -> list[TiledImage]:
    """Load and tile images in order; errors call images without a path `image 1`, `image 2`, ..."""
    return [
        tile_image(load_image(source, label=f"image {number}"), config)
        for number, source in enumerate(sources, start=1)
    ]


def normalize_tiles(tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Scale uint8 tiles [T, S, S, 3] to the vision tower's float32 input [T, 3, S, S].

    Bit-equal to torchvision's ToTensor and Normalize with the ImageNet mean and deviation: each of
    the 256 values of a channel is computed once, in float32, and looked up.
    """
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    output = np.empty((tiles.shape[0], 3, *tiles.shape[1:3]), dtype=np.float32)
    for channel in range(3):
        table = (values - np.float32(IMAGENET_MEAN[channel])) / np.float32(IMAGENET_STD[channel])
        np.take(table, tiles[..., channel], out=output[:, channel])
    return output


def _stretch(image: Image.Image, width: int, height: int) -> npt.NDArray[np.uint8]:
    """Resize without keeping the aspect; uint8 [height, width, 3]."""
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
