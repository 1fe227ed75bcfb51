"""The Qwen2 decoder (and its llama-style sibling without q/k/v biases) with a KV cache.

Shapes: B batch, T new tokens, L cached + new tokens, D hidden size, H query heads, G KV heads, K head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nvlm_deploy.config.cross_attention import CrossAttentionConfig
from nvlm_deploy.config.model import LanguageConfig
from nvlm_deploy.models.cross_attention import GatedCrossAttention, TileMemory
from nvlm_deploy.models.mlp import GatedMlp
from nvlm_deploy.models.norm import RMSNorm
from nvlm_deploy.models.packing import Packing

SeenTiles = tuple[TileMemory, Tensor]
"""Tiles, and the mask bool [B, T, L] of what each position sees of them."""


@dataclass(slots=True)
class KvCache:
    """Keys and values of every layer so far, lists of [B, G, L, K], and the tiles that layers attend to."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    tiles: TileMemory | None = None

    @property
    def length(self) -> int:
        return self.keys[0].shape[2] if self.keys else 0

    def all_tiles(self, ids_BT: Tensor) -> Tensor:
        """[B, T, 2], for text behind all images: every tile of its row is visible."""
        assert self.tiles is not None, "asked only where there are tiles"
        end_B = self.tiles.tiles_BL.amax(dim=1) + 1
        ends_BT = end_B.unsqueeze(1).expand(ids_BT.shape)
        return torch.stack([torch.zeros_like(ends_BT), ends_BT], dim=-1)

    def extend(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Append one layer's new keys and values and return all of that layer's."""
        if layer == len(self.keys):
            self.keys.append(k_BGTK)
            self.values.append(v_BGTK)
        else:
            self.keys[layer] = torch.cat([self.keys[layer], k_BGTK], dim=2)
            self.values[layer] = torch.cat([self.values[layer], v_BGTK], dim=2)
        return self.keys[layer], self.values[layer]


def rotary_tables(config: LanguageConfig, positions_T: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines, FP32 [..., K / 2], of plain rotary embeddings at positions of any shape.

    The released config's dynamic scaling acts only beyond `max_position_embeddings`; the model was
    trained without it, so it is left out (see `docs/model.md`).
    """
    exponents = torch.arange(0, config.head_dim, 2, device=positions_T.device) / config.head_dim
    angles_TK = positions_T.float().unsqueeze(-1) * (1.0 / config.rope_theta**exponents)
    return angles_TK.cos(), angles_TK.sin()


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Rotate the pairs (i, i + K / 2), the half-split form of GPT-NeoX and HF."""
    first, second = x_BHTK.float().chunk(2, dim=-1)
    rotated = torch.cat([first * cos_TK - second * sin_TK, second * cos_TK + first * sin_TK], dim=-1)
    return rotated.to(x_BHTK.dtype)


class SelfAttention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.q_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.kv_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.kv_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.q_size, config.hidden_size, bias=False)
        self.quantize_kv: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None
        """What new keys and values go through on their way into a quantized cache."""

    def forward(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: KvCache | None,
        packing: Packing | None = None,
    ) -> Tensor:
        q_BHTK = rotate(self._split_heads(self.q_proj(x_BTD)), *rotary)
        k_BGLK = rotate(self._split_heads(self.k_proj(x_BTD)), *rotary)
        v_BGLK = self._split_heads(self.v_proj(x_BTD))
        if self.quantize_kv is not None:
            k_BGLK, v_BGLK = self.quantize_kv[0](k_BGLK), self.quantize_kv[1](v_BGLK)
        if cache is not None:
            k_BGLK, v_BGLK = cache.extend(self.layer, k_BGLK, v_BGLK)
        if packing is not None:
            q_BHTK, k_BGLK, v_BGLK = (packing.apart(x) for x in (q_BHTK, k_BGLK, v_BGLK))
        new, total = q_BHTK.shape[2], k_BGLK.shape[2]
        mask_TL = None
        if 1 < new < total:
            mask_TL = torch.ones(new, total, dtype=torch.bool, device=x_BTD.device).tril(total - new)
        mixed_BHTK = F.scaled_dot_product_attention(
            q_BHTK, k_BGLK, v_BGLK, attn_mask=mask_TL, is_causal=1 < new == total, enable_gqa=True
        )
        if packing is not None:
            mixed_BHTK = packing.together(mixed_BHTK)
        return self.o_proj(mixed_BHTK.transpose(1, 2).flatten(2))

    def _split_heads(self, x_BTC: Tensor) -> Tensor:
        return x_BTC.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class DecoderLayer(nn.Module):
    """Pre-norm attention and MLP with residuals; in some layers of NVLM-X and NVLM-H cross-attention, too.

    Text without images skips cross-attention, so it gets the very numbers of the bare language model.
    """

    def __init__(
        self, config: LanguageConfig, layer: int, cross_attention: CrossAttentionConfig | None = None
    ) -> None:
        super().__init__()
        self.input_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = SelfAttention(config, layer)
        self.post_attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = GatedMlp(config)
        self.cross: GatedCrossAttention | None = None
        self.cross_first = False
        self.recompute = False
        """Whether training keeps the layer's input alone, and computes the rest once more going back."""
        if cross_attention is not None and layer in cross_attention.layers:
            self.cross = GatedCrossAttention(cross_attention, config, layer)
            self.cross_first = cross_attention.placement == "before_layer"

    def forward(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: KvCache | None,
        seen: SeenTiles | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            computed: Tensor = checkpoint(
                self._compute, x_BTD, rotary, cache, seen, packing, use_reentrant=False
            )
            return computed
        return self._compute(x_BTD, rotary, cache, seen, packing)

    def _compute(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: KvCache | None,
        seen: SeenTiles | None,
        packing: Packing | None,
    ) -> Tensor:
        if self.recompute and seen is not None:
            # Keys that the first pass has kept would be missing from what the second one computes.
            seen = (seen[0].to(x_BTD.device), seen[1])
        if seen is not None and self.cross is not None and self.cross_first:
            x_BTD = self.cross(x_BTD, *seen)
        x_BTD = x_BTD + self.attention(self.input_norm(x_BTD), rotary, cache, packing)
        if seen is not None and self.cross is not None and not self.cross_first:
            x_BTD = self.cross(x_BTD, *seen)
        return x_BTD + self.mlp(self.post_attention_norm(x_BTD))


class LanguageDecoder(nn.Module):
    """Embeddings to logits; `lm_head` shares the embedding when the checkpoint ties them."""

    def __init__(self, config: LanguageConfig, cross_attention: CrossAttentionConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, i, cross_attention) for i in range(config.num_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.round_head: Callable[[Tensor], Tensor] | None = None
        """What a shared embedding goes through where it is the head, in training with quantizers."""

    def forward(
        self,
        embeds_BTD: Tensor,
        cache: KvCache | None = None,
        memory: TileMemory | None = None,
        visible_BT2: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Return the normalized hidden states [B, T, D]; rows are right-padded, so causality hides pads.

        Args:
            memory, visible_BT2: what cross-attention layers attend to, and which tiles each position
                sees (see `TileMemory`); None for text without images, and in NVLM-D.
            packing: where rows hold several samples; without a cache.
        """
        start = cache.length if cache is not None else 0
        positions_T = torch.arange(start, start + embeds_BTD.shape[1], device=embeds_BTD.device)
        if packing is not None:
            # Heads come behind the batch in what is rotated.
            positions_T = packing.positions_BT.unsqueeze(1)
        rotary = rotary_tables(self.config, positions_T)
        seen = None
        if memory is not None and visible_BT2 is not None:
            seen = (memory, memory.mask(visible_BT2))
        x_BTD = embeds_BTD
        for layer in self.layers:
            x_BTD = layer(x_BTD, rotary, cache, seen, packing)
        return self.norm(x_BTD)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, vocabulary]."""
        if self.config.tie_word_embeddings:
            table: Tensor = self.embed_tokens.weight
            return F.linear(hidden_BTD, table if self.round_head is None else self.round_head(table))
        return self.lm_head(hidden_BTD)
