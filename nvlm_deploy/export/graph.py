"""A small builder over onnx_ir: nodes with readable names, initializers, and the linears of both graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nvlm_deploy.export.activations import QuantizedInputs
from nvlm_deploy.export.matrices import Matrix
from nvlm_deploy.export.weights import (
    StreamedTensor,
    WeightSource,
    code_layout,
    float_layout,
    row_scale_layout,
    scale_layout,
    whole_code_layout,
    zero_point_layout,
)

_IR_VERSION = 11

Dimension = int | str


class GraphBuilder:
    """Appends nodes to one graph; values are named after the node that makes them."""

    def __init__(self, name: str, source: WeightSource, opset: int) -> None:
        self.source = source
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name=name)
        self._inputs = QuantizedInputs(self)

    def model(self, metadata: dict[str, str]) -> ir.Model:
        """Return the finished model; `metadata` is what the graph's shapes do not tell."""
        return ir.Model(
            self.graph, ir_version=_IR_VERSION, producer_name="nvlm-deploy", metadata_props=metadata
        )

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[Dimension]) -> ir.Value:
        """Declare a graph input; texts in `shape` are free dimensions."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.graph.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, shape: Sequence[Dimension]) -> None:
        """Make `value` a graph output."""
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self.graph.outputs.append(value)

    def op(
        self, name: str, op_type: str, inputs: Sequence[ir.Value | None], outputs: int = 1, **attributes: Any
    ) -> Any:
        """Append one node; returns its output, or a tuple of them if there are several."""
        node = ir.node(op_type, inputs, attributes, num_outputs=outputs, name=f"{name}/{op_type}")
        for index, value in enumerate(node.outputs):
            value.name = name if outputs == 1 else f"{name}.{index}"
        self.graph.append(node)
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)

    def constant(self, name: str, array: NDArray[Any] | np.generic) -> ir.Value:
        """Register a small array as initializer; the same name again returns the same value."""
        return add_initializer(self.graph, name, ir.tensor(np.asarray(array), name=name))

    def integers(self, *values: int) -> ir.Value:
        """An int64 vector, shared by all nodes that need the same one."""
        name = "int64." + ".".join(str(value) for value in values)
        return self.constant(name, np.array(values, np.int64))

    def parameter(self, name: str, shape: tuple[int, ...] | None = None) -> ir.Value:
        """A parameter that stays FP32."""
        return add_initializer(self.graph, name, self.source.small(name, shape))

    def linear(self, name: str, x: ir.Value, bias: bool = False) -> ir.Value:
        """`x @ weight.T (+ bias)`: MatMul with [K, N] weights, dequantized if quantized, and so x."""
        weight = f"{name}.weight"
        y: ir.Value = self.op(
            name, "MatMul", [self._inputs.quantized(weight, x), self._matrix(weight, transposed=True)]
        )
        if bias:
            y = self.op(f"{name}.biased", "Add", [y, self.parameter(f"{name}.bias")])
        return y

    def embedding(self, name: str, weight: str, ids: ir.Value) -> ir.Value:
        """Rows of a table [N, K] by their indices."""
        value: ir.Value = self.op(name, "Gather", [self._matrix(weight, transposed=False), ids], axis=0)
        return value

    def _matrix(self, name: str, *, transposed: bool) -> ir.Value:
        """A weight matrix as FP32, whatever it is stored in."""
        matrix = self.source.matrix(name)
        storage = matrix.storage
        if not storage.quantized:
            stored = self._add(name, float_layout(matrix, transposed=transposed))
            return stored if storage.format == "fp32" else self._to_fp32(name, stored)
        if not storage.group_size:
            return self._whole(name, matrix, transposed=transposed)
        codes = self._add(f"{name}.codes", code_layout(matrix, transposed=transposed))
        scales = self._add(f"{name}.scales", scale_layout(matrix, transposed=transposed))
        if scales.dtype != ir.DataType.FLOAT:
            scales = self._to_fp32(f"{name}.scales", scales)
        inputs: list[ir.Value | None] = [codes, scales]
        if not storage.symmetric:
            inputs.append(self._add(f"{name}.zero_points", zero_point_layout(matrix, transposed=transposed)))
        value: ir.Value = self.op(
            f"{name}.dequantized",
            "DequantizeLinear",
            inputs,
            axis=0 if transposed else 1,
            block_size=storage.group_size,
        )
        return value

    def _whole(self, name: str, matrix: Matrix, *, transposed: bool) -> ir.Value:
        """A matrix whose scale belongs to a row (INT8) or to all of it (FP8)."""
        codes = self._add(f"{name}.codes", whole_code_layout(matrix, transposed=transposed))
        shape = () if matrix.storage.format == "fp8" else (matrix.rows,)
        scales = self._add(f"{name}.scales", row_scale_layout(matrix, *shape))
        axis = 1 if transposed else 0
        value: ir.Value = self.op(f"{name}.dequantized", "DequantizeLinear", [codes, scales], axis=axis)
        return value

    def _add(self, name: str, tensor: StreamedTensor) -> ir.Value:
        return add_initializer(self.graph, name, tensor)

    def _to_fp32(self, name: str, value: ir.Value) -> ir.Value:
        cast: ir.Value = self.op(f"{name}.fp32", "Cast", [value], to=ir.DataType.FLOAT)
        return cast


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Register `tensor` under `name`; a name that is there already returns its value."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor.name = name
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )
    graph.register_initializer(value)
    return value
