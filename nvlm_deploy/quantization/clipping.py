"""Search the largest magnitude that every group of an INT4 matrix should keep.

This is the search of modelopt.torch.quantization.model_calib.awq_clip. What it compares, the mean square
error of a group's own output, is e' H e for the rounding error e and the group's second moments H of the
inputs. So a few small matrix products take the place of outputs [N, R, J], which would not fit into memory.

Shapes: N output features, K input features, J groups per row, G columns per group, R sampled inputs, n rows
of one chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nvlm_deploy.quantization.formats.codec import absolute_max, in_groups, row_chunks, scales_of
from nvlm_deploy.quantization.formats.integers import INT4_MAX

# As in ModelOpt, from all of a group's range down to half of it. Equal errors keep more.
_RATIOS = tuple(1 - 0.05 * step for step in range(11))


def clipped_amax(weight_NK: Tensor, rows_RK: Tensor, group_size: int) -> Tensor:
    """Choose for every group the magnitude at which clipping costs its outputs least.

    Args:
        weight_NK: float32.
        rows_RK: sampled inputs, float32.

    Returns:
        float32 [N, J], between half of the group's own maximum and all of it.
    """
    moments_JGG = _second_moments(rows_RK, group_size)
    rows, columns = weight_NK.shape
    best_NJ = torch.empty(rows, columns // group_size, device=weight_NK.device)
    for part in row_chunks(rows, columns):
        best_NJ[part] = _best(in_groups(weight_NK[part], group_size), moments_JGG)
    return best_NJ


def _second_moments(rows_RK: Tensor, group_size: int) -> Tensor:
    x_JRG = in_groups(rows_RK, group_size).transpose(0, 1)
    return x_JRG.transpose(1, 2) @ x_JRG / len(rows_RK)


def _best(weight_nJG: Tensor, moments_JGG: Tensor) -> Tensor:
    amax_nJ = absolute_max(weight_nJG, dim=-1)
    best_nJ, least_nJ = amax_nJ.clone(), torch.full_like(amax_nJ, torch.inf)
    for ratio in _RATIOS:
        scale_nJ1 = scales_of(amax_nJ * ratio, INT4_MAX).unsqueeze(-1)
        error_nJG = (weight_nJG / scale_nJ1).round_().clamp_(-INT4_MAX - 1, INT4_MAX).mul_(scale_nJ1)
        error_JnG = error_nJG.sub_(weight_nJG).transpose(0, 1)
        loss_nJ = (error_JnG @ moments_JGG).mul_(error_JnG).sum(-1).T
        better_nJ = loss_nJ < least_nJ
        best_nJ = torch.where(better_nJ, amax_nJ * ratio, best_nJ)
        least_nJ = torch.where(better_nJ, loss_nJ, least_nJ)
    return best_nJ
