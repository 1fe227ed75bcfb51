"""Round-to-nearest quantization of matrices in groups of consecutive input features.

Shapes: N rows (output features), K columns (input features), J groups per row, G columns per group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvlm_deploy.errors import NvlmError

Float32 = NDArray[np.float32]
Codes = NDArray[np.uint8]

_MAX_SCALE = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """Codes, scales and zero points of a matrix; a weight is `(code - zero_point) * scale`.

    codes: uint8 [N, J, G], each in [0, 2**bits). The last group is padded with codes of zero.
    scales: [N, J], never negative; 0 for a group that is all zero. float16 as they are made here, float32
    from quantized checkpoints.
    zero_points: uint8 [N, J], or None where every zero point is `2**(bits - 1)` (symmetric).
    """

    bits: int
    codes_NJG: Codes
    scales_NJ: NDArray[np.float16] | Float32
    zero_points_NJ: Codes | None


def quantize(weight_NK: Float32, *, bits: int, group_size: int, symmetric: bool) -> QuantizedMatrix:
    """Quantize to `bits` (4 or 8), with the smallest scale that clips nothing.

    The FP16 scale is rounded up before the codes are made, so every weight is off by at most half of
    the stored scale. A symmetric scale covers [-2**(bits-1), 2**(bits-1) - 1] with the zero point in
    its middle; an asymmetric one covers the group's own range, widened to include zero.

    Raises:
        NvlmError: a weight is no finite number, or too large for an FP16 scale.
    """
    top = 2**bits - 1
    zero = 2 ** (bits - 1)
    groups_NJG = _grouped(weight_NK, group_size)
    high_NJ = np.maximum(groups_NJG.max(axis=-1), 0)
    low_NJ = np.minimum(groups_NJG.min(axis=-1), 0)
    if symmetric:
        exact_NJ = np.maximum(high_NJ / np.float32(zero - 1), -low_NJ / np.float32(zero))
    else:
        exact_NJ = (high_NJ - low_NJ) / np.float32(top)
    scales_NJ = _round_up_to_fp16(exact_NJ)
    # A group of zeros has scale 0; dividing by 1 gives it the codes of zero.
    steps_NJ = np.where(scales_NJ == 0, 1, scales_NJ).astype(np.float32)
    zero_points_NJ = None if symmetric else np.rint(-low_NJ / steps_NJ)
    codes_NJG = groups_NJG / steps_NJ[..., None]
    np.rint(codes_NJG, out=codes_NJG)
    codes_NJG += zero if zero_points_NJ is None else zero_points_NJ[..., None]
    np.clip(codes_NJG, 0, top, out=codes_NJG)
    return QuantizedMatrix(
        bits=bits,
        codes_NJG=codes_NJG.astype(np.uint8),
        scales_NJ=scales_NJ,
        zero_points_NJ=None if zero_points_NJ is None else zero_points_NJ.astype(np.uint8),
    )


def dequantize(matrix: QuantizedMatrix, columns: int) -> Float32:
    """Return the float32 [N, columns] that the codes stand for."""
    zero: Any = 2 ** (matrix.bits - 1) if matrix.zero_points_NJ is None else matrix.zero_points_NJ[..., None]
    values_NJG = (matrix.codes_NJG.astype(np.float32) - zero) * matrix.scales_NJ[..., None].astype(np.float32)
    values_NK: Float32 = values_NJG.reshape(len(values_NJG), -1)[:, :columns]
    return values_NK


def pack_nibbles(codes: Codes) -> Codes:
    """Pack pairs of 4-bit codes along the last axis, the first one in the low nibble.

    An odd last code gets a zero beside it. [..., n] -> uint8 [..., ceil(n / 2)].
    """
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    packed: Codes = codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))
    return packed


def stored_matrix(
    codes_NK: NDArray[np.int8], scales_NJ: Float32, bits: int, group_size: int
) -> QuantizedMatrix:
    """Lay signed codes out in groups; a single scale a row is repeated for each of them."""
    rows, columns = codes_NK.shape
    groups = -(-columns // group_size)
    # Adding the middle of the range to a signed code and flipping its top bit are the same thing.
    middle = np.uint8(1 << (bits - 1))
    unsigned_NK = (codes_NK.view(np.uint8) ^ middle) & np.uint8(2**bits - 1)
    padded_NK = np.pad(unsigned_NK, ((0, 0), (0, groups * group_size - columns)), constant_values=middle)
    return QuantizedMatrix(
        bits=bits,
        codes_NJG=padded_NK.reshape(rows, groups, group_size),
        scales_NJ=np.broadcast_to(scales_NJ, (rows, groups)),
        zero_points_NJ=None,
    )


def unpack_nibbles(packed: Codes, count: int) -> Codes:
    """Undo `pack_nibbles` for `count` codes on the last axis."""
    pairs: Codes = np.stack([packed & 15, packed >> 4], axis=-1)
    return pairs.reshape(*packed.shape[:-1], -1)[..., :count]


def _grouped(weight_NK: Float32, group_size: int) -> Float32:
    if not np.isfinite(weight_NK).all():
        raise NvlmError("it holds values that are no finite numbers")
    rows, columns = weight_NK.shape
    groups = -(-columns // group_size)
    if columns % group_size:
        weight_NK = np.pad(weight_NK, ((0, 0), (0, groups * group_size - columns)))
    return weight_NK.reshape(rows, groups, group_size)


def _round_up_to_fp16(exact: Float32) -> NDArray[np.float16]:
    if exact.size and float(exact.max()) > _MAX_SCALE:
        raise NvlmError("it holds values that are too large for FP16 scales")
    rounded = exact.astype(np.float16)
    return np.where(rounded < exact, np.nextafter(rounded, np.float16(np.inf)), rounded)
