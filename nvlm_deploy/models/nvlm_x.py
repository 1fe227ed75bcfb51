"""NVLM-X: text alone in the decoder's sequence, all tiles through gated cross-attention (paper 4.3)."""

from __future__ import annotations

from torch import Tensor

from nvlm_deploy.models.cross_attention import TileMemory
from nvlm_deploy.models.cross_tiles import CrossTiles
from nvlm_deploy.models.nvlm import LookUp, Nvlm


class NvlmX(Nvlm):
    """Tags are text; a tag's tokens attend to its own tile, all other text to the tiles before it."""

    def embed(self, ids_BT: Tensor, visual: Tensor | None, visual_mask_BT: Tensor | None) -> Tensor:
        """Token embeddings; visual tokens never stand in the sequence."""
        embeds_BTD: Tensor = self.language.embed_tokens(ids_BT)
        return embeds_BTD

    def tile_memory(
        self, visual: Tensor, tiles: CrossTiles, look_up: LookUp | None = None
    ) -> TileMemory | None:
        """Visual tokens [N, tokens per tile, D] row by row."""
        return tiles.memory(visual)
