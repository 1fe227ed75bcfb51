"""Photographs of no place, as JPEG files, that have as many tiles as a benchmark asks for."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import UsageError
from nvlm_deploy.preprocess.tiles import choose_grid

# Of the tiles' own size in each direction: small enough for one tile to stay one.
_SCALE = 1.4
_QUALITY = 90


def jpeg_with_tiles(config: NvlmConfig, tiles: int, seed: int) -> bytes:
    """A JPEG file that becomes `tiles` tiles, a thumbnail among them; noise on soft shapes, as photographs.

    Raises:
        UsageError: no image has so many.
    """
    columns, rows = _grid(config, tiles)
    width, height = (round(n * config.tile_size * _SCALE) for n in (columns, rows))
    rng = np.random.default_rng((seed, tiles))
    soft = Image.fromarray(rng.integers(0, 256, (4 * rows, 4 * columns, 3), np.uint8))
    pixels = np.asarray(soft.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    noisy = np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def _grid(config: NvlmConfig, tiles: int) -> tuple[int, int]:
    regular = tiles - 1 if config.use_thumbnail and tiles > 1 else tiles
    grids = [(c, regular // c) for c in range(1, regular + 1) if regular % c == 0 and c * c >= regular]
    size = config.tile_size * _SCALE
    for columns, rows in grids:
        chosen = choose_grid(
            round(columns * size), round(rows * size), config.tile_size, config.min_tiles, config.max_tiles
        )
        if chosen == (columns, rows) and tiles != 2:
            return chosen
    raise UsageError(
        f"no image has {tiles} tiles here",
        hint=f"one, or two to {config.max_tiles} and a thumbnail: 1, 3, ..., {config.max_tiles + 1}",
    )
