"""Pixel shuffle and the MLP that carry tiles into the decoder's width (HF modeling_nvlm_d.py; paper 4.3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nvlm_deploy.config.model import NvlmConfig


def pixel_shuffle(patches_TPC: Tensor) -> Tensor:
    """Merge each 2 x 2 square of patches into one token, "v2" order.

    Args:
        patches_TPC: patch features in row-major order, [tiles, side * side, C].

    Returns:
        [tiles, side * side / 4, 4 C], row-major; the channels of output cell (r, c) are those of the
        patches (2r, 2c), (2r, 2c+1), (2r+1, 2c), (2r+1, 2c+1).
    """
    tiles, patches, width = patches_TPC.shape
    half = round(patches**0.5) // 2
    squares = patches_TPC.reshape(tiles, half, 2, half, 2, width)
    return squares.transpose(2, 3).reshape(tiles, half * half, 4 * width)


class Projector(nn.Module):
    """LayerNorm, linear, exact GELU, linear (D, H); no biases on the linears, unlike InternVL's."""

    def __init__(self, config: NvlmConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.projector_input_size, eps=config.projector_norm_eps)
        self.fc1 = nn.Linear(config.projector_input_size, config.projector_hidden_size, bias=False)
        self.fc2 = nn.Linear(config.projector_hidden_size, config.language.hidden_size, bias=False)

    def forward(self, patches_TPC: Tensor) -> Tensor:
        """[tiles, patches, C] -> visual tokens [tiles, patches / 4, decoder hidden size]."""
        return self.fc2(F.gelu(self.fc1(self.norm(pixel_shuffle(patches_TPC)))))


class LinearProjector(nn.Module):
    """LayerNorm and one linear: the paper's one-layer MLP of NVLM-X (4.3), normalized as the other is."""

    def __init__(self, config: NvlmConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.projector_input_size, eps=config.projector_norm_eps)
        self.fc1 = nn.Linear(config.projector_input_size, config.language.hidden_size, bias=False)

    def forward(self, patches_TPC: Tensor) -> Tensor:
        """[tiles, patches, C] -> visual tokens [tiles, patches / 4, decoder hidden size]."""
        return self.fc1(self.norm(pixel_shuffle(patches_TPC)))


def make_projector(config: NvlmConfig) -> Projector | LinearProjector:
    """The projector of a model's variant."""
    return LinearProjector(config) if config.projector_layers == 1 else Projector(config)
