"""One call of the decoder: its arguments, checked, and cut into rows and pieces. NumPy only.

Shapes: B rows, S new tokens per row, P logit positions, V visual tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nvlm_deploy.backends.protocol import Float32, Int32, Int64, KvCache
from nvlm_deploy.errors import NvlmError


@dataclass(frozen=True, slots=True)
class Step:
    """Arguments of one call, without needless padding; see `DecoderSession.run`."""

    ids_BS: Int64
    new_B: Int32
    visual_VD: Float32
    index_V2: Int64
    positions_BP: Int64

    @classmethod
    def checked(
        cls,
        input_ids: Int64,
        new_lengths: Int32,
        visual_tokens: Float32 | None,
        visual_index: Int64 | None,
        logit_positions: Int64 | None,
        *,
        hidden_size: int,
        vocab_size: int,
    ) -> Step:
        """Check the arguments against each other and against the model.

        Raises:
            NvlmError: a wrong shape, or an id, length or position out of range.
        """
        new_B = np.ascontiguousarray(new_lengths, np.int32)
        if input_ids.ndim != 2 or new_B.shape != input_ids.shape[:1] or not len(new_B):
            raise NvlmError(
                f"input_ids and new_lengths must be [B, S] and [B], "
                f"not {list(input_ids.shape)} and {list(new_B.shape)}"
            )
        if new_B.min() < 1 or new_B.max() > input_ids.shape[1]:
            raise NvlmError(f"new_lengths must lie in [1, {input_ids.shape[1]}], not {new_B.tolist()}")
        # Shorter rows may hold anything behind their end; the kernels tell a first prompt by the
        # longest row filling the whole width.
        ids_BS = np.array(input_ids[:, : new_B.max()], np.int64)
        ids_BS[np.arange(ids_BS.shape[1]) >= new_B[:, None]] = 0
        if ids_BS.min() < 0 or ids_BS.max() >= vocab_size:
            raise NvlmError(f"token ids must lie in [0, {vocab_size})")
        visual_VD, index_V2 = _checked_visual(visual_tokens, visual_index, new_B, hidden_size)
        positions_BP = new_B[:, None] - 1 if logit_positions is None else logit_positions
        if positions_BP.ndim != 2 or len(positions_BP) != len(new_B):
            raise NvlmError(f"logit_positions must be [B, P], not {list(positions_BP.shape)}")
        if ((positions_BP < 0) | (positions_BP >= new_B[:, None])).any():
            raise NvlmError("logit_positions must lie within each row's new tokens")
        return cls(ids_BS, new_B, visual_VD, index_V2, np.ascontiguousarray(positions_BP, np.int64))

    def check_room(self, cache: KvCache) -> None:
        """Raise a NvlmError unless the new tokens fit into `cache`."""
        if len(cache.lengths) != len(self.new_B):
            raise NvlmError(f"the cache has {len(cache.lengths)} rows and the step {len(self.new_B)}")
        needed = int((cache.lengths + self.new_B).max())
        if needed > cache.capacity:
            raise NvlmError(
                f"{needed} tokens do not fit into a cache of {cache.capacity}",
                hint="shorten the prompt, or ask for fewer new tokens",
            )

    def row(self, index: int) -> Step:
        """Return the step of one row alone."""
        length = int(self.new_B[index])
        mine = self.index_V2[:, 0] == index
        return Step(
            self.ids_BS[index : index + 1, :length],
            self.new_B[index : index + 1],
            self.visual_VD[mine],
            self.index_V2[mine] * (0, 1),
            self.positions_BP[index : index + 1],
        )

    def pieces(self, size: int) -> Iterator[tuple[Step, NDArray[np.bool_]]]:
        """Cut the step of one row into pieces of `size` tokens, each with the logit positions [P] inside."""
        total = self.ids_BS.shape[1]
        for start in range(0, total, size):
            stop = min(start + size, total)
            seen = (self.index_V2[:, 1] >= start) & (self.index_V2[:, 1] < stop)
            wanted = (self.positions_BP[0] >= start) & (self.positions_BP[0] < stop)
            piece = Step(
                np.ascontiguousarray(self.ids_BS[:, start:stop]),
                np.array([stop - start], np.int32),
                self.visual_VD[seen],
                self.index_V2[seen] - (0, start),
                self.positions_BP[:, wanted] - start,
            )
            yield piece, wanted


def check_capacity(capacity: int, context_length: int) -> None:
    """Raise a NvlmError if an engine has no caches of `capacity` tokens."""
    if not 1 <= capacity <= context_length:
        raise NvlmError(
            f"a cache of {capacity} tokens does not fit this engine's context of {context_length}",
            hint="shorten the prompt or the answer, or build the engine with a larger context",
        )


def _checked_visual(
    tokens: Float32 | None, index: Int64 | None, new_B: Int32, hidden_size: int
) -> tuple[Float32, Int64]:
    if tokens is None or index is None:
        if tokens is not None or index is not None:
            raise NvlmError("visual_tokens and visual_index come together or not at all")
        return np.empty((0, hidden_size), np.float32), np.empty((0, 2), np.int64)
    if tokens.ndim != 2 or tokens.shape[1] != hidden_size or index.shape != (len(tokens), 2):
        raise NvlmError(
            f"visual_tokens {list(tokens.shape)} and visual_index {list(index.shape)} "
            f"must be [V, {hidden_size}] and [V, 2]"
        )
    rows, places = index[:, 0], index[:, 1]
    if len(index) and not (
        rows.min() >= 0 and rows.max() < len(new_B) and places.min() >= 0 and (places < new_B[rows]).all()
    ):
        raise NvlmError("visual_index must lie within the rows' new tokens")
    return np.ascontiguousarray(tokens, np.float32), np.ascontiguousarray(index, np.int64)
