"""Tiles of many images laid out row by row for cross-attention, and what each token sees of them.

Shapes: B rows, S tokens, L entries of the tiles of the row that has most, G KV heads, K head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nvlm_deploy.backends.protocol import SeenTiles, TileStates
from nvlm_deploy.preprocess.prompt import TiledPrompt

Int64 = npt.NDArray[np.int64]


def first_look(prompts: Sequence[TiledPrompt], rows: Sequence[Sequence[TileStates]]) -> SeenTiles | None:
    """What the tokens of prompts see of the images of their rows; None if no row has a tile.

    Args:
        prompts: one per row; shorter ones are taken as right-padded to the longest.
        rows: for every prompt its images in order, without those that have nothing in cross-attention.
    """
    states = lay_out(rows)
    if states is None:
        return None
    visible_BS2 = np.zeros((len(prompts), max(map(len, prompts)), 2), np.int64)
    for visible_S2, prompt in zip(visible_BS2, prompts, strict=True):
        assert prompt.cross is not None, "only models with cross-attention have tiles in it"
        known = prompt.cross.visible
        visible_S2[: len(known)], visible_S2[len(known) : len(prompt)] = known, known[-1]
    return SeenTiles(states, visible_BS2)


def later_look(seen: SeenTiles) -> SeenTiles:
    """What one more token of each row sees: all tiles, for it stands behind all images."""
    end_B = seen.states.counts
    return SeenTiles(seen.states, np.stack([np.zeros_like(end_B), end_B], axis=-1)[:, None])


def lay_out(rows: Sequence[Sequence[TileStates]]) -> TileStates | None:
    """Keys and values of the images of every row, one image behind the other; None if there are none."""
    width = max(sum(image.tiles.shape[0] for image in row) for row in rows)
    if not width:
        return None
    if len(rows) == 1 and len(rows[0]) == 1:
        (only,) = rows[0]
        keys, values = (tuple(array[None] for array in arrays) for arrays in (only.keys, only.values))
        return TileStates(keys, values, only.tiles[None])
    tiles_BL = np.full((len(rows), width), -1, np.int64)
    for tiles_L, row in zip(tiles_BL, rows, strict=True):
        start = first = 0
        for image in row:
            stop = start + image.tiles.shape[0]
            tiles_L[start:stop] = np.where(image.tiles >= 0, image.tiles + first, -1)
            start, first = stop, first + int(image.counts)
    layers = len(next(image.keys for row in rows for image in row))
    return TileStates(
        tuple(_joined([[image.keys[i] for image in row] for row in rows], width) for i in range(layers)),
        tuple(_joined([[image.values[i] for image in row] for row in rows], width) for i in range(layers)),
        tiles_BL,
    )


def _joined(rows: Sequence[Sequence[npt.NDArray[np.float32]]], width: int) -> npt.NDArray[np.float32]:
    """[G, l, K] of every image to [B, G, L, K]; zeros behind the end of shorter rows."""
    heads, _, size = next(array.shape for row in rows for array in row)
    joined_BGLK = np.zeros((len(rows), heads, width, size), np.float32)
    for joined_GLK, row in zip(joined_BGLK, rows, strict=True):
        start = 0
        for array_GLK in row:
            stop = start + array_GLK.shape[1]
            joined_GLK[:, start:stop] = array_GLK
            start = stop
    return joined_BGLK
