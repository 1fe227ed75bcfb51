"""INT4 weights that kernels widen to FP8 for FP8 activations: modelopt's "W4A8_AWQ".

Shapes: N rows (output features), K columns (input features), G columns per group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from nvlm_deploy.quantization.formats.codec import (
    Layout,
    PackedWeight,
    WeightCodec,
    packed_scale,
    row_chunks,
    scales_of,
)
from nvlm_deploy.quantization.formats.fp8 import E4M3_MAX, to_e4m3
from nvlm_deploy.quantization.formats.integers import Int4


@dataclass(frozen=True, slots=True)
class W4A8(WeightCodec):
    """weight and weight_scale as in `Int4`; weight_scale_2: float32 () = largest amax / 448.

    A weight is FP8(code * weight_scale / weight_scale_2) * weight_scale_2. The codes do not depend on
    weight_scale_2: matrices that share one (q, k and v; gate and up) get it by replacing the field.
    """

    name: ClassVar[str] = "w4a8"
    group_size: int = 128

    def amax(self, weight_NK: Tensor) -> Tensor:
        """float32 (N, K / G)."""
        return self._int4.amax(weight_NK)

    def pack(self, weight_NK: Tensor, amax: Tensor) -> PackedWeight:
        packed = self._int4.pack(weight_NK, amax)
        scale_2 = scales_of(amax.to(packed.weight_scale).amax(), E4M3_MAX)
        return replace(packed, weight_scale_2=scale_2)

    def layout(self, rows: int, columns: int) -> Layout:
        return {**self._int4.layout(rows, columns), "weight_scale_2": (torch.float32, ())}

    def unpack(self, packed: PackedWeight) -> Tensor:
        codes_NK, scale_N1 = self.factors(packed)
        return codes_NK.float().mul_(scale_N1)

    def factors(self, packed: PackedWeight) -> tuple[Tensor, Tensor]:
        """The FP8 numbers that kernels widen the codes to, and one scale."""
        scale_2 = packed_scale(packed.weight_scale_2, ())
        weight_NK = self._int4.unpack(packed)
        codes_NK = torch.empty_like(weight_NK, dtype=torch.float8_e4m3fn)
        for part in row_chunks(*weight_NK.shape):
            codes_NK[part] = to_e4m3(weight_NK[part] / scale_2)
        return codes_NK, scale_2.repeat(len(codes_NK), 1)

    @property
    def _int4(self) -> Int4:
        return Int4(self.group_size)
