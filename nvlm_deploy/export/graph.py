"""A small builder over onnx_ir: nodes with readable names, initializers, and the linears of both graphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nvlm_deploy.export.activations import QuantizedInputs
from nvlm_deploy.export.dialect import DATA_TYPES, Dialect, FloatType
from nvlm_deploy.export.initializers import add_initializer
from nvlm_deploy.export.linears import linear, weight_matrix
from nvlm_deploy.export.weights import WeightSource

Dimension = int | str


class GraphBuilder:
    """Appends nodes to one graph; values are named after the node that makes them.

    Graphs are strongly typed: `floats` is what nodes compute in where the builder stands, and what passes
    from one type to another goes through `cast`.
    """

    def __init__(self, name: str, source: WeightSource, dialect: Dialect) -> None:
        self.source, self.dialect = source, dialect
        self.floats: FloatType = dialect.floats
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": dialect.opset}, name=name)
        self.quantized_inputs = QuantizedInputs(self)
        self._casts: dict[tuple[ir.Value, FloatType], ir.Value] = {}

    def model(self, metadata: dict[str, str]) -> ir.Model:
        """Return the finished model; `metadata` is what the graph's shapes do not tell."""
        return ir.Model(
            self.graph,
            ir_version=self.dialect.ir_version,
            producer_name="nvlm-deploy",
            metadata_props=metadata,
        )

    @contextmanager
    def computing_in(self, floats: FloatType) -> Iterator[None]:
        """Compute in another type inside the block."""
        before, self.floats = self.floats, floats
        try:
            yield
        finally:
            self.floats = before

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

    def cast(self, name: str, value: ir.Value, source: FloatType, target: FloatType) -> ir.Value:
        """`value`, which is of type `source`, as `target`; itself if they are the same."""
        if source == target:
            return value
        key = (value, target)
        if key not in self._casts:
            self._casts[key] = self.op(name, "Cast", [value], to=DATA_TYPES[target])
        return self._casts[key]

    def constant(self, name: str, array: NDArray[Any] | np.generic) -> ir.Value:
        """Register a small array as initializer; the same name again returns the same value."""
        return add_initializer(self.graph, name, ir.tensor(np.asarray(array), name=name))

    def floats_constant(self, name: str, array: NDArray[np.float32] | np.float32) -> ir.Value:
        """Register a small array of what the builder computes in."""
        if self.floats == "fp32":
            return self.constant(name, array)
        return self.constant(
            f"{name}.{self.floats}", np.asarray(array).astype(DATA_TYPES[self.floats].numpy())
        )

    def number(self, value: float) -> ir.Value:
        """A scalar of what the builder computes in, shared by all nodes that need the same one."""
        return self.floats_constant(f"float.{value:g}", np.float32(value))

    def integers(self, *values: int) -> ir.Value:
        """An int64 vector, shared by all nodes that need the same one."""
        name = "int64." + ".".join(str(value) for value in values)
        return self.constant(name, np.array(values, np.int64))

    def parameter(self, name: str, shape: tuple[int, ...] | None = None) -> ir.Value:
        """A parameter that no recipe is about, in what the builder computes in."""
        label = name if self.floats == self.dialect.floats else f"{name}.{self.floats}"
        return add_initializer(self.graph, label, self.source.small(name, shape, DATA_TYPES[self.floats]))

    def linear(self, name: str, x: ir.Value, bias: bool = False) -> ir.Value:
        """`x @ weight.T (+ bias)`: MatMul with [K, N] weights, dequantized if quantized, and so x."""
        y = linear(self, name, x)
        if bias:
            y = self.op(f"{name}.biased", "Add", [y, self.parameter(f"{name}.bias")])
        return y

    def embedding(self, name: str, weight: str, ids: ir.Value) -> ir.Value:
        """Rows of a table [N, K] by their indices."""
        table = weight_matrix(self, weight, transposed=False)
        value: ir.Value = self.op(name, "Gather", [table, ids], axis=0)
        return value
