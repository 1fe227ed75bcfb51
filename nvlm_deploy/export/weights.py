"""Weights of a graph as lazy tensors: bytes are made, a few rows at a time, when the graph is written.

Shapes: N rows (output features), K columns (input features), J quantization groups per row.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nvlm_deploy.errors import NvlmError
from nvlm_deploy.quantization.plan import QuantizationPlan, Storage
from nvlm_deploy.quantization.rtn import QuantizedMatrix, pack_nibbles, quantize

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
                yield _to_float32(self.weights, name, start, min(rows, start + step))

    def stored_chunks(self) -> Iterator[Array]:
        """Yield all rows of a matrix that is stored as floats, in its storage type."""
        for chunk_NK in self.float_chunks():
            yield self._to_fp16(chunk_NK) if self.storage.format == "fp16" else chunk_NK

    def quantized_chunks(self) -> Iterator[QuantizedMatrix]:
        """Yield all rows quantized; keeps scales and zero points until `take_small` asks for them."""
        storage = self.storage
        scales, zero_points = [], []
        for chunk_NK in self.float_chunks():
            try:
                quantized = quantize(
                    chunk_NK, bits=storage.bits, group_size=storage.group_size, symmetric=storage.symmetric
                )
            except NvlmError as error:
                raise NvlmError(f"{' + '.join(self.names)} cannot be quantized: {error.message}") from None
            scales.append(quantized.scales_NJ)
            if quantized.zero_points_NJ is not None:
                zero_points.append(quantized.zero_points_NJ)
            yield quantized
        self._small["scales"] = np.concatenate(scales)
        if zero_points:
            self._small["zero_points"] = np.concatenate(zero_points)

    def take_small(self, role: str) -> Array:
        """Return `scales` (float16 [N, J]) or `zero_points` (uint8 [N, J]) and forget them.

        They were made with the codes. Asked for a second time, they are made again.
        """
        if role not in self._small:
            for _ in self.quantized_chunks():
                pass
        return self._small.pop(role)

    def _to_fp16(self, chunk_NK: NDArray[np.float32]) -> NDArray[np.float16]:
        if chunk_NK.size and float(np.abs(chunk_NK).max()) > float(np.finfo(np.float16).max):
            raise NvlmError(
                f"{' + '.join(self.names)} holds values that are too large for FP16",
                hint="store it as fp32: add it to the recipe's 'keep' with 'format: fp32'",
            )
        return chunk_NK.astype(np.float16)


class StreamedTensor(ir.LazyTensor):
    """A tensor whose bytes are made when they are written: the concatenation of `chunks()`.

    Two tensors with equal `key` have the same bytes, and are written once. `matrix` is what the
    tensor was laid out from, which lets a backend lay it out in its own way.
    """

    __slots__ = ("_chunks", "key", "matrix")

    def __init__(
        self,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        chunks: Callable[[], Iterator[Array]],
        key: Hashable,
        matrix: Matrix | None = None,
    ) -> None:
        super().__init__(self._whole, dtype=dtype, shape=ir.Shape(shape))
        self._chunks, self.key, self.matrix = chunks, key, matrix

    def byte_chunks(self) -> Iterator[Array]:
        """Yield contiguous arrays whose bytes, one after the other, are the tensor's."""
        for chunk in self._chunks():
            yield np.ascontiguousarray(chunk)

    def _whole(self) -> ir.TensorProtocol:
        shape = self.shape.numpy()
        data = np.frombuffer(b"".join(chunk.tobytes() for chunk in self.byte_chunks()), np.uint8)
        if self.dtype.itemsize < 1:
            return ir.PackedTensor(data, self.dtype, shape=shape)
        return ir.Tensor(data.view(self.dtype.numpy()).reshape(shape), dtype=self.dtype)


class WeightSource:
    """The parameters of one graph under one plan."""

    def __init__(self, weights: WeightReader, plan: QuantizationPlan) -> None:
        self.weights, self.plan = weights, plan

    def matrix(self, name: str) -> Matrix:
        """Return one matrix in the plan's storage; a tied `lm_head` reads the embedding."""
        tensor = self.plan.tensors[name]
        return Matrix(self.weights, (tensor.source,), tensor.storage)

    def small(self, name: str, shape: tuple[int, ...] | None = None) -> StreamedTensor:
        """Return a parameter that stays FP32, reshaped if `shape` is given."""

        def chunks() -> Iterator[Array]:
            yield _to_float32(self.weights, name, 0, self.weights.shape(name)[0])

        return StreamedTensor(ir.DataType.FLOAT, shape or self.weights.shape(name), chunks, ("fp32", name))


def stacked(matrices: list[Matrix]) -> Matrix | None:
    """Stack matrices along N if they are stored alike and have equal columns, else return None."""
    first = matrices[0]
    if any(m.storage != first.storage or m.columns != first.columns for m in matrices):
        return None
    return Matrix(first.weights, tuple(name for m in matrices for name in m.names), first.storage)


def float_layout(matrix: Matrix, *, transposed: bool) -> StreamedTensor:
    """Lay a float matrix out as [N, K], or transposed as [K, N], in its storage type."""

    def chunks() -> Iterator[Array]:
        if transposed:
            yield np.concatenate(list(matrix.stored_chunks())).T
        else:
            yield from matrix.stored_chunks()

    dtype = ir.DataType.FLOAT16 if matrix.storage.format == "fp16" else ir.DataType.FLOAT
    shape = (matrix.columns, matrix.rows) if transposed else (matrix.rows, matrix.columns)
    return StreamedTensor(dtype, shape, chunks, matrix.content_key("floats", transposed), matrix)


def code_layout(matrix: Matrix, *, transposed: bool) -> StreamedTensor:
    """Lay codes out as ONNX integers [N, K] or [K, N]: signed if symmetric, else unsigned."""
    storage = matrix.storage

    def chunks() -> Iterator[Array]:
        codes_NK = np.concatenate([_signed(c, storage, matrix.columns) for c in matrix.quantized_chunks()])
        codes = codes_NK.T if transposed else codes_NK
        # ONNX packs 4-bit integers over the flattened tensor.
        yield pack_nibbles(codes.reshape(-1)) if storage.bits == 4 else codes

    shape = (matrix.columns, matrix.rows) if transposed else (matrix.rows, matrix.columns)
    return StreamedTensor(
        _integer_type(storage), shape, chunks, matrix.content_key("codes", transposed), matrix
    )


def scale_layout(matrix: Matrix, *, transposed: bool) -> StreamedTensor:
    """Lay scales out as float16 [N, J] or [J, N]."""

    def chunks() -> Iterator[Array]:
        scales_NJ = matrix.take_small("scales")
        yield scales_NJ.T if transposed else scales_NJ

    shape = (matrix.groups, matrix.rows) if transposed else (matrix.rows, matrix.groups)
    key = matrix.content_key("scales", transposed)
    return StreamedTensor(ir.DataType.FLOAT16, shape, chunks, key, matrix)


def zero_point_layout(matrix: Matrix, *, transposed: bool) -> StreamedTensor:
    """Lay the zero points of an asymmetric matrix out as ONNX unsigned integers [N, J] or [J, N]."""
    storage = matrix.storage

    def chunks() -> Iterator[Array]:
        zeros_NJ = matrix.take_small("zero_points")
        zeros = zeros_NJ.T if transposed else zeros_NJ
        yield pack_nibbles(zeros.reshape(-1)) if storage.bits == 4 else zeros

    shape = (matrix.groups, matrix.rows) if transposed else (matrix.rows, matrix.groups)
    key = matrix.content_key("zero points", transposed)
    return StreamedTensor(_integer_type(storage), shape, chunks, key, matrix)


def _integer_type(storage: Storage) -> ir.DataType:
    names = {(4, True): "INT4", (4, False): "UINT4", (8, True): "INT8", (8, False): "UINT8"}
    return ir.DataType[names[storage.bits, storage.symmetric]]


def _signed(chunk: QuantizedMatrix, storage: Storage, columns: int) -> NDArray[np.uint8]:
    """Codes [n, K] as two's complement in the low bits if symmetric, else as they are."""
    codes_NK = chunk.codes_NJG.reshape(len(chunk.codes_NJG), -1)[:, :columns]
    if not storage.symmetric:
        return codes_NK
    # Subtracting the middle of the range and flipping its top bit are the same thing.
    return codes_NK ^ np.uint8(1 << (storage.bits - 1))


def _to_float32(weights: WeightReader, name: str, start: int, stop: int) -> NDArray[np.float32]:
    import torch

    array: NDArray[np.float32] = weights.read_rows(name, start, stop, torch.float32).numpy()
    return array
