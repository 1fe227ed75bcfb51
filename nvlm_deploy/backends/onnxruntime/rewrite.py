"""What the lowering passes share: recognizing the standard graph's linears, and appending nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from nvlm_deploy.backends.onnxruntime.layouts import block_codes, packed_zero_points, unsigned_columns
from nvlm_deploy.export.initializers import add_initializer
from nvlm_deploy.export.matrices import Matrix
from nvlm_deploy.export.weights import (
    StreamedTensor,
    float_layout,
    row_scale_layout,
    scale_layout,
    whole_code_layout,
)

CONTRIB = "com.microsoft"


@dataclass(frozen=True, slots=True)
class Linear:
    """`y = x @ matrix.T (+ bias)` in the standard graph; `name` is that of its weight without suffix."""

    name: str
    x: ir.Value
    matrix: Matrix
    bias: ir.Value | None
    y: ir.Value


def match_linear(y: ir.Value | None) -> Linear | None:
    """Return the linear whose result is `y`, if it is one."""
    node = y.producer() if y is not None else None
    if node is None or y is None:
        return None
    if node.op_type == "Add" and node.inputs[1] is not None and node.inputs[1].is_initializer():
        inner = match_linear(node.inputs[0])
        if inner is None or inner.bias is not None or len(inner.y.uses()) != 1:
            return None
        return Linear(inner.name, inner.x, inner.matrix, node.inputs[1], y)
    if node.op_type != "MatMul" or node.inputs[0] is None:
        return None
    matrix = match_matrix(node.inputs[1])
    if matrix is None or node.name is None:
        return None
    return Linear(node.name.removesuffix("/MatMul"), node.inputs[0], matrix, None, y)


def match_matrix(value: ir.Value | None) -> Matrix | None:
    """Return the weight matrix that `value` is, seen through casts and dequantization."""
    while value is not None:
        tensor = value.const_value
        if isinstance(tensor, StreamedTensor):
            return tensor.matrix
        node = value.producer()
        if node is None or node.op_type not in ("Cast", "DequantizeLinear"):
            return None
        value = node.inputs[0]
    return None


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let `new` be what `old` was: for all consumers, and as a graph output with its name."""
    if old.is_graph_output():
        old_name = old.name
        old.name = f"{old_name}.standard"
        new.name, new.type, new.shape = old_name, old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)


class Inserter:
    """Inserts nodes before `anchor`, in the order of the calls."""

    def __init__(self, graph: ir.Graph, anchor: ir.Node) -> None:
        self.graph, self.anchor = graph, anchor

    def op(
        self,
        name: str,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: int = 1,
        domain: str = CONTRIB,
        **attributes: Any,
    ) -> tuple[ir.Value, ...]:
        """Insert one node and return its outputs."""
        node = ir.node(
            op_type, inputs, attributes, domain=domain, num_outputs=outputs, name=f"{name}/{op_type}"
        )
        self.graph.insert_before(self.anchor, node)
        return tuple(node.outputs)

    def to_fp32(self, name: str, value: ir.Value) -> ir.Value:
        """Cast a stored tensor; the runtime folds the cast when it loads the graph."""
        return self.op(f"{name}.fp32", "Cast", [value], domain="", to=ir.DataType.FLOAT)[0]

    def scales(self, name: str, matrix: Matrix) -> ir.Value:
        """FP32 scales [N, J] of a quantized matrix."""
        stored = add_initializer(self.graph, f"{name}.scales", scale_layout(matrix, transposed=False))
        if stored.dtype == ir.DataType.FLOAT:
            return stored
        return self.to_fp32(f"{name}.scales", stored)

    def zero_points(self, name: str, matrix: Matrix) -> ir.Value | None:
        """Packed zero points of a quantized matrix; None if symmetric."""
        if matrix.storage.symmetric:
            return None
        return add_initializer(self.graph, f"{name}.zero_points", packed_zero_points(matrix))

    def linear(self, name: str, x: ir.Value, matrix: Matrix, bias: ir.Value | None) -> ir.Value:
        """Insert a linear in the runtime's own form: MatMulNBits, or FusedMatMul with [N, K] weights."""
        storage = matrix.storage
        if storage.activations == "int8-static":
            return self._integer_linear(name, x, matrix, bias)
        if storage.group_size:
            return self._grouped_linear(name, x, matrix, bias)
        y = self.op(name, "FusedMatMul", [x, self._float_rows(f"{name}.rows", matrix)], transB=1)[0]
        return y if bias is None else self.op(f"{name}.biased", "Add", [y, bias], domain="")[0]

    def _float_rows(self, name: str, matrix: Matrix) -> ir.Value:
        """A matrix [N, K] as FP32; what widens it is folded when the runtime loads the graph."""
        if matrix.storage.format == "fp8":
            codes = add_initializer(self.graph, f"{name}.codes", whole_code_layout(matrix, transposed=False))
            scales = add_initializer(self.graph, f"{name}.scales", row_scale_layout(matrix, matrix.rows, 1))
            return self.op(f"{name}.scaled", "Mul", [self.to_fp32(name, codes), scales], domain="")[0]
        weight = add_initializer(self.graph, name, float_layout(matrix, transposed=False))
        return weight if matrix.storage.format == "fp32" else self.to_fp32(name, weight)

    def _integer_linear(self, name: str, x: ir.Value, matrix: Matrix, bias: ir.Value | None) -> ir.Value:
        """A product of codes: `x` is what LowerStaticInt8 dequantizes."""
        reader = x.producer()
        assert reader is not None, "static INT8 inputs are codes that are dequantized"
        x_codes, x_scale, middle = reader.inputs
        codes = add_initializer(self.graph, f"{name}.columns", unsigned_columns(matrix))
        scales = add_initializer(self.graph, f"{name}.scales", row_scale_layout(matrix, matrix.rows))
        inputs = [x_codes, codes, x_scale, scales, middle, middle, bias]
        return self.op(name, "MatMulIntegerToFloat", inputs if bias is not None else inputs[:-1])[0]

    def _grouped_linear(self, name: str, x: ir.Value, matrix: Matrix, bias: ir.Value | None) -> ir.Value:
        storage = matrix.storage
        codes = add_initializer(self.graph, f"{name}.blocks", block_codes(matrix))
        scales = self.scales(f"{name}.blocks", matrix)
        inputs = [x, codes, scales, self.zero_points(f"{name}.blocks", matrix), None, bias]
        while inputs[-1] is None:
            inputs.pop()
        return self.op(
            name,
            "MatMulNBits",
            inputs,
            K=matrix.columns,
            N=matrix.rows,
            bits=storage.bits,
            block_size=storage.group_size,
            # Level 4 quantizes the activations to INT8, level 1 keeps them in FP32.
            accuracy_level=4 if storage.activations == "int8" else 1,
        )[0]
