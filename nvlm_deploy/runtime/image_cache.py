"""What the decoder takes of images seen before, keyed by their tiles' bytes."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nvlm_deploy.backends.protocol import TileStates

VisualTokens = npt.NDArray[np.float32]
Tiles = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImage:
    """One image.

    visual: [V, D], the visual tokens that stand in the sequence: all in NVLM-D, those of the thumbnail (or of
        the only tile) in NVLM-H, none in NVLM-X.
    states: keys and values of the other tiles, for cross-attention; None if there are none.
    """

    visual: VisualTokens
    states: TileStates | None = None

    @property
    def nbytes(self) -> int:
        return self.visual.nbytes + (0 if self.states is None else self.states.nbytes)

    def freeze(self) -> None:
        """Let nobody write into what others may read, too."""
        arrays = [self.visual]
        if self.states is not None:
            arrays += [*self.states.keys, *self.states.values]
        for array in arrays:
            array.flags.writeable = False


class CacheFigures(Protocol):
    """How often a cache had what was asked for."""

    @property
    def hits(self) -> int: ...

    @property
    def misses(self) -> int: ...


class ImageCache:
    """Least-recently-used images, at most `max_bytes` of them; safe to share between threads.

    A whole image is one entry, so its numbers never depend on what else was encoded beside it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, EncodedImage] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    @staticmethod
    def key(tiles: Tiles) -> bytes:
        """Digest of uint8 tiles [T, S, S, 3], their number included."""
        return hashlib.blake2b(
            np.ascontiguousarray(tiles).data, digest_size=16, salt=len(tiles).to_bytes(8, "little")
        ).digest()

    def get(self, key: bytes) -> EncodedImage | None:
        """Return the image under `key`, or None."""
        with self._lock:
            image = self._entries.get(key)
            if image is None:
                self.misses += 1
            else:
                self.hits += 1
                self._entries.move_to_end(key)
            return image

    def put(self, key: bytes, image: EncodedImage) -> None:
        """Keep `image`, and drop the oldest entries beyond the limit."""
        if image.nbytes > self._max_bytes:
            return
        image.freeze()
        with self._lock:
            self._bytes += image.nbytes - self._size(self._entries.pop(key, None))
            self._entries[key] = image
            while self._bytes > self._max_bytes:
                _, dropped = self._entries.popitem(last=False)
                self._bytes -= dropped.nbytes

    @staticmethod
    def _size(image: EncodedImage | None) -> int:
        return 0 if image is None else image.nbytes
