"""Linears of a graph: weights in the storage of the plan, widened to what the graph computes in.

Shapes: N rows (output features), K columns (input features), J quantization groups per row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from nvlm_deploy.config.recipe import STATIC_ACTIVATIONS
from nvlm_deploy.export.dialect import DATA_TYPES, FloatType
from nvlm_deploy.export.initializers import add_initializer
from nvlm_deploy.export.matrices import Matrix
from nvlm_deploy.export.weights import (
    StreamedTensor,
    code_layout,
    float_layout,
    row_scale_layout,
    scale_layout,
    whole_code_layout,
    zero_point_layout,
)

if TYPE_CHECKING:
    from nvlm_deploy.export.graph import GraphBuilder


def linear(builder: GraphBuilder, name: str, x: ir.Value) -> ir.Value:
    """`x @ weight.T` from what the builder computes in to the same type.

    The product is made in FP32 where weights are kept so, and where activations are quantized: their scales
    are FP32, and operator sets before 23 have one type for both. Engines fuse the casts.
    """
    weight, floats = f"{name}.weight", builder.floats
    inner = _computed_in(builder, weight)
    with builder.computing_in(inner):
        x = builder.cast(f"{name}.wide", x, floats, inner)
        x = builder.quantized_inputs.quantized(weight, x)
        y: ir.Value = builder.op(name, "MatMul", [x, weight_matrix(builder, weight, transposed=True)])
    return builder.cast(f"{name}.narrow", y, inner, floats)


def _computed_in(builder: GraphBuilder, weight: str) -> FloatType:
    storage = builder.source.plan.storage(weight)
    wide = storage.format == "fp32" or storage.activations in STATIC_ACTIVATIONS
    return "fp32" if wide else builder.floats


def weight_matrix(builder: GraphBuilder, name: str, *, transposed: bool) -> ir.Value:
    """A weight matrix as what the builder computes in, whatever it is stored in."""
    matrix = builder.source.matrix(name)
    storage = matrix.storage
    if not storage.quantized:
        return _floats(builder, name, matrix, transposed=transposed)
    if not storage.group_size:
        return _whole(builder, name, matrix, transposed=transposed)
    codes = _add(builder, f"{name}.codes", code_layout(matrix, transposed=transposed))
    inputs: list[ir.Value | None] = [codes, _group_scales(builder, name, matrix, transposed=transposed)]
    if not storage.symmetric:
        zeros = zero_point_layout(matrix, transposed=transposed)
        inputs.append(_add(builder, f"{name}.zero_points", zeros))
    value: ir.Value = builder.op(
        f"{name}.dequantized",
        "DequantizeLinear",
        inputs,
        axis=0 if transposed else 1,
        block_size=storage.group_size,
    )
    return value


def _floats(builder: GraphBuilder, name: str, matrix: Matrix, *, transposed: bool) -> ir.Value:
    """In 16 bits, graphs that compute in them store their own type; FP32 graphs widen what is stored."""
    if builder.floats != "fp32":
        layout = float_layout(matrix, transposed=transposed, dtype=DATA_TYPES[builder.floats])
        return _add(builder, f"{name}.{builder.floats}", layout)
    stored = _add(builder, name, float_layout(matrix, transposed=transposed))
    return stored if stored.dtype == ir.DataType.FLOAT else _widened(builder, name, stored)


def _group_scales(builder: GraphBuilder, name: str, matrix: Matrix, *, transposed: bool) -> ir.Value:
    """Scales in the type of the numbers that they make, which TensorRT wants as constants of that type."""
    label = f"{name}.scales"
    if builder.floats != "fp32":
        layout = scale_layout(matrix, transposed=transposed, dtype=DATA_TYPES[builder.floats])
        return _add(builder, f"{label}.{builder.floats}", layout)
    scales = _add(builder, label, scale_layout(matrix, transposed=transposed))
    return scales if scales.dtype == ir.DataType.FLOAT else _widened(builder, label, scales)


def _whole(builder: GraphBuilder, name: str, matrix: Matrix, *, transposed: bool) -> ir.Value:
    """A matrix whose scale belongs to a row (INT8) or to all of it (FP8)."""
    codes = _add(builder, f"{name}.codes", whole_code_layout(matrix, transposed=transposed))
    shape = () if matrix.storage.format == "fp8" else (matrix.rows,)
    dtype = DATA_TYPES[builder.floats]
    scales = _add(builder, f"{name}.scales", row_scale_layout(matrix, *shape, dtype=dtype))
    axis = 1 if transposed else 0
    value: ir.Value = builder.op(f"{name}.dequantized", "DequantizeLinear", [codes, scales], axis=axis)
    return value


def quantized(builder: GraphBuilder, name: str, x: ir.Value, scale: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Codes of `dtype` for `x`, with one FP32 scale; older sets take the type from a zero point."""
    if builder.dialect.has_blocks:
        value: ir.Value = builder.op(name, "QuantizeLinear", [x, scale], output_dtype=dtype)
        return value
    zero = builder.constant(f"zero.{dtype.name.lower()}", np.zeros((), dtype.numpy()))
    value = builder.op(name, "QuantizeLinear", [x, scale, zero])
    return value


def _widened(builder: GraphBuilder, name: str, value: ir.Value) -> ir.Value:
    cast: ir.Value = builder.op(f"{name}.fp32", "Cast", [value], to=ir.DataType.FLOAT)
    return cast


def _add(builder: GraphBuilder, name: str, tensor: StreamedTensor) -> ir.Value:
    return add_initializer(builder.graph, name, tensor)
