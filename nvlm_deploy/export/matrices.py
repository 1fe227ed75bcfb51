"""Matrices as a graph's weights are made of them: numbers of a checkpoint in the storage of a plan.

Shapes: N rows (output features), K columns (input features), J quantization groups per row.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nvlm_deploy.errors import NvlmError
from nvlm_deploy.quantization.plan import Storage
from nvlm_deploy.quantization.rtn import QuantizedMatrix, quantize, stored_matrix

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]

# Rows are converted in chunks of this many elements, which bounds the memory of a build.
_CHUNK_ELEMENTS = 1 << 22


class WeightReader(Protocol):
    """Where parameters come from, by the names of `nvlm_deploy.models` (checkpoint.ModelWeights)."""

    def names(self) -> tuple[str, ...]:
        """All parameter names."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one parameter."""

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read one parameter."""

    def read_rows(self, name: str, start: int, stop: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read rows `[start, stop)` of a parameter."""


@runtime_checkable
class CodeReader(WeightReader, Protocol):
    """Where the matrices of a quantized checkpoint come from (quantization.QuantizedWeights)."""

    def codes(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes [N, K], int8 or float8_e4m3fn, and scales float32 [N, J]."""

    def input_scale(self, name: str) -> torch.Tensor | None:
        """Scale of static activations, float32 ()."""

    def pre_quant_scale(self, name: str) -> torch.Tensor | None:
        """What the inputs of a matrix are multiplied with, float32 [K]."""


class Matrix:
    """One matrix, or several with the same columns stacked along N, and how it is stored."""

    def __init__(self, weights: WeightReader, names: tuple[str, ...], storage: Storage) -> None:
        self.weights, self.names, self.storage = weights, names, storage
        shapes = [weights.shape(name) for name in names]
        self.rows = sum(shape[0] for shape in shapes)
        self.columns = shapes[0][1]
        self._small: dict[str, Array] = {}

    @property
    def groups(self) -> int:
        """Number of quantization groups per row."""
        return self.storage.groups(self.columns)

    def content_key(self, *layout: Hashable) -> Hashable:
        """Equal for equal bytes: the same numbers, stored in the same way, in the same `layout`."""
        storage = self.storage
        return (self.names, storage.format, storage.group_size, storage.symmetric, *layout)

    def float_chunks(self) -> Iterator[NDArray[np.float32]]:
        """Yield all rows as float32 [n, K]."""
        step = max(1, _CHUNK_ELEMENTS // self.columns)
        for name in self.names:
            rows = self.weights.shape(name)[0]
            for start in range(0, rows, step):
                yield read_float32(self.weights, name, start, min(rows, start + step))

    def quantized_chunks(self) -> Iterator[QuantizedMatrix]:
        """Yield all rows quantized; keeps scales and zero points until `take_small` asks for them."""
        scales, zero_points = [], []
        for quantized in self._stored() if self.storage.algorithm else self._rounded():
            scales.append(quantized.scales_NJ)
            if quantized.zero_points_NJ is not None:
                zero_points.append(quantized.zero_points_NJ)
            yield quantized
        self._small["scales"] = np.concatenate(scales)
        if zero_points:
            self._small["zero_points"] = np.concatenate(zero_points)

    def codes(self) -> tuple[Array, NDArray[np.float32]]:
        """Return stored codes [N, K], int8 or the bytes of float8_e4m3fn, and float32 scales [N, J]."""
        reader = code_reader(self.weights)
        pairs = [reader.codes(name) for name in self.names]
        codes = [_bytes_of(codes_NK) for codes_NK, _ in pairs]
        return np.concatenate(codes), np.concatenate([scales_NJ.numpy() for _, scales_NJ in pairs])

    def _stored(self) -> Iterator[QuantizedMatrix]:
        storage, reader = self.storage, code_reader(self.weights)
        step = max(1, _CHUNK_ELEMENTS // self.columns)
        for name in self.names:
            codes_NK, scales_NJ = (tensor.numpy() for tensor in reader.codes(name))
            for start in range(0, len(codes_NK), step):
                rows = slice(start, start + step)
                yield stored_matrix(codes_NK[rows], scales_NJ[rows], storage.bits, storage.group_size)

    def _rounded(self) -> Iterator[QuantizedMatrix]:
        storage = self.storage
        for chunk_NK in self.float_chunks():
            try:
                yield quantize(
                    chunk_NK, bits=storage.bits, group_size=storage.group_size, symmetric=storage.symmetric
                )
            except NvlmError as error:
                raise NvlmError(f"{' + '.join(self.names)} cannot be quantized: {error.message}") from None

    def take_small(self, role: str) -> Array:
        """Return `scales` ([N, J]) or `zero_points` (uint8 [N, J]) and forget them.

        They were made with the codes. Asked for a second time, they are made again.
        """
        if role not in self._small:
            for _ in self.quantized_chunks():
                pass
        return self._small.pop(role)


def stacked(matrices: list[Matrix]) -> Matrix | None:
    """Stack matrices along N if they are stored alike and have equal columns, else return None."""
    first = matrices[0]
    if any(m.storage != first.storage or m.columns != first.columns for m in matrices):
        return None
    return Matrix(first.weights, tuple(name for m in matrices for name in m.names), first.storage)


def code_reader(weights: WeightReader) -> CodeReader:
    """Return `weights` as those of a quantized checkpoint, which a recipe with an algorithm needs."""
    assert isinstance(weights, CodeReader), "calibrated formats are written from quantized checkpoints"
    return weights


def _bytes_of(codes: torch.Tensor) -> Array:
    import torch

    array: Array = codes.numpy() if codes.dtype == torch.int8 else codes.view(torch.uint8).numpy()
    return array


def read_float32(weights: WeightReader, name: str, start: int, stop: int) -> NDArray[np.float32]:
    import torch

    array: NDArray[np.float32] = weights.read_rows(name, start, stop, torch.float32).numpy()
    return array


def to_float_type(values: NDArray[Any], dtype: ir.DataType, name: str) -> Array:
    """Round floats to another type.

    Raises:
        NvlmError: a value is too large for FP16.
    """
    largest = float(np.finfo(np.float16).max)
    if dtype == ir.DataType.FLOAT16 and values.size and float(np.abs(values).max()) > largest:
        raise NvlmError(
            f"{name} holds values that are too large for FP16",
            hint="store it as fp32: add it to the recipe's 'keep' with 'format: fp32'",
        )
    return values.astype(dtype.numpy(), copy=False)
