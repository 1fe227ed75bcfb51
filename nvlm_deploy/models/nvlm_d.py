"""NVLM-D: visual tokens take the places of placeholder tokens in the decoder's own sequence (paper 4.2)."""

from __future__ import annotations

from torch import Tensor

from nvlm_deploy.models.cross_tiles import CrossTiles
from nvlm_deploy.models.nvlm import LookUp, Nvlm, place_visual_tokens


class NvlmD(Nvlm):
    """All tiles in the decoder's sequence; no cross-attention."""

    def embed(self, ids_BT: Tensor, visual: Tensor | None, visual_mask_BT: Tensor | None) -> Tensor:
        """Look up token embeddings and overwrite the placeholders' rows with visual tokens, in order.

        Args:
            ids_BT: token ids, int64.
            visual: visual tokens [N, tokens per tile, D], or None for text only.
            visual_mask_BT: true where a placeholder stands; as many as there are visual tokens.
        """
        embeds_BTD: Tensor = self.language.embed_tokens(ids_BT)
        if visual is None or visual_mask_BT is None:
            return embeds_BTD
        return place_visual_tokens(embeds_BTD, visual, visual_mask_BT)

    def tile_memory(self, visual: Tensor, tiles: CrossTiles, look_up: LookUp | None = None) -> None:
        """NVLM-D has no cross-attention."""
