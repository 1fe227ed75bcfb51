"""Sequences to tensors: ids, labels, tiles, and what every position may see.

Shapes: B sequences, T positions, N tiles in all, S pixels per side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.models.cross_tiles import CrossTiles
from nvlm_deploy.models.packing import Packing
from nvlm_deploy.preprocess.answered import IGNORED_LABEL
from nvlm_deploy.preprocess.prompt import CrossPrompt
from nvlm_deploy.preprocess.tiles import normalize_tiles
from nvlm_deploy.train.data.sample import TrainSample


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """A micro-batch.

    pixels_N3SS float32. ids_BT int64. targets_BT int64: what position t predicts, the label of t + 1 in its
    sample; -100 where nothing is. sources_BT int64: the source of each position's sample. visual_mask_BT
    bool. tiles: for cross-attention, None for NVLM-D. packing: None if no row has more than one sample.

    Where there is no tile for the tower, or none for cross-attention, a blank one that no position sees is
    put behind the others: so every step has gradients, maybe zero, for the same parameters on all processes.
    """

    pixels_N3SS: Tensor
    ids_BT: Tensor
    targets_BT: Tensor
    sources_BT: Tensor
    visual_mask_BT: Tensor
    tiles: CrossTiles | None
    packing: Packing | None
    num_samples: int
    num_tokens: int

    @property
    def loss_tokens(self) -> int:
        """Positions whose prediction counts."""
        return int((self.targets_BT != IGNORED_LABEL).sum())

    def to(self, device: torch.device) -> TrainBatch:
        """The same on another device."""
        moved = {each.name: getattr(self, each.name) for each in fields(self)}
        for name, value in moved.items():
            if isinstance(value, (Tensor, CrossTiles, Packing)):
                moved[name] = value.to(device)
        return TrainBatch(**moved)


def collate(
    rows: Sequence[Sequence[TrainSample]], config: NvlmConfig, length: int | None = None
) -> TrainBatch:
    """Lay samples out row by row.

    Args:
        rows: the samples of each sequence.
        length: T; by default that of the longest row.
    """
    width = length or max(sum(len(sample) for sample in row) for row in rows)
    shape = (len(rows), width)
    ids = torch.zeros(shape, dtype=torch.int64)
    targets = torch.full(shape, IGNORED_LABEL)
    sources = torch.zeros(shape, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.bool)
    for row, samples in enumerate(rows):
        start = 0
        for sample in samples:
            end = start + len(sample)
            ids[row, start:end] = torch.from_numpy(sample.answered.input_ids)
            targets[row, start : end - 1] = torch.from_numpy(sample.answered.labels[1:])
            sources[row, start:end] = sample.source
            mask[row, start + torch.from_numpy(sample.answered.visual_positions)] = True
            start = end
    everything = [sample for row in rows for sample in row]
    tiles = _cross_tiles(rows, width, config)
    num_tiles = sum(len(sample.tiles) for sample in everything)
    packed = any(len(row) > 1 for row in rows)
    blank = num_tiles == 0 or (tiles is not None and int(tiles.index_C.max()) == num_tiles)
    return TrainBatch(
        pixels_N3SS=_pixels(everything, config, blank),
        ids_BT=ids,
        targets_BT=targets,
        sources_BT=sources,
        visual_mask_BT=mask,
        tiles=tiles,
        packing=Packing.of([[len(sample) for sample in row] for row in rows], width) if packed else None,
        num_samples=len(everything),
        num_tokens=sum(len(sample) for sample in everything),
    )


def _pixels(samples: Sequence[TrainSample], config: NvlmConfig, blank: bool) -> Tensor:
    size = config.tile_size
    tiles = [np.full((int(blank), size, size, 3), 255, dtype=np.uint8)]
    return torch.from_numpy(normalize_tiles(np.concatenate([*(sample.tiles for sample in samples), *tiles])))


def _cross_tiles(rows: Sequence[Sequence[TrainSample]], width: int, config: NvlmConfig) -> CrossTiles | None:
    """Say what sees which tile; if cross-attention has none, it gets a blank one behind all others."""
    if config.variant == "D":
        return None
    crosses: list[list[tuple[CrossPrompt, int]]] = [
        [(sample.answered.cross, len(sample)) for sample in row if sample.answered.cross is not None]
        for row in rows
    ]
    tiles = CrossTiles.of_rows(crosses, width)
    if len(tiles.index_C):
        return tiles
    first = torch.zeros(1, dtype=torch.int64)
    # In NVLM-H a tile has a tag, here of one token: the mean of none is no number.
    tags = torch.zeros(1, int(config.variant == "H"), dtype=torch.int64)
    return CrossTiles(tiles.visible_BT2, first + len(tiles.sequence_S), first, first, tags, tiles.sequence_S)
