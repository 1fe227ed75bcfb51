"""FP8 (e4m3fn) with one FP32 scale per tensor, as in modelopt's unified checkpoints ("FP8").

Shapes: N rows (output features), K columns (input features), n rows of one chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nvlm_deploy.quantization.formats.codec import (
    Layout,
    PackedWeight,
    WeightCodec,
    absolute_max,
    checked_amax,
    matrix_shape,
    packed_codes,
    packed_scale,
    row_chunks,
    scales_of,
    widen,
)

E4M3_MAX = 448.0

# An FP32 number between two e4m3 numbers has at most 4 bits after its first: 19 zeros follow them.
_BELOW_MIDPOINTS = (1 << 19) - 1


@dataclass(frozen=True, slots=True)
class Fp8(WeightCodec):
    """weight: float8_e4m3fn (N, K); weight_scale: float32 () = amax / 448.

    Every code is the nearest one to weight / scale in exact arithmetic, ties to even. modelopt's
    exporter (`export/quant_utils.py`, `to_quantized_weight`) divides in the weight's own precision,
    which for BF16 rounds twice.
    """

    name: ClassVar[str] = "fp8"

    def amax(self, weight_NK: Tensor) -> Tensor:
        """float32 ()."""
        matrix_shape(weight_NK)
        return absolute_max(weight_NK)

    def pack(self, weight_NK: Tensor, amax: Tensor) -> PackedWeight:
        rows, columns = matrix_shape(weight_NK)
        scale = scales_of(checked_amax(amax, (), weight_NK), E4M3_MAX)
        codes_NK = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=weight_NK.device)
        for part in row_chunks(rows, columns):
            codes_NK[part] = to_e4m3(_quotients(widen(weight_NK[part]), scale))
        return PackedWeight(codes_NK, scale)

    def layout(self, rows: int, columns: int) -> Layout:
        return {"weight": (torch.float8_e4m3fn, (rows, columns)), "weight_scale": (torch.float32, ())}

    def unpack(self, packed: PackedWeight) -> Tensor:
        codes_NK, scale_N1 = self.factors(packed)
        return codes_NK.float().mul_(scale_N1)

    def factors(self, packed: PackedWeight) -> tuple[Tensor, Tensor]:
        codes_NK = packed_codes(packed, torch.float8_e4m3fn)
        return codes_NK, packed_scale(packed.weight_scale, ()).repeat(len(codes_NK), 1)


def to_e4m3(x: Tensor) -> Tensor:
    """Round float32 to the nearest float8_e4m3fn, ties to even, saturating at ±448; NaN stays NaN."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def fake_quantize_fp8(x: Tensor, input_scale: Tensor) -> Tensor:
    """Round activations through FP8 with a static scale, float32 () = amax / 448; same shape and dtype.

    x / scale is an FP32 quotient, as in ONNX QuantizeLinear; modelopt's own simulation multiplies with
    448 / amax instead, which can differ in a tie.
    """
    return to_e4m3(x.float() / input_scale).float().mul_(input_scale).to(x.dtype)


def _quotients(weight_nK: Tensor, scale: Tensor) -> Tensor:
    """weight / scale in FP32, with the quotients that rounding put onto a midpoint put back beside it."""
    quotients_nK = weight_nK / scale
    suspects = (quotients_nK.view(torch.int32) & _BELOW_MIDPOINTS) == 0
    found = quotients_nK[suspects]
    # 24 bits times 24 bits: the remainder is exact in FP64.
    remainder = weight_nK[suspects].double() - found.double() * scale.double()
    toward = torch.where(remainder > 0, math.inf, -math.inf).to(found)
    quotients_nK[suspects] = torch.where(remainder == 0, found, torch.nextafter(found, toward))
    return quotients_nK
