"""Weights in the layouts of ONNX Runtime's quantized operators; rows stay together, so they stream.

Shapes: N rows, K columns, J groups per row, G columns per group.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from nvlm_deploy.export.matrices import Array, Matrix
from nvlm_deploy.export.weights import StreamedTensor
from nvlm_deploy.quantization.rtn import pack_nibbles


def block_codes(matrix: Matrix) -> StreamedTensor:
    """Codes for MatMulNBits: uint8 [N, J, G * bits / 8], the last group padded with codes of zero."""
    storage = matrix.storage

    def chunks() -> Iterator[Array]:
        for chunk in matrix.quantized_chunks():
            yield pack_nibbles(chunk.codes_NJG) if storage.bits == 4 else chunk.codes_NJG

    shape = (matrix.rows, matrix.groups, storage.group_size * storage.bits // 8)
    key = matrix.content_key("row codes", matrix.groups * storage.group_size)
    return StreamedTensor(ir.DataType.UINT8, shape, chunks, key, matrix)


def row_codes(matrix: Matrix) -> StreamedTensor:
    """Codes for GatherBlockQuantized: uint8 [N, ceil(K * bits / 8)].

    Where no group is partial, these are the bytes of `block_codes`, and a tied `lm_head` shares them.
    """
    storage = matrix.storage

    def chunks() -> Iterator[Array]:
        for chunk in matrix.quantized_chunks():
            codes_NK = chunk.codes_NJG.reshape(len(chunk.codes_NJG), -1)[:, : matrix.columns]
            yield pack_nibbles(codes_NK) if storage.bits == 4 else codes_NK

    shape = (matrix.rows, -(-matrix.columns * storage.bits // 8))
    key = matrix.content_key("row codes", matrix.columns)
    return StreamedTensor(ir.DataType.UINT8, shape, chunks, key, matrix)


def unsigned_columns(matrix: Matrix) -> StreamedTensor:
    """INT8 codes with one scale a row for MatMulIntegerToFloat: uint8 [K, N], around 128."""

    def chunks() -> Iterator[Array]:
        codes_NK, _ = matrix.codes()
        yield codes_NK.T.view(np.uint8) ^ np.uint8(128)

    shape = (matrix.columns, matrix.rows)
    return StreamedTensor(ir.DataType.UINT8, shape, chunks, matrix.content_key("unsigned columns"), matrix)


def packed_zero_points(matrix: Matrix) -> StreamedTensor:
    """Zero points for both operators: uint8 [N, ceil(J * bits / 8)]."""
    storage = matrix.storage

    def chunks() -> Iterator[Array]:
        zeros_NJ = matrix.take_small("zero_points")
        yield pack_nibbles(zeros_NJ) if storage.bits == 4 else zeros_NJ

    shape = (matrix.rows, -(-matrix.groups * storage.bits // 8))
    return StreamedTensor(ir.DataType.UINT8, shape, chunks, matrix.content_key("row zero points"), matrix)
