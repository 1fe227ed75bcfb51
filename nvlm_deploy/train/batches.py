"""Batches of documents: tiles, glyph targets, and right-padded conversations."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.preprocess.prompt import PromptBuilder
from nvlm_deploy.preprocess.tiles import TiledImage, normalize_tiles, tile_image
from nvlm_deploy.synthetic.documents import Document, document
from nvlm_deploy.train.conversation import IGNORED_LABEL, TokenizedConversation, tokenize_conversation
from nvlm_deploy.train.glyphs import glyph_targets


@dataclass(frozen=True, slots=True)
class Batch:
    """B conversations about documents of N tiles in all.

    `pixels` float32 [N, 3, S, S]; `glyphs` int64 [N, tokens per tile, slots]; `input_ids`, `labels` int64 [B, T];
    `visual_mask` bool [B, T].
    """

    pixels: Tensor
    glyphs: Tensor
    input_ids: Tensor
    labels: Tensor
    visual_mask: Tensor


class DocumentBatches(IterableDataset[Batch]):
    """An endless, seeded stream of batches from the train split; every document is seen once."""

    def __init__(
        self,
        builder: PromptBuilder,
        config: NvlmConfig,
        batch_size: int,
        start: int = 0,
        max_questions: int = 4,
        pool: int = 1,
    ) -> None:
        """`pool` batches are drawn at a time and filled with pages of like size, which saves padding."""
        self.builder, self.config, self.batch_size = builder, config, batch_size
        self.start, self.max_questions, self.pool = start, max_questions, pool

    def __iter__(self) -> Iterator[Batch]:
        index = self.start
        while True:
            rng = random.Random(index)
            end = index + self.batch_size * self.pool
            pages = [document("train", n, self.config.tile_size) for n in range(index, end)]
            if self.pool > 1:
                pages.sort(key=lambda page: page.image.width * page.image.height)
            groups = [pages[i : i + self.batch_size] for i in range(0, len(pages), self.batch_size)]
            rng.shuffle(groups)
            for group in groups:
                yield collate(group, self.builder, self.config, rng, self.max_questions)
            index = end


def collate(
    pages: list[Document],
    builder: PromptBuilder,
    config: NvlmConfig,
    rng: random.Random,
    max_questions: int,
) -> Batch:
    """Tile the pages and tokenize up to `max_questions` random questions about each."""
    tiled = [tile_image(page.image, config) for page in pages]
    conversations = []
    for page, tiles in zip(pages, tiled, strict=True):
        asked = rng.sample(page.exchanges, min(max_questions, len(page.exchanges)))
        conversations.append(tokenize_conversation(builder, asked, len(tiles.tiles)))
    side = config.vision.patches_per_side // 2
    glyphs = [glyph_targets(page.glyphs, tiles.grid, side) for page, tiles in zip(pages, tiled, strict=True)]
    input_ids, labels, visual_mask = _pad(conversations)
    return Batch(
        pixels=torch.from_numpy(normalize_tiles(_all_tiles(tiled))),
        glyphs=torch.from_numpy(np.concatenate(glyphs)),
        input_ids=input_ids,
        labels=labels,
        visual_mask=visual_mask,
    )


def _all_tiles(tiled: list[TiledImage]) -> npt.NDArray[np.uint8]:
    return np.concatenate([image.tiles for image in tiled])


def _pad(conversations: list[TokenizedConversation]) -> tuple[Tensor, Tensor, Tensor]:
    width = max(len(c.input_ids) for c in conversations)
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
