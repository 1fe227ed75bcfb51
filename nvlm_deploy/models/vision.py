"""InternViT as shipped inside NVLM (paper 4.1; HF modeling_intern_vit.py).

Shapes: T tiles, P positions (class token + patches), C hidden size, H heads, K head size, S pixels per side.
The seven dummy heads of the released file are sliced away when weights are read: their rows and norm
weights are zero and the QK norm's statistics never include them, so what is left is exact.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nvlm_deploy.config.model import VisionConfig
from nvlm_deploy.models.norm import RMSNorm


class VisionAttention(nn.Module):
    """Self-attention over all positions, with q and k normalized over all heads jointly."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.q_norm = RMSNorm(width, config.norm_eps)
        self.k_norm = RMSNorm(width, config.norm_eps)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_TPC: Tensor) -> Tensor:
        q_THPK = self._split_heads(self.q_norm(self.q_proj(x_TPC)))
        k_THPK = self._split_heads(self.k_norm(self.k_proj(x_TPC)))
        v_THPK = self._split_heads(self.v_proj(x_TPC))
        mixed_THPK = F.scaled_dot_product_attention(q_THPK, k_THPK, v_THPK)
        return self.out_proj(mixed_THPK.transpose(1, 2).flatten(2))

    def _split_heads(self, x_TPC: Tensor) -> Tensor:
        return x_TPC.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


class VisionMlp(nn.Module):
    """Two linears with the exact (erf) GELU between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_TPC: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_TPC)))


class VisionLayer(nn.Module):
    """Pre-norm block with a learned scale per channel on both branches (0.1 at the start)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1 = RMSNorm(width, config.norm_eps)
        self.attention = VisionAttention(config)
        self.layer_scale1 = nn.Parameter(torch.full((width,), 0.1))
        self.norm2 = RMSNorm(width, config.norm_eps)
        self.mlp = VisionMlp(config)
        self.layer_scale2 = nn.Parameter(torch.full((width,), 0.1))
        self.recompute = False
        """Whether training keeps the layer's input alone, and computes the rest once more going back."""

    def forward(self, x_TPC: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            computed: Tensor = checkpoint(self._compute, x_TPC, use_reentrant=False)
            return computed
        return self._compute(x_TPC)

    def _compute(self, x_TPC: Tensor) -> Tensor:
        x_TPC = x_TPC + self.layer_scale1 * self.attention(self.norm1(x_TPC))
        return x_TPC + self.layer_scale2 * self.mlp(self.norm2(x_TPC))


class VisionTower(nn.Module):
    """Normalized pixels to patch features; the class token is dropped after the last layer."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.position_embedding = nn.Parameter(torch.zeros(config.num_positions, width))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, width, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_layers))

    def embed(self, pixels_T3SS: Tensor) -> Tensor:
        """Normalized tiles [tiles, 3, side, side] -> [tiles, 1 + patches, hidden], for the first layer."""
        patches_TPC = self.patch_embedding(pixels_T3SS).flatten(2).transpose(1, 2)
        class_T1C = self.class_embedding.to(patches_TPC.dtype).expand(len(patches_TPC), 1, -1)
        return torch.cat([class_T1C, patches_TPC], dim=1) + self.position_embedding

    def forward(self, pixels_T3SS: Tensor) -> Tensor:
        """Return the last layer's patch features, [tiles, patches, hidden], in row-major patch order.

        Args:
            pixels_T3SS: normalized tiles, [tiles, 3, side, side].
        """
        x_TPC = self.embed(pixels_T3SS)
        for layer in self.layers:
            x_TPC = layer(x_TPC)
        return x_TPC[:, 1:]
