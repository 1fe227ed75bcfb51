"""Weights of a graph as lazy tensors: bytes are made, a few rows at a time, when the graph is written.

Shapes: N rows (output features), K columns (input features), J quantization groups per row.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nvlm_deploy.export.matrices import (
    Array,
    Matrix,
    WeightReader,
    code_reader,
    read_float32,
    to_float_type,
)
from nvlm_deploy.quantization.plan import QuantizationPlan, Storage
from nvlm_deploy.quantization.rtn import QuantizedMatrix, pack_nibbles


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
        """Yield arrays of bytes which, one after the other, are the tensor's."""
        for chunk in self._chunks():
            # Types that NumPy has from elsewhere (bfloat16) have no buffer of their own.
            yield np.ascontiguousarray(chunk).reshape(-1).view(np.uint8)

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

    def input_scale(self, name: str) -> float | None:
        """Scale of the static activations that a matrix is multiplied with."""
        scale = code_reader(self.weights).input_scale(name)
        return None if scale is None else float(scale)

    def pre_quant_scale(self, name: str) -> NDArray[np.float32] | None:
        """What the inputs of a matrix are multiplied with, float32 [K]."""
        scale = code_reader(self.weights).pre_quant_scale(name)
        return None if scale is None else scale.numpy()

    def small(
        self,
        name: str,
        shape: tuple[int, ...] | None = None,
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> StreamedTensor:
        """Return a parameter that no recipe is about as `dtype`, reshaped if `shape` is given."""

        def chunks() -> Iterator[Array]:
            values = read_float32(self.weights, name, 0, self.weights.shape(name)[0])
            yield to_float_type(values, dtype, name)

        return StreamedTensor(dtype, shape or self.weights.shape(name), chunks, (dtype, name))


def float_layout(matrix: Matrix, *, transposed: bool, dtype: ir.DataType | None = None) -> StreamedTensor:
    """Lay a float matrix out as [N, K], or transposed as [K, N]: as `dtype`, or in its storage type."""
    stored = ir.DataType.FLOAT16 if matrix.storage.format == "fp16" else ir.DataType.FLOAT
    dtype = stored if dtype is None else dtype

    def typed() -> Iterator[Array]:
        for chunk_NK in matrix.float_chunks():
            yield to_float_type(chunk_NK, dtype, " + ".join(matrix.names))

    def chunks() -> Iterator[Array]:
        if transposed:
            yield np.concatenate(list(typed())).T
        else:
            yield from typed()

    shape = (matrix.columns, matrix.rows) if transposed else (matrix.rows, matrix.columns)
    return StreamedTensor(dtype, shape, chunks, matrix.content_key("floats", transposed, dtype), matrix)


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


def scale_layout(matrix: Matrix, *, transposed: bool, dtype: ir.DataType | None = None) -> StreamedTensor:
    """Lay scales out as [N, J] or [J, N]: float16, or float32 as in a quantized checkpoint, or `dtype`."""
    stored = ir.DataType.FLOAT if matrix.storage.algorithm else ir.DataType.FLOAT16
    dtype = stored if dtype is None else dtype

    def chunks() -> Iterator[Array]:
        scales_NJ = to_float_type(matrix.take_small("scales"), dtype, " + ".join(matrix.names))
        yield scales_NJ.T if transposed else scales_NJ

    shape = (matrix.groups, matrix.rows) if transposed else (matrix.rows, matrix.groups)
    key = matrix.content_key("scales", transposed, dtype)
    return StreamedTensor(dtype, shape, chunks, key, matrix)


def whole_code_layout(matrix: Matrix, *, transposed: bool) -> StreamedTensor:
    """Lay the codes of a format without groups out as [N, K] or [K, N]: INT8 or FP8."""

    def chunks() -> Iterator[Array]:
        codes_NK, _ = matrix.codes()
        yield codes_NK.T if transposed else codes_NK

    dtype = ir.DataType.FLOAT8E4M3FN if matrix.storage.format == "fp8" else ir.DataType.INT8
    shape = (matrix.columns, matrix.rows) if transposed else (matrix.rows, matrix.columns)
    key = matrix.content_key("whole codes", transposed)
    return StreamedTensor(dtype, shape, chunks, key, matrix)


def row_scale_layout(matrix: Matrix, *shape: int, dtype: ir.DataType = ir.DataType.FLOAT) -> StreamedTensor:
    """Lay the scales of a format without groups out: one a row, or in the shape () one for all."""

    def chunks() -> Iterator[Array]:
        _, scales_N1 = matrix.codes()
        yield to_float_type(scales_N1 if shape else scales_N1[:1], dtype, " + ".join(matrix.names))

    key = matrix.content_key("row scales", shape, dtype)
    return StreamedTensor(dtype, shape, chunks, key, matrix)


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
