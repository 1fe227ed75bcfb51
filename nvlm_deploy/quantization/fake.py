"""Weights as an engine will have them, in the middle of training: rounded forward, straight through backward.

Shapes: N rows (output features), K columns (input features), J groups per row, G columns per group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nvlm_deploy.checkpoint.weight_table import model_shapes, released_tensors
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.errors import UnsuitableError
from nvlm_deploy.quantization.layout import storage_codec
from nvlm_deploy.quantization.plan import Storage, resolve


@dataclass(frozen=True, slots=True)
class WeightQuantizer:
    """What becomes of one matrix on its way into an engine. `released`: its dtype in a checkpoint."""

    storage: Storage
    released: torch.dtype

    def __call__(self, weight_NK: Tensor) -> Tensor:
        """The numbers that the engine computes with, in the dtype given; the gradient is that of them.

        Scales are the largest magnitudes of the weight itself, so that nothing is clipped and no gradient is
        masked.
        """
        rounded_NK: Tensor = _StraightThrough.apply(weight_NK, self)
        return rounded_NK

    def round(self, weight_NK: Tensor) -> Tensor:
        """The same without gradients, float32 [N, K]: through the checkpoint's dtype, then the recipe's."""
        weight_NK = weight_NK.detach().to(self.released).float()
        storage = self.storage
        if storage.format == "fp16":
            return weight_NK.half().float()
        if not storage.quantized:
            return weight_NK
        if storage.algorithm is None:
            return round_in_groups(
                weight_NK, bits=storage.bits, group_size=storage.group_size, symmetric=storage.symmetric
            )
        codec = storage_codec(storage)
        return codec.fake(weight_NK, codec.amax(weight_NK))


def weight_quantizers(recipe: Recipe, config: NvlmConfig) -> Mapping[str, WeightQuantizer]:
    """The quantizer of every matrix of a model, by parameter; a tied `lm_head` has one of its own.

    Raises:
        UnsuitableError: numbers of the recipe depend on what the model is shown, or on several matrices, so
            that they are not known from a weight alone.
    """
    released = {target: tensor.dtype for tensor in released_tensors(config) for target in tensor.targets}
    plan = resolve(recipe, model_shapes(config))
    matrices = {name: tensor for name, tensor in plan.tensors.items() if tensor.matrix}
    searched = next((name for name, tensor in matrices.items() if not _follows(tensor.storage)), None)
    if searched is not None or recipe.kv_cache == "fp8":
        what = "the KV cache" if searched is None else searched
        raise UnsuitableError(
            f"recipe {recipe.name}: the scales of {what} do not follow from its weights alone, so training "
            "cannot compute with what an engine will have",
            hint="heal a recipe that rounds to nearest (int4-rtn, int4-rtn-g128, int8), or one of algorithm "
            "max with integer weights alone (int8-wo)",
        )
    return {
        name: WeightQuantizer(tensor.storage, released[tensor.source]) for name, tensor in matrices.items()
    }


def round_in_groups(weight_NK: Tensor, *, bits: int, group_size: int, symmetric: bool) -> Tensor:
    """What `rtn.dequantize(rtn.quantize(...))` gives, bit for bit, on any device: float32 [N, K]."""
    rows, columns = weight_NK.shape
    top, zero = 2**bits - 1, 2 ** (bits - 1)
    padded_NK = F.pad(weight_NK, (0, -columns % group_size))
    groups_NJG = padded_NK.view(rows, -1, group_size)
    high_NJ, low_NJ = groups_NJG.amax(-1).clamp_min(0), groups_NJG.amin(-1).clamp_max(0)
    if symmetric:
        exact_NJ = torch.maximum(_over(high_NJ, zero - 1), _over(-low_NJ, zero))
    else:
        exact_NJ = _over(high_NJ - low_NJ, top)
    scales_NJ = _round_up_to_fp16(exact_NJ)
    steps_NJ = scales_NJ.where(scales_NJ != 0, 1.0)
    zeros_NJ = torch.full_like(scales_NJ, zero) if symmetric else (-low_NJ / steps_NJ).round_()
    codes_NJG = (groups_NJG / steps_NJ.unsqueeze(-1)).round_() + zeros_NJ.unsqueeze(-1)
    values_NJG = (codes_NJG.clamp_(0, top) - zeros_NJ.unsqueeze(-1)) * scales_NJ.unsqueeze(-1)
    return values_NJG.view(rows, -1)[:, :columns]


def _follows(storage: Storage) -> bool:
    """Whether scales are of the matrix itself: FP8 and NVFP4 share theirs with the matrices beside it."""
    integers = storage.format in ("int8", "int4") and storage.activations in ("fp32", "int8")
    return not storage.quantized or (integers and storage.algorithm in (None, "max"))


def _over(x: Tensor, number: int) -> Tensor:
    # A tensor, because CUDA turns the division by a Python number into a product with its reciprocal.
    return x / x.new_tensor(number)


def _round_up_to_fp16(exact: Tensor) -> Tensor:
    """The smallest FP16 number that is no smaller, for numbers that are not negative; float32."""
    rounded = exact.half()
    # The next of positive FP16 numbers has the next bits.
    above = (rounded.view(torch.int16) + 1).view(torch.float16)
    return torch.where(rounded.float() < exact, above, rounded).float()


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_NK: Tensor, quantizer: WeightQuantizer) -> Tensor:
        return quantizer.round(weight_NK).to(weight_NK.dtype)

    @staticmethod
    def backward(ctx: Any, gradient_NK: Tensor) -> tuple[Tensor, None]:
        return gradient_NK, None
