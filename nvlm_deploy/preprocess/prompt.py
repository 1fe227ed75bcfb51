"""What a prompt is: token ids, and where the visual tokens of tiles go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

TokenizationMode: TypeAlias = Literal["hf", "megatron"]


@dataclass(frozen=True, slots=True, eq=False)
class CrossPrompt:
    """Where the tiles of a prompt for NVLM-X or NVLM-H go, and what its text sees of them.

    Attributes:
        tiles: int64 [C], places among the request's tiles of those that cross-attention attends to: all in
            NVLM-X, all but the thumbnails (or only tiles) of images in NVLM-H.
        sequence_tiles: int64, the other tiles, whose visual tokens stand in the sequence.
        tags: for each of the C tiles the ids, int64, of the tag whose embeddings stand before its visual
            tokens among keys and values; empty in NVLM-X, whose tags are text.
        visible: int64 [S, 2]; token s attends to tiles [first, end) of these C. Text sees all of the
            images before it, a tag of NVLM-X its own tile, and text before the first image nothing.
    """

    tiles: npt.NDArray[np.int64]
    sequence_tiles: npt.NDArray[np.int64]
    tags: tuple[npt.NDArray[np.int64], ...]
    visible: npt.NDArray[np.int64]


class TiledPrompt(Protocol):
    """A prompt, or one with its answer: text behind the prompt sees what the prompt's last token sees."""

    @property
    def cross(self) -> CrossPrompt | None: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One prompt, ready for the decoder.

    Attributes:
        input_ids: int64 [S].
        visual_positions: int64 [V], ascending: where `input_ids` holds an image placeholder. The
            visual tokens of all tiles of all images, in order, go there.
        text: the expanded prompt, to be read by people.
        cross: where tiles go besides the sequence; None for NVLM-D.
    """

    input_ids: npt.NDArray[np.int64]
    visual_positions: npt.NDArray[np.int64]
    text: str
    cross: CrossPrompt | None = None

    def __len__(self) -> int:
        return len(self.input_ids)
