"""Symmetric INT8 per output channel and INT4 in groups, as in modelopt's unified checkpoints.

The arithmetic is that of modelopt's exporter (`export/quant_utils.py`: `get_weight_scaling_factor`,
`to_quantized_weight`, `pack_int4_in_uint8`), bit for bit: scale = amax / largest code, code =
round(weight / scale) with ties to even, all in FP32. modelopt's in-memory simulation multiplies with
largest code / amax instead, which can differ in a tie.

Shapes: N rows (output features), K columns (input features), J groups per row, G columns per group,
P pairs of rows (N / 2), n rows of one chunk.
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

_INT8_MAX = 127
INT4_MAX = 7


@dataclass(frozen=True, slots=True)
class Int8(WeightCodec):
    """weight: int8 (N, K); weight_scale: float32 (N,) = amax / 127 ("W8A16", "W8A8_SQ_PER_CHANNEL")."""

    name: ClassVar[str] = "int8"

    def amax(self, weight_NK: Tensor) -> Tensor:
        """float32 (N,)."""
        matrix_shape(weight_NK)
        return absolute_max(weight_NK, dim=-1)

    def pack(self, weight_NK: Tensor, amax: Tensor) -> PackedWeight:
        rows, columns = matrix_shape(weight_NK)
        scale_N = scales_of(checked_amax(amax, (rows,), weight_NK), _INT8_MAX)
        codes_NK = torch.empty(rows, columns, dtype=torch.int8, device=weight_NK.device)
        for part in row_chunks(rows, columns):
            codes_NK[part] = _nearest(widen(weight_NK[part]), scale_N[part, None], _INT8_MAX)
        return PackedWeight(codes_NK, scale_N)

    def layout(self, rows: int, columns: int) -> Layout:
        return {"weight": (torch.int8, (rows, columns)), "weight_scale": (torch.float32, (rows,))}

    def unpack(self, packed: PackedWeight) -> Tensor:
        codes_NK, scale_N1 = self.factors(packed)
        return codes_NK.float().mul_(scale_N1)

    def factors(self, packed: PackedWeight) -> tuple[Tensor, Tensor]:
        codes_NK = packed_codes(packed, torch.int8)
        return codes_NK, packed_scale(packed.weight_scale, (len(codes_NK),))[:, None]


@dataclass(frozen=True, slots=True)
class Int4(WeightCodec):
    """weight: uint8 (N / 2, K); weight_scale: float32 (N, K / G) = amax / 7 ("W4A16_AWQ").

    A byte holds a column's codes of two rows in two's complement, the even row's in the low nibble.
    """

    name: ClassVar[str] = "int4"
    group_size: int = 128

    def amax(self, weight_NK: Tensor) -> Tensor:
        """float32 (N, K / G)."""
        self._scale_shape(weight_NK)
        return absolute_max(in_groups(weight_NK, self.group_size), dim=-1)

    def pack(self, weight_NK: Tensor, amax: Tensor) -> PackedWeight:
        rows, columns = matrix_shape(weight_NK)
        scale_NJ = scales_of(checked_amax(amax, self._scale_shape(weight_NK), weight_NK), INT4_MAX)
        packed = torch.empty(rows // 2, columns, dtype=torch.uint8, device=weight_NK.device)
        for part in row_chunks(rows, columns):
            weight_nJG = in_groups(widen(weight_NK[part]), self.group_size)
            codes_nK = _nearest(weight_nJG, scale_NJ[part, :, None], INT4_MAX).flatten(1)
            packed[part.start // 2 : part.stop // 2] = _pack_row_pairs(codes_nK)
        return PackedWeight(packed, scale_NJ)

    def layout(self, rows: int, columns: int) -> Layout:
        return {
            "weight": (torch.uint8, (rows // 2, columns)),
            "weight_scale": (torch.float32, (rows, columns // self.group_size)),
        }

    def unpack(self, packed: PackedWeight) -> Tensor:
        pairs_PK = packed_codes(packed, torch.uint8)
        rows, columns = 2 * len(pairs_PK), pairs_PK.shape[1]
        scale_NJ = packed_scale(packed.weight_scale, (rows, columns // self.group_size))
        weight_NK = torch.empty(rows, columns, device=pairs_PK.device)
        for part in row_chunks(rows, columns):
            codes_nK = _unpack_row_pairs(pairs_PK[part.start // 2 : part.stop // 2])
            values_nJG = in_groups(codes_nK.float(), self.group_size).mul_(scale_NJ[part, :, None])
            weight_NK[part] = values_nJG.flatten(1)
        return weight_NK

    def factors(self, packed: PackedWeight) -> tuple[Tensor, Tensor]:
        codes_NK = int4_codes(packed)
        rows, columns = codes_NK.shape
        return codes_NK, packed_scale(packed.weight_scale, (rows, columns // self.group_size))

    def _scale_shape(self, weight_NK: Tensor) -> tuple[int, int]:
        rows, columns = matrix_shape(weight_NK)
        if rows % 2:
            raise NvlmError(
                f"INT4 packs pairs of rows, and a weight [{rows}, {columns}] has an odd number of them",
                hint="keep this matrix in a wider format",
            )
        if columns % self.group_size:
            raise NvlmError(
                f"{columns} columns are not divisible into groups of {self.group_size}",
                hint="choose a group_size that divides the columns, or keep this matrix in a wider format",
            )
        return rows, columns // self.group_size


def int4_codes(packed: PackedWeight) -> Tensor:
    """Return the signed codes of INT4 or W4A8, int8 [N, K], each in [-8, 7].

    Raises:
        NvlmError: the weight is not packed INT4.
    """
    return _unpack_row_pairs(packed_codes(packed, torch.uint8))


def fake_quantize_int8(x: Tensor, input_scale: Tensor) -> Tensor:
    """Round activations through INT8 with a static scale, float32 () = amax / 127; same shape and dtype."""
    codes = (x.float() / input_scale).round_().clamp_(-_INT8_MAX - 1, _INT8_MAX)
    return codes.mul_(input_scale).to(x.dtype)


def _nearest(x: Tensor, scale: Tensor, top: int) -> Tensor:
    """int8 codes in [-top - 1, top]; the lowest is reached only where amax clips."""
    return (x / scale).round_().clamp_(-top - 1, top).to(torch.int8)


def _pack_row_pairs(codes_nK: Tensor) -> Tensor:
    return (codes_nK[0::2] & 15 | codes_nK[1::2] << 4).view(torch.uint8)


def _unpack_row_pairs(pairs_PK: Tensor) -> Tensor:
    # Shifting a signed byte to the right repeats its sign bit.
    low_PK = (pairs_PK << 4).view(torch.int8) >> 4
    high_PK = pairs_PK.view(torch.int8) >> 4
    return torch.stack([low_PK, high_PK], dim=1).flatten(0, 1)
