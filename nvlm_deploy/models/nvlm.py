"""What NVLM-D, X and H share: tower, projector, decoder, and greedy decoding.

Shapes: B batch, T tokens, D decoder hidden size, V visual tokens and N tiles of the whole batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.models.cross_attention import TileMemory
from nvlm_deploy.models.cross_tiles import CrossTiles
from nvlm_deploy.models.decoder import KvCache, LanguageDecoder
from nvlm_deploy.models.packing import Packing
from nvlm_deploy.models.projector import make_projector
from nvlm_deploy.models.vision import VisionTower

LookUp = Callable[[Tensor], Tensor]
"""Token ids of any shape to embeddings [..., D]."""


class Nvlm(nn.Module, ABC):
    """Vision tower, projector and decoder."""

    def __init__(self, config: NvlmConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision)
        self.projector = make_projector(config)
        self.language = LanguageDecoder(config.language, config.cross_attention)

    def encode_tiles(self, pixels_N3SS: Tensor) -> Tensor:
        """Normalized tiles [N, 3, S, S] -> visual tokens [N, tokens per tile, D]."""
        visual: Tensor = self.projector(self.vision(pixels_N3SS))
        return visual

    @abstractmethod
    def embed(self, ids_BT: Tensor, visual: Tensor | None, visual_mask_BT: Tensor | None) -> Tensor:
        """Token embeddings [B, T, D], with visual tokens where the variant has them in the sequence."""

    @abstractmethod
    def tile_memory(
        self, visual: Tensor, tiles: CrossTiles, look_up: LookUp | None = None
    ) -> TileMemory | None:
        """What cross-attention layers attend to; None if the variant has none.

        Args:
            visual: visual tokens of all tiles [N, tokens per tile, D].
            look_up: token ids to embeddings, where the model's own table is not in memory.
        """

    def forward(
        self,
        ids_BT: Tensor,
        pixels_N3SS: Tensor | None = None,
        visual_mask_BT: Tensor | None = None,
        cache: KvCache | None = None,
        tiles: CrossTiles | None = None,
    ) -> Tensor:
        """Return logits [B, T, vocabulary] of every position.

        Args:
            ids_BT: token ids, int64, right-padded.
            pixels_N3SS: normalized tiles of all images, in order; None for text only.
            visual_mask_BT: true at placeholders of visual tokens (D, H).
            cache: grows by T tokens; it keeps the tiles' keys and values, too.
            tiles: which tiles each position attends to (X, H); see `CrossTiles`.
        """
        visual = self.encode_tiles(pixels_N3SS) if pixels_N3SS is not None else None
        return self.language.logits(self.hidden_states(ids_BT, visual, visual_mask_BT, cache, tiles))

    def hidden_states(
        self,
        ids_BT: Tensor,
        visual_NVD: Tensor | None = None,
        visual_mask_BT: Tensor | None = None,
        cache: KvCache | None = None,
        tiles: CrossTiles | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Normalized hidden states [B, T, D] from visual tokens; the other arguments as in `forward`.

        `packing` says where rows hold several samples; such a pass has no cache.

        Raises:
            NvlmError: tiles without prompts that are about them, or another number of tiles than theirs.
        """
        self._check_tiles(0 if visual_NVD is None else len(visual_NVD), tiles)
        memory, visible_BT2 = None, None
        if visual_NVD is not None and tiles is not None:
            memory, visible_BT2 = self.tile_memory(visual_NVD, tiles), tiles.visible_BT2
            visual_NVD = visual_NVD[tiles.sequence_S]
        if cache is not None:
            if memory is None and cache.tiles is not None:
                memory, visible_BT2 = cache.tiles, cache.all_tiles(ids_BT)
            cache.tiles = memory
        embeds_BTD = self.embed(ids_BT, visual_NVD, visual_mask_BT)
        hidden_BTD: Tensor = self.language(embeds_BTD, cache, memory, visible_BT2, packing)
        return hidden_BTD

    def _check_tiles(self, given: int, tiles: CrossTiles | None) -> None:
        variant = f"an NVLM-{self.config.variant}"
        if self.config.cross_attention is None:
            if tiles is not None:
                raise NvlmError(f"{variant} has no cross-attention, and tiles are given for it")
        elif tiles is None:
            if given:
                raise NvlmError(
                    f"{given} tiles without tags: {variant} attends to tiles as its prompts say",
                    hint="pass CrossTiles.of([prompt]), with prompts that were built for this model",
                )
        elif tiles.count != given:
            raise NvlmError(f"the prompts are about {tiles.count} tiles, and {given} are given")

    @torch.inference_mode()
    def generate(
        self,
        ids_BT: Tensor,
        pixels_N3SS: Tensor | None = None,
        visual_mask_BT: Tensor | None = None,
        max_new_tokens: int = 16,
        stop_ids: tuple[int, ...] = (),
        tiles: CrossTiles | None = None,
    ) -> list[int]:
        """Greedy decoding of one prompt (B = 1); stops before a stop id."""
        cache, output = KvCache(), []
        logits_BTV = self(ids_BT, pixels_N3SS, visual_mask_BT, cache, tiles)
        for _ in range(max_new_tokens):
            token = int(logits_BTV[0, -1].argmax())
            if token in stop_ids:
                break
            output.append(token)
            logits_BTV = self(torch.tensor([[token]], device=ids_BT.device), cache=cache)
        return output


def place_visual_tokens(embeds_BTD: Tensor, visual: Tensor, mask_BT: Tensor) -> Tensor:
    """Overwrite the rows of placeholders with visual tokens [N, tokens per tile, D], in order."""
    return embeds_BTD.masked_scatter(mask_BT.unsqueeze(-1), visual.flatten(0, 1).to(embeds_BTD.dtype))
