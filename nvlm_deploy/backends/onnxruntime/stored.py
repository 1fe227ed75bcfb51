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
    graph = _Graph(path)
    for node in graph.nodes:
        reader = _READERS.get(node.op_type)
        matrix = reader(node, graph) if reader is not None else None
        if matrix is not None:
            yield matrix


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of the branches in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_nodes(attribute.g)


class _Graph:
    """The initializers of a graph, seen through the casts and products that the runtime folds."""

    def __init__(self, path: Path) -> None:
        graph = onnx.load(str(path), load_external_data=False).graph
        self.path, self.nodes = path, list(all_nodes(graph))
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._made_by = {name: node for node in self.nodes for name in node.output}

    def array(self, node: onnx.NodeProto, index: int) -> NDArray[Any] | None:
        """An input of a node, in the type that it is stored in; None if it is no initializer."""
        return self._read(node.input[index]) if len(node.input) > index else None

    def factors(self, node: onnx.NodeProto, index: int) -> list[NDArray[Any]] | None:
        """The stored factors of an input: a matrix, or codes and scales."""
        name = node.input[index]
        maker = self._made_by.get(name)
        names = list(maker.input) if maker is not None and maker.op_type == "Mul" else [name]
        arrays = [self._read(each) for each in names]
        return None if any(array is None for array in arrays) else [a for a in arrays if a is not None]

    def _read(self, name: str) -> NDArray[Any] | None:
        maker = self._made_by.get(name)
        if maker is not None and maker.op_type == "Cast":
            name = maker.input[0]
        tensor = self._tensors.get(name)
        return None if tensor is None else _array(tensor, self.path)


def _read_blocks(node: onnx.NodeProto, graph: _Graph) -> StoredMatrix | None:
    """MatMulNBits (codes, scales and zero points behind x) and GatherBlockQuantized (scales behind ids)."""
    settings = {each.name: each.i for each in node.attribute}
    gather = node.op_type == "GatherBlockQuantized"
    codes, scales = graph.array(node, 0 if gather else 1), graph.array(node, 2)
    if codes is None or scales is None:
        return None
    bits, size = settings["bits"], settings["block_size"]
    columns = codes.shape[1] * 8 // bits if gather else settings["K"]
    codes = codes.reshape(len(codes), -1)
    read = _quantized_rows(codes, scales, graph.array(node, 3), bits, size, columns)
    return StoredMatrix(_name(node), len(codes), columns, read)


def _read_floats(node: onnx.NodeProto, graph: _Graph) -> StoredMatrix | None:
    """FusedMatMul with a matrix [N, K], or Gather of a table; FP8 codes have a scale for each row."""
    factors = graph.factors(node, 1 if node.op_type == "FusedMatMul" else 0)
    if factors is None or factors[0].ndim != 2:
        return None
    rows, columns = factors[0].shape

    def read(start: int, stop: int) -> Float32:
        values: Float32 = np.ones((stop - start, columns), np.float32)
        for factor in factors:
            values = values * factor[start:stop].astype(np.float32)
        return values

    return StoredMatrix(_name(node), rows, columns, read)


def _read_integers(node: onnx.NodeProto, graph: _Graph) -> StoredMatrix | None:
    """MatMulIntegerToFloat: codes [K, N] around a zero point, and one scale for each of the N."""
    codes_KN, scales_N, zero = graph.array(node, 1), graph.array(node, 3), graph.array(node, 5)
    if codes_KN is None or scales_N is None or zero is None:
        return None
    columns, rows = codes_KN.shape

    def read(start: int, stop: int) -> Float32:
        centered = codes_KN[:, start:stop].T.astype(np.float32) - zero.astype(np.float32)
        values: Float32 = centered * scales_N[start:stop, None]
        return values

    return StoredMatrix(_name(node), rows, columns, read)


_READERS: dict[str, Callable[[onnx.NodeProto, _Graph], StoredMatrix | None]] = {
    "MatMulNBits": _read_blocks,
    "GatherBlockQuantized": _read_blocks,
    "FusedMatMul": _read_floats,
    "Gather": _read_floats,
    "MatMulIntegerToFloat": _read_integers,
}


def _name(node: onnx.NodeProto) -> str:
    name: str = node.name.rpartition("/")[0]
    return name


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
