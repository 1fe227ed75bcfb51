"""Batches of documents: tiles, glyph targets, and right-padded conversations."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from nvlm_deploy.calibration.sources import TRANSCRIBE
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.models.cross_tiles import CrossTiles
from nvlm_deploy.preprocess.answered import AnsweredPrompt
from nvlm_deploy.preprocess.prompt_builder import PromptBuilder
from nvlm_deploy.preprocess.tiles import TiledImage, normalize_tiles, tile_image
from nvlm_deploy.synthetic.documents import Document, Exchange, document
from nvlm_deploy.train.conversation import IGNORED_LABEL, tokenize_conversation
from nvlm_deploy.train.glyphs import glyph_targets

__all__ = ["TRANSCRIBE", "Batch", "DocumentBatches", "collate"]


@dataclass(frozen=True, slots=True)
class Batch:
    """B conversations about documents of N tiles in all; pages without questions have none.

    `pixels` float32 [N, 3, S, S]; `glyphs` int64 [N, tokens per tile, slots]; `input_ids` and `labels`
    int64 [B, T]; `visual_mask` bool [B, T]; `tiles` is for cross-attention, None for NVLM-D.
    """

    pixels: Tensor
    glyphs: Tensor
    input_ids: Tensor
    labels: Tensor
    visual_mask: Tensor
    tiles: CrossTiles | None


class DocumentBatches(IterableDataset[Batch]):
    """An endless, seeded stream of batches from the train split; every document is seen once."""

    def __init__(
        self,
        builder: PromptBuilder,
        config: NvlmConfig,
        batch_size: int,
        start: int = 0,
        max_questions: int = 4,
        transcripts: float = 0.0,
        pool: int = 1,
        kinds: tuple[str, ...] = (),
    ) -> None:
        """Ask up to `max_questions` questions a page, and for all the text of a share `transcripts` of pages.

        `pool` batches are drawn at a time and filled with pages of like size, which saves padding.
        """
        self.builder, self.config, self.batch_size = builder, config, batch_size
        self.start, self.max_questions, self.transcripts = start, max_questions, transcripts
        self.pool, self.kinds = pool, kinds

    def __iter__(self) -> Iterator[Batch]:
        index = self.start
        while True:
            rng = random.Random(index)
            end = index + self.batch_size * self.pool
            pages = [document("train", n, self.config.tile_size, self.kinds) for n in range(index, end)]
            if self.pool > 1:
                pages.sort(key=lambda page: page.image.width * page.image.height)
            groups = [pages[i : i + self.batch_size] for i in range(0, len(pages), self.batch_size)]
            rng.shuffle(groups)
            for group in groups:
                yield collate(group, [self._asked(page, rng) for page in group], self.builder, self.config)
            index = end

    def _asked(self, page: Document, rng: random.Random) -> list[Exchange]:
        asked = rng.sample(page.exchanges, min(self.max_questions, len(page.exchanges)))
        if rng.random() < self.transcripts:
            asked.append(Exchange(TRANSCRIBE, page.transcript))
            rng.shuffle(asked)
        return asked


def collate(
    pages: Sequence[Document],
    asked: Sequence[Sequence[Exchange]],
    builder: PromptBuilder,
    config: NvlmConfig,
) -> Batch:
    """Tile the pages and tokenize what is asked about each."""
    tiled = [tile_image(page.image, config) for page in pages]
    conversations = [
        tokenize_conversation(builder, exchanges, len(tiles))
        for exchanges, tiles in zip(asked, tiled, strict=True)
        if exchanges
    ]
    side = config.vision.patches_per_side // 2
    glyphs = [glyph_targets(page.glyphs, tiles.grid, side) for page, tiles in zip(pages, tiled, strict=True)]
    input_ids, labels, visual_mask = _pad(conversations)
    return Batch(
        pixels=torch.from_numpy(normalize_tiles(_all_tiles(tiled))),
        glyphs=torch.from_numpy(np.concatenate(glyphs)),
        input_ids=input_ids,
        labels=labels,
        visual_mask=visual_mask,
        tiles=CrossTiles.of([c.prompt for c in conversations], input_ids.shape[1]) if conversations else None,
    )


def _all_tiles(tiled: list[TiledImage]) -> npt.NDArray[np.uint8]:
    return np.concatenate([image.tiles for image in tiled])


def _pad(conversations: list[AnsweredPrompt]) -> tuple[Tensor, Tensor, Tensor]:
    width = max((len(c.input_ids) for c in conversations), default=0)
    shape = (len(conversations), width)
    input_ids = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED_LABEL)
    visual_mask = torch.zeros(shape, dtype=torch.bool)
    for row, conversation in enumerate(conversations):
        length = len(conversation.input_ids)
        input_ids[row, :length] = torch.from_numpy(conversation.input_ids)
        labels[row, :length] = torch.from_numpy(conversation.labels)
        visual_mask[row, torch.from_numpy(conversation.visual_positions)] = True
    return input_ids, labels, visual_mask
