"""NVFP4: FP4 (e2m1) codes in blocks of 16 with e4m3 scales, and one FP32 scale per tensor.

The arithmetic of weights is that of modelopt's exporter (`quantization/qtensor/nvfp4_tensor.py`,
`NVFP4QTensor.quantize`), bit for bit.

Shapes: N rows (output features), K columns (input features), J blocks per row, G columns per block (16),
P pairs of columns (K / 2), n rows of one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nvlm_deploy.errors import NvlmError
from nvlm_deploy.quantization.formats.codec import (
    Layout,
    PackedWeight,
    WeightCodec,
    absolute_max,
    checked_amax,
    in_groups,
    matrix_shape,
    packed_codes,
    packed_scale,
    row_chunks,
    scales_of,
    widen,
)
from nvlm_deploy.quantization.formats.fp8 import E4M3_MAX, to_e4m3

BLOCK = 16
E2M1_MAX = 6.0

# The smallest e4m3 number: a block of tiny weights keeps a scale that can be divided by.
_E4M3_TINY = 2.0**-9
_SIGN = 8
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# The midpoints between magnitudes, by the code that a tie goes to: the even one.
_TIES_DOWN = (0.25, 1.25, 2.5, 5.0)
_TIES_UP = (0.75, 1.75, 3.5)


@dataclass(frozen=True, slots=True)
class Nvfp4(WeightCodec):
    """weight: uint8 (N, K / 2), the even column's code in the low nibble; weight_scale: float8_e4m3fn
    (N, K / 16); weight_scale_2: float32 () = amax / (6 * 448).

    A block's scale is its own largest weight / 6, rounded to e4m3 in units of weight_scale_2. Matrices
    that share weight_scale_2 (q, k and v; gate and up) are packed with the largest of their amaxes.
    """

    name: ClassVar[str] = "nvfp4"

    def amax(self, weight_NK: Tensor) -> Tensor:
        """float32 ()."""
        matrix_shape(weight_NK)
        _whole_blocks(weight_NK)
        return absolute_max(weight_NK)

    def pack(self, weight_NK: Tensor, amax: Tensor) -> PackedWeight:
        rows, columns = matrix_shape(weight_NK)
        _whole_blocks(weight_NK)
        scale_2 = scales_of(checked_amax(amax, (), weight_NK), E2M1_MAX * E4M3_MAX)
        device = weight_NK.device
        packed = torch.empty(rows, columns // 2, dtype=torch.uint8, device=device)
        scale_NJ = torch.empty(rows, columns // BLOCK, dtype=torch.float8_e4m3fn, device=device)
        for part in row_chunks(rows, columns):
            weight_nJG = in_groups(widen(weight_NK[part]), BLOCK)
            ideal_nJ = _ideal_scales(weight_nJG, scale_2)
            ideal_nJ = torch.where(ideal_nJ == 0, 1.0, ideal_nJ.clamp(min=_E4M3_TINY))
            scale_NJ[part] = to_e4m3(ideal_nJ)
            step_nJ = scale_NJ[part].float() * scale_2
            packed[part] = _pack_column_pairs(_to_e2m1(weight_nJG / step_nJ[..., None]).flatten(1))
        return PackedWeight(packed, scale_NJ, scale_2)

    def layout(self, rows: int, columns: int) -> Layout:
        return {
            "weight": (torch.uint8, (rows, columns // 2)),
            "weight_scale": (torch.float8_e4m3fn, (rows, columns // BLOCK)),
            "weight_scale_2": (torch.float32, ()),
        }

    def unpack(self, packed: PackedWeight) -> Tensor:
        codes_NK, scale_NJ = self.factors(packed)
        weight_NK = torch.empty(codes_NK.shape, device=codes_NK.device)
        for part in row_chunks(*codes_NK.shape):
            values_nJG = in_groups(codes_NK[part].float(), BLOCK).mul_(scale_NJ[part, :, None])
            weight_NK[part] = values_nJG.flatten(1)
        return weight_NK

    def factors(self, packed: PackedWeight) -> tuple[Tensor, Tensor]:
        """Twice the e2m1 numbers, which are integers, and half the scales of the blocks."""
        pairs_NP = packed_codes(packed, torch.uint8)
        rows, columns = len(pairs_NP), 2 * pairs_NP.shape[1]
        scale_NJ = packed_scale(packed.weight_scale, (rows, columns // BLOCK), torch.float8_e4m3fn)
        step_NJ = scale_NJ.float() * packed_scale(packed.weight_scale_2, ())
        codes_NK = torch.empty(rows, columns, dtype=torch.int8, device=pairs_NP.device)
        for part in row_chunks(rows, columns):
            codes_NK[part] = _from_e2m1(_unpack_column_pairs(pairs_NP[part])).mul_(2).to(torch.int8)
        return codes_NK, step_NJ / 2


def fake_quantize_nvfp4(x: Tensor, input_scale: Tensor) -> Tensor:
    """Round activations [..., K] through NVFP4; same shape and dtype.

    `input_scale` is static, float32 () = amax / (6 * 448); the scales of the blocks are made from x.
    A block whose scale rounds to zero becomes zero, as in the kernels that quantize at run time
    (TensorRT-LLM `cvt_warp_fp16_to_fp4`, modelopt `kernels/quantization/common/nvfp4_quant.py`).

    Raises:
        NvlmError: K is not a multiple of 16.
    """
    _whole_blocks(x)
    blocks = in_groups(x.float(), BLOCK)
    steps = to_e4m3(_ideal_scales(blocks, input_scale)).float().mul_(input_scale).unsqueeze(-1)
    return _from_e2m1(_to_e2m1(blocks / steps)).mul_(steps).flatten(-2).to(x.dtype)


def _whole_blocks(x: Tensor) -> None:
    if x.shape[-1] % BLOCK:
        raise NvlmError(
            f"NVFP4 needs whole blocks of {BLOCK} columns, and {x.shape[-1]} columns are not",
            hint="keep this matrix in a wider format",
        )


def _ideal_scales(blocks: Tensor, scale_2: Tensor) -> Tensor:
    """Blocks [..., J, G] -> float32 [..., J]: the scale that maps a block's largest value to 6."""
    return absolute_max(blocks, dim=-1) / (E2M1_MAX * scale_2)


def _to_e2m1(x: Tensor) -> Tensor:
    """Round float32 to the nearest e2m1 code, uint8, ties to even, saturating at ±6."""
    magnitude = x.abs()
    codes = (x < 0).to(torch.uint8).mul_(_SIGN)
    for midpoint in _TIES_DOWN:
        codes += magnitude > midpoint
    for midpoint in _TIES_UP:
        codes += magnitude >= midpoint
    return codes


def _from_e2m1(codes: Tensor) -> Tensor:
    values = torch.tensor([*_MAGNITUDES, *(-m for m in _MAGNITUDES)], device=codes.device)
    return values[codes.int()]


def _pack_column_pairs(codes_nK: Tensor) -> Tensor:
    return codes_nK[:, 0::2] | codes_nK[:, 1::2] << 4


def _unpack_column_pairs(pairs_nP: Tensor) -> Tensor:
    return torch.stack([pairs_nP & 15, pairs_nP >> 4], dim=-1).flatten(1)
