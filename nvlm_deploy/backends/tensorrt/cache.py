"""Keys and values of a batch in a device's memory. Not yet run on a GPU.

Shapes: L layers, B rows, G KV heads, C capacity, S new tokens, K head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nvlm_deploy.backends.protocol import Int32
from nvlm_deploy.backends.tensorrt.cuda import Buffer, Device


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Sizes of a cache; `itemsize` in bytes."""

    layers: int
    kv_heads: int
    capacity: int
    head_dim: int
    itemsize: int

    def row_bytes(self, tokens: int) -> int:
        """Bytes of so many tokens of one row in one of the tensors."""
        return self.kv_heads * tokens * self.head_dim * self.itemsize


class DeviceKvCache:
    """All layers' keys and values in one piece of memory, [2 L, B, G, C, K], or some rows of it.

    `lengths` int32 [B] counts the tokens of each row; smaller numbers written into it drop the last ones.
    """

    def __init__(self, shape: CacheShape, buffer: Buffer, rows: int, first: int, lengths: Int32) -> None:
        """Use `empty` and `row`. rows: of the whole memory; first: that this cache begins with."""
        self.shape, self.buffer, self._rows, self._first = shape, buffer, rows, first
        self.lengths = lengths

    @classmethod
    def empty(cls, device: Device, shape: CacheShape, rows: int) -> DeviceKvCache:
        """Return a cache without tokens."""
        nbytes = 2 * shape.layers * rows * shape.row_bytes(shape.capacity)
        return cls(shape, Buffer(device, nbytes), rows, 0, np.zeros(rows, np.int32))

    @property
    def capacity(self) -> int:
        """Tokens that fit into each row."""
        return self.shape.capacity

    @property
    def tensor_shape(self) -> tuple[int, int, int, int]:
        """[B, G, C, K] of one layer's keys or values."""
        return (len(self.lengths), self.shape.kv_heads, self.shape.capacity, self.shape.head_dim)

    def row(self, index: int) -> DeviceKvCache:
        """Return one row as a cache of its own, in the same memory."""
        rows = self.lengths[index : index + 1]
        return DeviceKvCache(self.shape, self.buffer, self._rows, self._first + index, rows)

    def addresses(self) -> Iterator[tuple[str, int]]:
        """Names of the tensors without `past_`, and where they begin."""
        row = self.shape.row_bytes(self.capacity)
        for layer in range(self.shape.layers):
            for offset, kind in enumerate(("key", "value")):
                place = (2 * layer + offset) * self._rows + self._first
                yield f"{kind}.{layer}", self.buffer.address + place * row

    def append(self, device: Device, new: int, tokens: int, counts: Int32) -> None:
        """Write new keys and values behind each row's tokens; `lengths` stay as they are.

        Args:
            new: address of [2 L, B, G, S, K], with S = `tokens`.
            counts: int32 [B], how many of them are no padding.
        """
        shape, item = self.shape, self.shape.head_dim * self.shape.itemsize
        target_pitch, source_pitch = shape.capacity * item, tokens * item
        rows, source_row = len(counts), shape.row_bytes(tokens)
        whole = self._rows == rows == 1
        for part, (_, address) in enumerate(self.addresses()):
            if whole and part:
                break
            for row in range(rows):
                target = address + row * shape.row_bytes(shape.capacity) + int(self.lengths[row]) * item
                source = new + (part * rows + row) * source_row
                width = int(counts[row]) * item
                # A single row's tensors lie one behind the other, and so do their heads.
                height = shape.kv_heads * (2 * shape.layers if whole else 1)
                device.copy_rows(target, target_pitch, source, source_pitch, width, height)
