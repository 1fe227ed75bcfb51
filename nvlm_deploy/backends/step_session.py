"""What sessions of all backends share: checked arguments, and a cache that a failed call leaves as it was."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from nvlm_deploy.backends.protocol import Float32, Int32, Int64, KvCache, SeenTiles
from nvlm_deploy.backends.step import Step
from nvlm_deploy.errors import NvlmError

Cache = TypeVar("Cache", bound=KvCache)


def check_tiles(tiles: NDArray[np.uint8], shape: tuple[int, ...]) -> None:
    """Raise a NvlmError unless `tiles` are uint8 [tiles, *shape]."""
    if tiles.dtype != np.uint8 or tiles.shape[1:] != shape:
        raise NvlmError(
            f"tiles must be uint8 [tiles, {', '.join(map(str, shape))}], "
            f"not {tiles.dtype} {list(tiles.shape)}"
        )


class StepSession(ABC, Generic[Cache]):
    """A `DecoderSession` whose subclass computes one checked step.

    A subclass sets the sizes below when it opens its engine. tile_shape: as in `Step.checked`.
    """

    cache_class: type[Cache]
    _hidden_size: int
    _vocab_size: int
    _tile_shape: tuple[int, int, int] = (0, 0, 0)

    @property
    def vocab_size(self) -> int:
        """Number of logits per position."""
        return self._vocab_size

    def run(
        self,
        input_ids: Int64,
        new_lengths: Int32,
        cache: KvCache,
        visual_tokens: Float32 | None = None,
        visual_index: Int64 | None = None,
        logit_positions: Int64 | None = None,
        tiles: SeenTiles | None = None,
    ) -> Float32:
        """See `DecoderSession.run`."""
        if not isinstance(cache, self.cache_class):
            raise TypeError("a cache belongs to the session that made it")
        step = Step.checked(
            input_ids,
            new_lengths,
            visual_tokens,
            visual_index,
            logit_positions,
            tiles,
            hidden_size=self._hidden_size,
            vocab_size=self._vocab_size,
            tile_shape=self._tile_shape,
        )
        before_B = cache.lengths.copy()
        step.check_room(cache)
        try:
            logits_BPV = self._run_rows(step, cache)
        except BaseException:
            cache.lengths[:] = before_B
            raise
        return logits_BPV[:, 0] if logit_positions is None else logits_BPV

    @abstractmethod
    def _run_rows(self, step: Step, cache: Cache) -> Float32:
        """Compute a step, float32 [B, P, vocabulary], and advance the cache's lengths."""
