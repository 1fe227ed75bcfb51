"""What every weight format has in common: the packed tensors, the interface, amax, scales, row chunks.

Shapes: N rows (output features), K columns (input features), J groups per row, G columns per group,
n rows of one chunk.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nvlm_deploy.errors import NvlmError

_CHUNK_BYTES = 16 * 2**20
_TINY = torch.finfo(torch.float32).tiny


# Dtype and shape by the suffix on disk.
Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A quantized matrix as tensors of a unified checkpoint; the fields are the suffixes on disk.

    Their shapes and dtypes are those of the format's codec. `weight_scale_2` is the FP32 scale () of
    formats with two levels of scales.
    """

    weight: Tensor
    weight_scale: Tensor
    weight_scale_2: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that the format has, by suffix."""
        named = {
            "weight": self.weight,
            "weight_scale": self.weight_scale,
            "weight_scale_2": self.weight_scale_2,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())


class WeightCodec(ABC):
    """One weight format. Weights are floats [N, K] on any device; arithmetic is FP32.

    Matrices are worked on in chunks of rows: beside its input and its output a call holds a few FP32
    copies of 16 MiB.
    """

    name: ClassVar[str]

    @abstractmethod
    def amax(self, weight_NK: Tensor) -> Tensor:
        """Largest absolute values, float32, one for every scale that the format derives from them.

        Raises:
            NvlmError: the shape does not fit the format.
        """

    @abstractmethod
    def pack(self, weight_NK: Tensor, amax: Tensor) -> PackedWeight:
        """Quantize to nearest with the scales that map `amax` to the largest code.

        `amax` has the shape of `self.amax(weight_NK)`; where it is smaller, weights beyond it are
        clipped. Where it is zero the scale is 1, so that zeros stay zeros.

        Raises:
            NvlmError: the shapes do not fit, or a number is not finite.
        """

    @abstractmethod
    def layout(self, rows: int, columns: int) -> Layout:
        """Dtype and shape of every tensor that a matrix [rows, columns] is packed into, by suffix."""

    @abstractmethod
    def unpack(self, packed: PackedWeight) -> Tensor:
        """Return the float32 [N, K] that the codes stand for.

        Raises:
            NvlmError: the tensors are not of this format.
        """

    @abstractmethod
    def factors(self, packed: PackedWeight) -> tuple[Tensor, Tensor]:
        """Return what `unpack` multiplies: codes [N, K], int8 or float8_e4m3fn, and scales float32 [N, J].

        J is 1 for formats without groups.
        """

    def fake(self, weight_NK: Tensor, amax: Tensor) -> Tensor:
        """Return float32 [N, K]: the weight after a round trip through the format."""
        return self.unpack(self.pack(weight_NK, amax))


def matrix_shape(weight_NK: Tensor) -> tuple[int, int]:
    """Return (N, K) of a matrix of floats, or raise NvlmError."""
    if weight_NK.dim() != 2 or not weight_NK.is_floating_point() or weight_NK.numel() == 0:
        raise NvlmError(
            f"a tensor {list(weight_NK.shape)} of {weight_NK.dtype} cannot be quantized",
            hint="quantize matrices of floating-point numbers",
        )
    rows, columns = weight_NK.shape
    return rows, columns


def in_groups(x: Tensor, size: int) -> Tensor:
    """View [..., K] as [..., J, size]; K is a multiple of `size`."""
    return x.view(*x.shape[:-1], -1, size)


def absolute_max(x: Tensor, dim: int | None = None) -> Tensor:
    """Largest absolute value over `dim` (or over everything), float32; exact in any dtype, without a copy."""
    x = x.detach()
    if dim is None:
        low, high = torch.aminmax(x)
    else:
        low, high = x.amin(dim), x.amax(dim)
    return torch.maximum(high, -low).float()


def checked_amax(amax: Tensor, shape: tuple[int, ...], weight_NK: Tensor) -> Tensor:
    """Return `amax` as float32 on the weight's device, or raise NvlmError."""
    if tuple(amax.shape) != shape:
        raise NvlmError(
            f"amax has the shape {list(amax.shape)}, and this format's scales need {list(shape)}",
            hint="take the amax of the codec that packs",
        )
    if not (amax.isfinite() & (amax >= 0)).all():
        raise NvlmError("amax holds values that are negative or no finite numbers")
    return amax.to(weight_NK.device, torch.float32)


def scales_of(amax: Tensor, largest_code: float) -> Tensor:
    """amax / largest code; 1 where amax is zero (modelopt `TensorQuantizer._sanitize_export_amax`).

    Like there, an amax is at least the smallest normal number, so that no quotient is 0 / 0.
    """
    # A tensor, because CUDA turns the division by a Python number into a product with its reciprocal.
    top = amax.new_tensor(largest_code)
    return torch.where(amax == 0, top, amax.clamp(min=_TINY)) / top


def row_chunks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of an even number of rows, the last one excepted, of which an FP32 copy has 16 MiB."""
    step = max(2, _CHUNK_BYTES // (4 * columns) // 2 * 2)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def widen(weight_nK: Tensor) -> Tensor:
    """Return a chunk of a weight in float32 (itself if it is), or raise NvlmError if it is not finite."""
    weight_nK = weight_nK.detach()
    low, high = torch.aminmax(weight_nK)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise NvlmError("the weight holds values that are no finite numbers")
    return weight_nK.float()


def packed_codes(packed: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Return the matrix of codes, or raise NvlmError if the format's is another."""
    if packed.weight.dim() != 2 or packed.weight.dtype != dtype:
        raise _other_format("weight", packed.weight, f"a matrix of {dtype}")
    return packed.weight


def packed_scale(scale: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor of scales, or raise NvlmError if the format's is another."""
    if scale is None or scale.dtype != dtype or tuple(scale.shape) != shape:
        raise _other_format("a scale", scale, f"{list(shape)} of {dtype}")
    return scale


def _other_format(what: str, found: Tensor | None, wanted: str) -> NvlmError:
    there = "missing" if found is None else f"{list(found.shape)} of {found.dtype}"
    return NvlmError(
        f"{what} is {there} and should be {wanted}",
        hint="unpack a weight with the codec and the group size that packed it",
    )
