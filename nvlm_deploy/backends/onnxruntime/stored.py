"""The matrices of an engine's graph as the numbers that they stand for.

Read by the documentation of the operators (ONNX Runtime, ContribOperators.md), and by nothing of the code
that writes them. Shapes: N rows, K columns, J groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """One matrix [rows, columns]; `name` is that of the node that computes with it, without its operator."""

    name: str
    rows: int
    columns: int
    read: Callable[[int, int], Float32]
    """Rows from a first to behind a last one, float32 [n, K]."""


def stored_matrices(path: Path) -> Iterator[StoredMatrix]:
    """Yield the matrices of the graph at `path` whose operators are known here; nothing is read yet."""
    graph = onnx.load(str(path), load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}

    def array(name: str) -> NDArray[Any] | None:
        tensor = tensors.get(casts.get(name, name))
        return None if tensor is None else _array(tensor, path)

    for node in graph.node:
        inputs = [array(name) if name else None for name in node.input]
        matrix = _matrix(node, inputs)
        if matrix is not None:
            yield matrix


def _matrix(node: onnx.NodeProto, inputs: list[NDArray[Any] | None]) -> StoredMatrix | None:
    settings = {each.name: each.i for each in node.attribute}
    name = node.name.rpartition("/")[0]
    inputs += [None] * (4 - len(inputs))
    if node.op_type == "MatMulNBits":
        codes, scales, zeros = inputs[1], inputs[2], inputs[3]
        columns = settings["K"]
    elif node.op_type == "GatherBlockQuantized":
        codes, scales, zeros = inputs[0], inputs[2], inputs[3]
        columns = 0 if codes is None else codes.shape[1] * 8 // settings["bits"]
    elif node.op_type in ("FusedMatMul", "Gather"):
        values = inputs[1] if node.op_type == "FusedMatMul" else inputs[0]
        if values is None or values.ndim != 2:
            return None
        rows, columns = values.shape
        return StoredMatrix(name, rows, columns, _float_rows(values))
    else:
        return None
    if codes is None or scales is None:
        return None
    bits, size = settings["bits"], settings["block_size"]
    read = _quantized_rows(codes.reshape(len(codes), -1), scales, zeros, bits, size, columns)
    return StoredMatrix(name, len(codes), columns, read)


def _float_rows(values_NK: NDArray[Any]) -> Callable[[int, int], Float32]:
    return lambda start, stop: values_NK[start:stop].astype(np.float32)


def _quantized_rows(
    codes: NDArray[Any],
    scales_NJ: NDArray[Any],
    zeros: NDArray[Any] | None,
    bits: int,
    size: int,
    columns: int,
) -> Callable[[int, int], Float32]:
    """Rows of (code - zero point) x scale; without zero points it is the middle of the codes' range."""
    scales_NJ = scales_NJ.reshape(len(codes), -1)

    def read(start: int, stop: int) -> Float32:
        values = _unpacked(codes[start:stop], bits).astype(np.float32)
        zero: NDArray[Any] | float = 2.0 ** (bits - 1)
        if zeros is not None:
            groups = scales_NJ.shape[1]
            packed = zeros.reshape(len(codes), -1)[start:stop]
            zero = np.repeat(_unpacked(packed, bits)[:, :groups], size, axis=1)[:, : values.shape[1]]
        scale = np.repeat(scales_NJ[start:stop].astype(np.float32), size, axis=1)[:, : values.shape[1]]
        rows: Float32 = ((values - zero) * scale)[:, :columns].astype(np.float32)
        return rows

    return read


def _unpacked(packed: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Codes [n, K]: bytes as they are, or two a byte with the lower four bits first."""
    codes = packed.view(np.uint8)
    if bits == 8:
        return codes
    return np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)


def _array(tensor: onnx.TensorProto, path: Path) -> NDArray[Any]:
    """The tensor's numbers; those in the data file are mapped."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return onnx.numpy_helper.to_array(tensor)
    where = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    offset = int(where.get("offset", 0))
    return np.memmap(path.with_name(where["location"]), dtype, "r", offset, tuple(tensor.dims))
