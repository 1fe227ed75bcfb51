"""Several samples in one row: each has its own positions and attends to nothing but itself.

Shapes: B rows, T positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Packing:
    """Index tensors, int64 [B, T].

    positions_BT: place in its sample, from 0. samples_BT: number of the sample in its row; -1 is padding.
    """

    positions_BT: Tensor
    samples_BT: Tensor

    def to(self, device: torch.device) -> Packing:
        """The same on another device."""
        return Packing(self.positions_BT.to(device), self.samples_BT.to(device))

    def mask(self) -> Tensor:
        """Bool [B, 1, T, T]: a position attends to those of its sample that are not behind it."""
        same_BTT = self.samples_BT.unsqueeze(2) == self.samples_BT.unsqueeze(1)
        return same_BTT.tril().unsqueeze(1)
