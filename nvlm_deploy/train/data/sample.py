"""One conversation as training data: tiles that fit, token ids, labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nvlm_deploy.calibration.conversation import Conversation
from nvlm_deploy.config.training import DataSection
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.preprocess.answered import IGNORED_LABEL, AnsweredPrompt, build_answered
from nvlm_deploy.preprocess.images import load_image
from nvlm_deploy.preprocess.prompt_builder import PromptBuilder
from nvlm_deploy.preprocess.tiles import choose_grid, tile_image

# What the tile limit of a sample that is too long falls to, one after the other (released scripts).
DEGRADE = (12, 8, 6, 4, 2, 1)


@dataclass(frozen=True, slots=True, eq=False)
class TrainSample:
    """One conversation of S tokens with T tiles of I x I pixels.

    `label` is how logs call it; `source` its number in the blend; `tiles` uint8 [T, I, I, 3], those of all
    images in order; `max_tiles` the limit per image that made it fit.
    """

    label: str
    source: int
    answered: AnsweredPrompt
    tiles: npt.NDArray[np.uint8]
    tiles_per_image: tuple[int, ...]
    max_tiles: int

    def __len__(self) -> int:
        return len(self.answered)

    @property
    def loss_tokens(self) -> int:
        """Labels that count; the first token of a sequence is never predicted."""
        return int((self.answered.labels[1:] != IGNORED_LABEL).sum())


@dataclass(frozen=True, slots=True)
class SkippedSample:
    """A conversation that cannot be trained on, and why."""

    label: str
    source: int
    reason: str


def build_train_sample(
    conversation: Conversation, builder: PromptBuilder, data: DataSection, source: int = 0
) -> TrainSample:
    """Tile the images so that the sequence fits, and tokenize the conversation.

    Raises:
        NvlmError: a broken image, an empty answer or none, or more tokens than `data.max_length` even with
            one tile per image; the message names the conversation.
    """
    try:
        return _build(conversation, builder, data, source)
    except NvlmError as error:
        known = conversation.label in error.message
        message = error.message if known else f"{conversation.label}: {error.message}"
        raise NvlmError(message, hint=error.hint) from None


def tile_limits(data: DataSection, builder: PromptBuilder) -> list[int]:
    """The limits per image to try, the largest first: 6, 4, 2, 1 for a model of six tiles."""
    most = min(data.max_tiles or builder.config.max_tiles, builder.config.max_tiles)
    return [most, *(limit for limit in DEGRADE if limit < most)]


def _build(conversation: Conversation, builder: PromptBuilder, data: DataSection, source: int) -> TrainSample:
    if conversation.answer is None:
        raise NvlmError("there is no answer to learn")
    if not conversation.answer.strip():
        raise NvlmError("the answer is empty")
    images = [
        load_image(image, label=f"image {number}")
        for number, image in enumerate(conversation.images, start=1)
    ]
    config = builder.config
    for limit in tile_limits(data, builder):
        grids = [
            choose_grid(image.width, image.height, config.tile_size, config.min_tiles, limit)
            for image in images
        ]
        counts = [columns * rows + (columns * rows > 1) for columns, rows in grids]
        answered = build_answered(builder, conversation.prompt, conversation.answer, counts)
        if len(answered) <= data.max_length:
            break
        if limit == 1 or not images:
            raise NvlmError(f"{len(answered):,} tokens, more than data.max_length {data.max_length:,}")
    size = config.tile_size
    no_tiles = np.empty((0, size, size, 3), dtype=np.uint8)
    tiled = [tile_image(image, replace(config, max_tiles=limit)).tiles for image in images]
    return TrainSample(
        label=conversation.label,
        source=source,
        answered=answered,
        tiles=np.concatenate([no_tiles, *tiled]),
        tiles_per_image=tuple(counts),
        max_tiles=limit,
    )
