"""Dense supervision for a vision tower that starts from nothing: the characters in each visual token's cell.

One short answer per image teaches a new tower to read very slowly. This head, thrown away after training,
asks every visual token for the characters whose centers lie in its part of the tile, from left to right.
It stands in for the pre-training that the released InternViT brings along.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor, nn

from nvlm_deploy.synthetic.canvas import Glyph

CHARACTERS = string.ascii_lowercase + string.digits + "ABCD"
NUM_SLOTS = 4
_NO_CHARACTER = len(CHARACTERS)
_UNKNOWN = -100
# Most cells are blank paper; at full weight they would drown the characters.
_BLANK_WEIGHT = 0.2


def glyph_targets(glyphs: Sequence[Glyph], grid: tuple[int, int], side: int) -> npt.NDArray[np.int64]:
    """Class of each slot of each cell, int64 [tiles, side * side, NUM_SLOTS].

    A thumbnail beside other tiles is too coarse to read: its targets are -100 and carry no loss.
    """
    columns, rows = grid
    targets = np.full((rows, columns, side, side, NUM_SLOTS), _NO_CHARACTER, dtype=np.int64)
    filled = np.zeros((rows, columns, side, side), dtype=np.int64)
    for glyph in sorted(glyphs, key=lambda g: (g.y, g.x)):
        tile_row, row = divmod(min(int(glyph.y * rows * side), rows * side - 1), side)
        tile_column, column = divmod(min(int(glyph.x * columns * side), columns * side - 1), side)
        cell = (tile_row, tile_column, row, column)
        if filled[cell] < NUM_SLOTS:
            targets[(*cell, filled[cell])] = CHARACTERS.index(glyph.character)
            filled[cell] += 1
    flat = targets.reshape(rows * columns, side * side, NUM_SLOTS)
    if len(flat) == 1:
        return flat
    return np.concatenate([flat, np.full_like(flat[:1], _UNKNOWN)])


class GlyphHead(nn.Module):
    """Visual tokens [tiles, tokens, D] to the mean cross-entropy of their characters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classes = nn.Linear(width, NUM_SLOTS * (len(CHARACTERS) + 1))

    def forward(self, visual_TND: Tensor, targets_TNS: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the share of readable characters that are read right."""
        logits = self.classes(visual_TND).unflatten(-1, (NUM_SLOTS, -1)).flatten(0, 2).float()
        targets = targets_TNS.flatten()
        weight = logits.new_ones(_NO_CHARACTER + 1)
        weight[_NO_CHARACTER] = _BLANK_WEIGHT
        loss = F.cross_entropy(logits, targets, weight, ignore_index=_UNKNOWN)
        readable = (targets != _UNKNOWN) & (targets != _NO_CHARACTER)
        return loss, (logits.argmax(-1) == targets)[readable].float().mean()
