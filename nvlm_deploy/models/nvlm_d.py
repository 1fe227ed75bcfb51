"""NVLM-D: visual tokens take the places of placeholder tokens in the decoder's own sequence (paper 4.2).

Shapes: B batch, T tokens, D decoder hidden size, V visual tokens and N tiles of the whole batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.models.decoder import KvCache, LanguageDecoder
from nvlm_deploy.models.projector import Projector
from nvlm_deploy.models.vision import VisionTower


class NvlmD(nn.Module):
    """Vision tower, projector and decoder."""

    def __init__(self, config: NvlmConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision)
        self.projector = Projector(config)
        self.language = LanguageDecoder(config.language)

    def encode_tiles(self, pixels_N3SS: Tensor) -> Tensor:
        """Normalized tiles [N, 3, S, S] -> visual tokens [N, tokens per tile, D]."""
        return self.projector(self.vision(pixels_N3SS))

    def embed(self, ids_BT: Tensor, visual: Tensor | None, visual_mask_BT: Tensor | None) -> Tensor:
        """Look up token embeddings and overwrite the placeholders' rows with visual tokens, in order.

        Args:
            ids_BT: token ids, int64.
            visual: visual tokens [N, tokens per tile, D], or None for text only.
            visual_mask_BT: true where a placeholder stands; as many as there are visual tokens.
        """
        embeds_BTD = self.language.embed_tokens(ids_BT)
        if visual is None or visual_mask_BT is None:
            return embeds_BTD
        flat_VD = visual.flatten(0, 1).to(embeds_BTD.dtype)
        return embeds_BTD.masked_scatter(visual_mask_BT.unsqueeze(-1), flat_VD)

    def forward(
        self,
        ids_BT: Tensor,
        pixels_N3SS: Tensor | None = None,
        visual_mask_BT: Tensor | None = None,
        cache: KvCache | None = None,
    ) -> Tensor:
        """Return logits [B, T, vocabulary] of every position."""
        visual = self.encode_tiles(pixels_N3SS) if pixels_N3SS is not None else None
        hidden_BTD = self.language(self.embed(ids_BT, visual, visual_mask_BT), cache)
        return self.language.logits(hidden_BTD)

    @torch.inference_mode()
    def generate(
        self,
        ids_BT: Tensor,
        pixels_N3SS: Tensor | None = None,
        visual_mask_BT: Tensor | None = None,
        max_new_tokens: int = 16,
        stop_ids: tuple[int, ...] = (),
    ) -> list[int]:
        """Greedy decoding of one prompt (B = 1); stops before a stop id."""
        cache, output = KvCache(), []
        logits_BTV = self(ids_BT, pixels_N3SS, visual_mask_BT, cache)
        for _ in range(max_new_tokens):
            token = int(logits_BTV[0, -1].argmax())
            if token in stop_ids:
                break
            output.append(token)
            logits_BTV = self(torch.tensor([[token]], device=ids_BT.device), cache=cache)
        return output
