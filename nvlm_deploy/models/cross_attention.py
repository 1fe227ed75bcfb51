"""Gated cross-attention: how the decoder of NVLM-X and NVLM-H attends to tiles (paper 4.3, 4.4).

Shapes: B batch, T text positions, D hidden size, H query heads, G KV heads, K head size, M tiles of a row,
E entries of a tile (the tokens of its tag, if they are here, and its visual tokens), L = M * E.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvlm_deploy.config.cross_attention import CrossAttentionConfig
from nvlm_deploy.config.model import LanguageConfig
from nvlm_deploy.models.mlp import GatedMlp
from nvlm_deploy.models.norm import RMSNorm


@dataclass(slots=True)
class TileMemory:
    """What the text of a batch may attend to: made once per image, kept while tokens are decoded.

    features_BLD: tiles' visual tokens, tags before them in NVLM-H. tiles_BL: which tile of its row an
    entry belongs to; -1 is padding. bound_BLD: what is added to them behind the norm: the mean embedding of
    the tile's tag, or None. keys, values: of every layer, [B, G, L, K], filled when first used.
    """

    features_BLD: Tensor
    tiles_BL: Tensor
    bound_BLD: Tensor | None = None
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> TileMemory:
        """The same tiles on a device, without the keys and values that layers have made of them."""
        bound_BLD = None if self.bound_BLD is None else self.bound_BLD.to(device)
        return TileMemory(self.features_BLD.to(device), self.tiles_BL.to(device), bound_BLD)

    def mask(self, visible_BT2: Tensor) -> Tensor:
        """Bool [B, T, L]: whether a position attends to an entry.

        Args:
            visible_BT2: position t of row b attends to the tiles [first, end) of that row.
        """
        tiles_B1L = self.tiles_BL.unsqueeze(1)
        first_BT1, end_BT1 = visible_BT2.unbind(-1)
        return (tiles_B1L >= first_BT1.unsqueeze(-1)) & (tiles_B1L < end_BT1.unsqueeze(-1)) & (tiles_B1L >= 0)


class CrossAttention(nn.Module):
    """Attention from text to tiles, without positions. A position that sees no tile gets exactly 0."""

    def __init__(self, config: CrossAttentionConfig, width: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(width, config.q_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, config.kv_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, config.kv_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.q_size, width, bias=False)

    def project(self, features_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the tiles, [B, G, L, K] each."""
        return self._split_heads(self.k_proj(features_BLD)), self._split_heads(self.v_proj(features_BLD))

    def forward(self, x_BTD: Tensor, k_BGLK: Tensor, v_BGLK: Tensor, mask_BTL: Tensor) -> Tensor:
        sees_BT1 = mask_BTL.any(dim=-1, keepdim=True)
        # A softmax over nothing is no number: such rows attend to everything and are dropped behind it.
        mask_B1TL = (mask_BTL | ~sees_BT1).unsqueeze(1)
        q_BHTK = self._split_heads(self.q_proj(x_BTD))
        mixed_BHTK = F.scaled_dot_product_attention(
            q_BHTK, k_BGLK, v_BGLK, attn_mask=mask_B1TL, enable_gqa=True
        )
        return self.o_proj(mixed_BHTK.transpose(1, 2).flatten(2)) * sees_BT1.to(x_BTD.dtype)

    def _split_heads(self, x_BTC: Tensor) -> Tensor:
        return x_BTC.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class GatedCrossAttention(nn.Module):
    """The block that is added to a decoder layer: norm, attention, tanh gate; an MLP likewise if asked."""

    def __init__(self, config: CrossAttentionConfig, language: LanguageConfig, layer: int) -> None:
        super().__init__()
        width, eps = language.hidden_size, language.norm_eps
        self.layer = layer
        self.norm = RMSNorm(width, eps)
        self.kv_norm = RMSNorm(width, eps) if config.kv_norm else None
        self.attention = CrossAttention(config, width)
        self.gate = nn.Parameter(torch.zeros(1))
        self.mlp: nn.Module | None = None
        if config.gated_mlp:
            self.mlp_norm = RMSNorm(width, eps)
            self.mlp = GatedMlp(language)
            self.mlp_gate = nn.Parameter(torch.zeros(1))

    def forward(self, x_BTD: Tensor, memory: TileMemory, mask_BTL: Tensor) -> Tensor:
        """Return x with what its positions see of the tiles added to it."""
        keys, values = self._keys_and_values(memory)
        attended_BTD = self.attention(self.norm(x_BTD), keys, values, mask_BTL)
        x_BTD = x_BTD + self.gate.tanh() * attended_BTD
        if self.mlp is None:
            return x_BTD
        sees_BT1 = mask_BTL.any(dim=-1, keepdim=True).to(x_BTD.dtype)
        return x_BTD + self.mlp_gate.tanh() * self.mlp(self.mlp_norm(x_BTD)) * sees_BT1

    def _keys_and_values(self, memory: TileMemory) -> tuple[Tensor, Tensor]:
        if self.layer not in memory.keys:
            features_BLD = self._normalized(memory.features_BLD)
            if memory.bound_BLD is not None:
                features_BLD = features_BLD + self._normalized(memory.bound_BLD)
            memory.keys[self.layer], memory.values[self.layer] = self.attention.project(features_BLD)
        return memory.keys[self.layer], memory.values[self.layer]

    def _normalized(self, features_BLD: Tensor) -> Tensor:
        return features_BLD if self.kv_norm is None else self.kv_norm(features_BLD)
