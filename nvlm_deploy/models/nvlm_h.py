"""NVLM-H: the thumbnail in the decoder's sequence, other tiles through gated cross-attention (paper 4.4)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nvlm_deploy.models.cross_attention import TileMemory
from nvlm_deploy.models.cross_tiles import CrossTiles
from nvlm_deploy.models.nvlm import LookUp, Nvlm, place_visual_tokens


class NvlmH(Nvlm):
    """The embeddings of a tile's tag stand before its visual tokens, among keys and values.

    Every image's last tile is its thumbnail, or its only tile: those go into the sequence.
    """

    def embed(self, ids_BT: Tensor, visual: Tensor | None, visual_mask_BT: Tensor | None) -> Tensor:
        """Token embeddings with the thumbnails' visual tokens at the placeholders.

        Args:
            ids_BT: token ids, int64.
            visual: visual tokens of thumbnails alone, [images, tokens per tile, D].
            visual_mask_BT: true where a placeholder stands.
        """
        embeds_BTD: Tensor = self.language.embed_tokens(ids_BT)
        if visual is None or visual_mask_BT is None:
            return embeds_BTD
        return place_visual_tokens(embeds_BTD, visual, visual_mask_BT)

    def tile_memory(
        self, visual: Tensor, tiles: CrossTiles, look_up: LookUp | None = None
    ) -> TileMemory | None:
        """Tags and visual tokens of the regular tiles, row by row; None if there are none."""
        assert self.config.cross_attention is not None, "an NVLM-H has cross-attention"
        return tiles.tagged_memory(
            visual, look_up or self._exact_embedding, self.config.cross_attention.bind_tags
        )

    def _exact_embedding(self, ids: Tensor) -> Tensor:
        """The table's own rows: tags among keys are in full precision, whatever text is looked up in."""
        return F.embedding(ids, self.language.embed_tokens.weight)
