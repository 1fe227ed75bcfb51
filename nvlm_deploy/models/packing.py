"""Several samples in one row: each has its own positions and attends to nothing but itself.

Shapes: B rows, T positions, N samples of all rows, S tokens of the longest, H heads, K head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Packing:
    """Index tensors, int64.

    positions_BT: place in its sample, from 0. places_NS: where in the flat [B * T] a sample's tokens are, 0
    behind its end. back_BT: where in the flat [N * S] a position is, 0 for padding.
    """

    positions_BT: Tensor
    places_NS: Tensor
    back_BT: Tensor

    @classmethod
    def of(cls, lengths: Sequence[Sequence[int]], width: int) -> Packing:
        """Lay out samples of these lengths, row by row, in rows of `width` positions."""
        longest = max(length for row in lengths for length in row)
        positions_BT = torch.zeros(len(lengths), width, dtype=torch.int64)
        back_BT = torch.zeros_like(positions_BT)
        places_NS = torch.zeros(sum(len(row) for row in lengths), longest, dtype=torch.int64)
        number = 0
        for row, samples in enumerate(lengths):
            start = 0
            for length in samples:
                counted = torch.arange(length)
                positions_BT[row, start : start + length] = counted
                back_BT[row, start : start + length] = number * longest + counted
                places_NS[number, :length] = row * width + start + counted
                start, number = start + length, number + 1
        return cls(positions_BT, places_NS, back_BT)

    def to(self, device: torch.device) -> Packing:
        """The same on another device."""
        return Packing(*(getattr(self, each.name).to(device) for each in fields(self)))

    def apart(self, x_BHTK: Tensor) -> Tensor:
        """Samples beside each other, [N, H, S, K]: causality then hides all that is behind their ends."""
        return _pick(x_BHTK, self.places_NS)

    def together(self, x_NHSK: Tensor) -> Tensor:
        """The rows again, [B, H, T, K]."""
        return _pick(x_NHSK, self.back_BT)


def _pick(x_RHPK: Tensor, places: Tensor) -> Tensor:
    """Tokens of R rows of P positions into the rows that `places` has, heads first again."""
    flat = x_RHPK.transpose(1, 2).flatten(0, 1)
    # Going back this adds up, which indexing with brackets does many times slower.
    return flat.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)
