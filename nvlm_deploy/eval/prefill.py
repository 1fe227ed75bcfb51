"""A prepared sequence as a decoder session takes it: ids, visual tokens in their places, tiles beside them.

Shapes: S tokens, V visual tokens in the sequence, D decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvlm_deploy.backends import DecoderSession
from nvlm_deploy.backends.protocol import Float32, Int64, SeenTiles
from nvlm_deploy.calibration import CalibrationSample
from nvlm_deploy.runtime.image_cache import EncodedImage, Tiles
from nvlm_deploy.runtime.seen_tiles import first_look


@dataclass(frozen=True, slots=True, eq=False)
class Prefill:
    """visual_VD, index_V2: what replaces placeholders; None for text. seen: tiles in cross-attention."""

    input_ids_S: Int64
    visual_VD: Float32 | None
    index_V2: Int64 | None
    seen: SeenTiles | None

    @classmethod
    def of(cls, sequence: CalibrationSample, images: Sequence[EncodedImage]) -> Prefill:
        """Inputs for a sequence whose images are encoded."""
        seen = first_look([sequence], [[image.states for image in images if image.states is not None]])
        ids_S, places_V = sequence.input_ids, sequence.visual_positions
        if not len(places_V):
            return cls(ids_S, None, None, seen)
        visual_VD = np.concatenate([image.visual for image in images])
        return cls(ids_S, visual_VD, np.column_stack([np.zeros_like(places_V), places_V]), seen)

    def logits(self, decoder: DecoderSession, positions_L: Int64) -> Float32:
        """Logits float32 [L, vocabulary] at some positions."""
        length = len(self.input_ids_S)
        logits_1LV = decoder.run(
            self.input_ids_S[None],
            np.array([length], np.int32),
            decoder.new_cache(1, length),
            self.visual_VD,
            self.index_V2,
            positions_L[None],
            tiles=self.seen,
        )
        logits_LV: Float32 = logits_1LV[0]
        return logits_LV


def image_tiles(sequence: CalibrationSample) -> list[Tiles]:
    """Tiles of every image."""
    if not sequence.tiles_per_image:
        return []
    return np.split(sequence.tiles, np.cumsum(sequence.tiles_per_image)[:-1])
