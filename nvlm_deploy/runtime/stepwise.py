"""Generation step by step: this process chooses every token from logits that a session computes.

Shapes: V visual tokens of the whole batch, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from nvlm_deploy.backends.protocol import DecoderSession, SeenTiles
from nvlm_deploy.runtime.answer import Answer
from nvlm_deploy.runtime.encoder import ImageEncoder
from nvlm_deploy.runtime.image_cache import EncodedImage, VisualTokens
from nvlm_deploy.runtime.prepare import Prepared
from nvlm_deploy.runtime.seen_tiles import first_look, later_look
from nvlm_deploy.runtime.timings import StageTimer


class StepwiseGenerator:
    """Answers a batch with a decoder session; rows stand still when they are finished."""

    def __init__(self, encoder: ImageEncoder, decoder: DecoderSession) -> None:
        self._encoder, self._decoder = encoder, decoder

    def steps(
        self, prepared: Sequence[Prepared], answers: Sequence[Answer], timer: StageTimer
    ) -> Iterator[list[str]]:
        """Prefill, then decode until every answer is finished; yield each row's new text per step."""
        with timer.stage("vision"):
            images = [[self._encoder.encode(image) for image in p.images] for p in prepared]
            visual_tokens, visual_index = _visual_inputs(prepared, images)
            tiles = _seen_tiles(prepared, images)
        capacity = max(len(p.prompt) + p.max_new_tokens for p in prepared)
        cache = self._decoder.new_cache(len(prepared), capacity)
        with timer.stage("prefill"):
            input_ids, lengths = _right_padded([p.prompt.input_ids for p in prepared])
            logits = self._decoder.run(input_ids, lengths, cache, visual_tokens, visual_index, tiles=tiles)
        if tiles is not None:
            tiles = later_look(tiles)
        while True:
            yield [answer.accept(row) for answer, row in zip(answers, logits, strict=True)]
            timer.stages_ms.setdefault("first_token", timer.elapsed_ms())
            if all(answer.finish_reason for answer in answers):
                return
            with timer.stage("decode"):
                step_ids = np.array([[answer.last_id] for answer in answers], dtype=np.int64)
                ones = np.ones(len(answers), dtype=np.int32)
                logits = self._decoder.run(step_ids, ones, cache, tiles=tiles)
                # A finished row stands still: its cache must not run over while others go on.
                cache.lengths[[bool(answer.finish_reason) for answer in answers]] -= 1


def _visual_inputs(
    prepared: Sequence[Prepared], images: Sequence[Sequence[EncodedImage]]
) -> tuple[VisualTokens | None, npt.NDArray[np.int64] | None]:
    """Visual tokens [V, D] in the sequences of all rows and their places (row, position), int64 [V, 2]."""
    tokens = [image.visual for row in images for image in row]
    if not tokens:
        return None, None
    places = [
        np.column_stack([np.full(len(p.prompt.visual_positions), row), p.prompt.visual_positions])
        for row, p in enumerate(prepared)
    ]
    return np.concatenate(tokens), np.concatenate(places).astype(np.int64)


def _seen_tiles(prepared: Sequence[Prepared], images: Sequence[Sequence[EncodedImage]]) -> SeenTiles | None:
    """What all rows see of tiles in cross-attention."""
    rows = [[image.states for image in row if image.states is not None] for row in images]
    return first_look([p.prompt for p in prepared], rows)


def _right_padded(
    rows: Sequence[npt.NDArray[np.int64]],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    lengths = np.array([len(row) for row in rows], dtype=np.int32)
    padded = np.zeros((len(rows), lengths.max()), dtype=np.int64)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded, lengths
