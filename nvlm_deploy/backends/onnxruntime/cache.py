"""Keys and values of a batch, in buffers that the decoder updates in place. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvlm_deploy.backends.protocol import Int32, TileStates

# Makes an owner of device memory with the contents of an array; it has `data_ptr()`.
Allocate = Callable[[NDArray[Any]], Any]


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory of a device, or rows of it. dtype: of its numbers. owner: keeps the memory."""

    pointer: int
    shape: tuple[int, ...]
    dtype: type[np.generic]
    owner: Any

    def row(self, index: int) -> Buffer:
        """Return one row, [1, ...], in the same memory."""
        size = math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize
        return Buffer(self.pointer + index * size, (1, *self.shape[1:]), self.dtype, self.owner)


@dataclass(frozen=True, slots=True)
class Memory:
    """Where a session's buffers are, and how one is made. device: `cpu` or `cuda`; number: which of them."""

    device: str
    number: int
    allocate: Allocate
    new_binding: Callable[[], Any]

    def zeros(self, shape: tuple[int, ...], dtype: type[np.generic]) -> Buffer:
        """Allocate a buffer of zeros."""
        return self.holding(np.zeros(shape, dtype))

    def holding(self, array: NDArray[Any]) -> Buffer:
        """Return a buffer with the contents of `array`; on the CPU it is the array's own memory."""
        owner = self.allocate(np.ascontiguousarray(array))
        return Buffer(owner.data_ptr(), array.shape, array.dtype.type, owner)


class OrtKvCache:
    """One key and one value buffer per layer, [B, KV heads, capacity, head size], on the session's device.

    `lengths` int32 [B] counts the tokens of each row; smaller numbers written into it drop the last ones.
    `binding` holds the buffers bound to the graph's past inputs and present outputs, so that a step
    binds nothing but its own small tensors. Keys and values of tiles stay bound likewise.
    """

    def __init__(self, buffers: Mapping[str, Buffer], lengths: Int32, memory: Memory) -> None:
        self.buffers, self.memory = buffers, memory
        self.lengths = lengths
        self.binding = memory.new_binding()
        self._tiles: TileStates | None = None
        self._tile_buffers: list[Buffer] = []
        for name, buffer in buffers.items():
            place = (memory.device, memory.number, buffer.dtype, list(buffer.shape), buffer.pointer)
            self.binding.bind_input(f"past_{name}", *place)
            self.binding.bind_output(f"present_{name}", *place)

    @classmethod
    def empty(
        cls, layers: int, shape: tuple[int, int, int, int], dtype: type[np.generic], memory: Memory
    ) -> OrtKvCache:
        """Return a cache without tokens; `shape` is [B, KV heads, capacity, head size]."""
        # Zeros, because a kernel may multiply what lies behind a row's end with a probability of zero.
        names = [f"{kind}.{layer}" for layer in range(layers) for kind in ("key", "value")]
        buffers = {name: memory.zeros(shape, dtype) for name in names}
        return cls(buffers, np.zeros(shape[0], np.int32), memory)

    def bind_tiles(self, layers: Sequence[int], states: TileStates) -> None:
        """Bind keys and values of tiles, which are copied to the device unless they are there already."""
        if states is self._tiles:
            return
        arrays = {
            f"tile_{kind}.{layer}": array
            for kind, made in (("key", states.keys), ("value", states.values))
            for layer, array in zip(layers, made, strict=True)
        }
        buffers = {name: self.memory.holding(array) for name, array in arrays.items()}
        for name, buffer in buffers.items():
            place = (self.memory.device, self.memory.number, buffer.dtype, list(buffer.shape), buffer.pointer)
            self.binding.bind_input(name, *place)
        self._tiles, self._tile_buffers = states, list(buffers.values())

    @property
    def capacity(self) -> int:
        """Tokens that fit into each row."""
        return int(next(iter(self.buffers.values())).shape[2])

    def row(self, index: int) -> OrtKvCache:
        """Return one row as a cache of its own, in the same memory."""
        buffers = {name: buffer.row(index) for name, buffer in self.buffers.items()}
        return OrtKvCache(buffers, self.lengths[index : index + 1], self.memory)
