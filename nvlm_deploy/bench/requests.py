"""Requests of the lengths that the released tokenizer gives, with random token ids and random tiles.

Shapes: S prompt tokens, T tiles, I pixels per side of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.planner.workload import TAG_TOKENS, prompt_tokens
from nvlm_deploy.preprocess.prompt import CrossPrompt, Prompt

# What the chat template has before the user's message.
_HEAD_TOKENS = 12


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """A prompt with one image: its tiles, uint8 [T, I, I, 3], the thumbnail last."""

    prompt: Prompt
    tiles: NDArray[np.uint8]


def bench_request(config: NvlmConfig, tiles: int, seed: int) -> BenchRequest:
    """A question of 16 tokens about an image of `tiles` tiles; equal seeds give all variants equal tiles."""
    rng, side = np.random.default_rng((seed, tiles)), config.tile_size
    pixels = rng.integers(0, 256, (tiles, side, side, 3), dtype=np.uint8)
    length, attended = prompt_tokens(config, tiles), config.cross_tiles(tiles)
    visual: list[int] = []
    visible_S2 = np.zeros((length, 2), np.int64)
    place = _HEAD_TOKENS
    for tile in range(tiles):
        if tile < attended and config.variant == "X":
            visible_S2[place : place + TAG_TOKENS] = (tile, tile + 1)
            place += TAG_TOKENS
        elif tile >= attended:
            place += TAG_TOKENS
            visual += range(place, place + config.visual_tokens_per_tile)
            place += config.visual_tokens_per_tile
    visible_S2[place:] = (0, attended)
    cross = None
    if config.cross_attention is not None:
        order = np.arange(tiles)
        tags = rng.integers(0, config.language.vocab_size, (attended, TAG_TOKENS))
        tags_C = tuple(tags) if config.variant == "H" else ()
        cross = CrossPrompt(order[:attended], order[attended:], tags_C, visible_S2)
    ids = rng.integers(0, config.language.vocab_size, length)
    return BenchRequest(Prompt(ids, np.array(visual, np.int64), "", cross), pixels)
