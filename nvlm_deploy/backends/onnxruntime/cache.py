"""Keys and values of a batch, in buffers that the decoder updates in place. NumPy only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nvlm_deploy.backends.protocol import Float32, Int32


class OrtKvCache:
    """One key and one value buffer per layer, float32 [B, KV heads, capacity, head size].

    `lengths` int32 [B] counts the tokens of each row; smaller numbers written into it drop the last ones.
    `binding` holds the buffers bound to the graph's past inputs and present outputs, so that a step
    binds nothing but its own small tensors.
    """

    def __init__(self, buffers: dict[str, Float32], lengths: Int32, new_binding: Callable[[], Any]) -> None:
        self.buffers, self.new_binding = buffers, new_binding
        self.lengths = lengths
        self.binding = new_binding()
        for name, buffer in buffers.items():
            place = (np.float32, list(buffer.shape), buffer.ctypes.data)
            self.binding.bind_input(f"past_{name}", "cpu", 0, *place)
            self.binding.bind_output(f"present_{name}", "cpu", 0, *place)

    @classmethod
    def empty(
        cls, layers: int, shape: tuple[int, int, int, int], new_binding: Callable[[], Any]
    ) -> OrtKvCache:
        """Return a cache without tokens; `shape` is [B, KV heads, capacity, head size]."""
        # Zeros, because a kernel may multiply what lies behind a row's end with a probability of zero.
        names = [f"{kind}.{layer}" for layer in range(layers) for kind in ("key", "value")]
        buffers = {name: np.zeros(shape, np.float32) for name in names}
        return cls(buffers, np.zeros(shape[0], np.int32), new_binding)

    @property
    def capacity(self) -> int:
        """Tokens that fit into each row."""
        return int(next(iter(self.buffers.values())).shape[2])

    def row(self, index: int) -> OrtKvCache:
        """Return one row as a cache of its own, in the same memory."""
        rows = slice(index, index + 1)
        buffers = {name: buffer[rows] for name, buffer in self.buffers.items()}
        return OrtKvCache(buffers, self.lengths[rows], self.new_binding)
