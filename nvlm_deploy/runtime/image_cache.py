"""Visual tokens of images seen before, keyed by their tiles' bytes."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

VisualTokens = npt.NDArray[np.float32]


class ImageCache:
    """Least-recently-used visual tokens, at most `max_bytes` of them; safe to share between threads.

    A whole image is one entry, so its tokens never depend on what else was encoded beside it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, VisualTokens] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    @staticmethod
    def key(tiles: npt.NDArray[np.uint8]) -> bytes:
        """Digest of uint8 tiles [T, S, S, 3], their number included."""
        return hashlib.blake2b(
            np.ascontiguousarray(tiles).data, digest_size=16, salt=len(tiles).to_bytes(8, "little")
        ).digest()

    def get(self, key: bytes) -> VisualTokens | None:
        """Return the visual tokens [V, D] under `key`, or None."""
        with self._lock:
            tokens = self._entries.get(key)
            if tokens is None:
                self.misses += 1
            else:
                self.hits += 1
                self._entries.move_to_end(key)
            return tokens

    def put(self, key: bytes, tokens: VisualTokens) -> None:
        """Keep `tokens`, and drop the oldest entries beyond the limit."""
        if tokens.nbytes > self._max_bytes:
            return
        tokens.flags.writeable = False
        with self._lock:
            self._bytes += tokens.nbytes - self._size(self._entries.pop(key, None))
            self._entries[key] = tokens
            while self._bytes > self._max_bytes:
                _, dropped = self._entries.popitem(last=False)
                self._bytes -= dropped.nbytes

    @staticmethod
    def _size(tokens: VisualTokens | None) -> int:
        return 0 if tokens is None else tokens.nbytes
