"""What a quantized checkpoint does to the inputs of a linear, as standard nodes.

Shapes: K input features, J blocks of 16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nvlm_deploy.config.recipe import NVFP4_GROUP, ActivationType
from nvlm_deploy.export.linears import quantized

if TYPE_CHECKING:
    from nvlm_deploy.export.graph import GraphBuilder

_E2M1_MAX = 6


class QuantizedInputs:
    """Scales and quantizes inputs of linears; those that share an input and its scales share the nodes."""

    def __init__(self, builder: GraphBuilder) -> None:
        self._builder = builder
        self._done: dict[tuple[object, ...], ir.Value] = {}

    def quantized(self, weight: str, x: ir.Value) -> ir.Value:
        """Return `x` as the matrix `weight` is multiplied with it: itself unless the checkpoint says more."""
        storage = self._builder.source.plan.storage(weight)
        if storage.algorithm is None:
            return x
        pre_quant_scale_K = self._builder.source.pre_quant_scale(weight)
        if pre_quant_scale_K is not None:
            x = self._scaled(f"{weight}.input", x, pre_quant_scale_K)
        input_scale = self._builder.source.input_scale(weight)
        if input_scale is None:
            return x
        key = (x, storage.activations, input_scale)
        if key not in self._done:
            self._done[key] = self._rounded(f"{weight}.input", x, storage.activations, input_scale)
        return self._done[key]

    def _scaled(self, name: str, x: ir.Value, scale_K: NDArray[np.float32]) -> ir.Value:
        key = (x, scale_K.tobytes())
        if key not in self._done:
            scale = self._builder.floats_constant(f"{name}.pre_quant_scale", scale_K)
            self._done[key] = self._builder.op(f"{name}.scaled", "Mul", [x, scale])
        return self._done[key]

    def _rounded(self, name: str, x: ir.Value, activations: ActivationType, input_scale: float) -> ir.Value:
        scale = self._builder.constant(f"{name}.scale", np.float32(input_scale))
        if activations == "nvfp4":
            return self._nvfp4(name, x, scale)
        dtype = ir.DataType.FLOAT8E4M3FN if activations == "fp8" else ir.DataType.INT8
        return self._through(name, x, scale, dtype)

    def _through(self, name: str, x: ir.Value, scale: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Round to codes of `dtype` and back."""
        codes = quantized(self._builder, f"{name}.codes", x, scale, dtype)
        value: ir.Value = self._builder.op(f"{name}.dequantized", "DequantizeLinear", [codes, scale])
        return value

    def _nvfp4(self, name: str, x: ir.Value, scale: ir.Value) -> ir.Value:
        """Round blocks of 16 to e2m1 with an e4m3 scale each (quantization.formats.fake_quantize_nvfp4).

        The grid of e2m1 has steps of 1/2 below 2, of 1 below 4, and of 2 up to 6, and `Round` takes ties to
        even: between two neighbors that is the one with the even code.
        """
        builder, op, number = self._builder, self._builder.op, self._builder.number

        blocks = op(f"{name}.blocks", "Reshape", [x, builder.integers(0, 0, -1, NVFP4_GROUP)])
        magnitude = op(f"{name}.magnitude", "Abs", [blocks])
        largest = op(f"{name}.largest", "ReduceMax", [magnitude, builder.integers(-1)], keepdims=1)
        sixth = op(f"{name}.unit", "Mul", [scale, number(_E2M1_MAX)])
        ideal = op(f"{name}.ideal", "Div", [largest, sixth])
        codes = op(f"{name}.e4m3", "Cast", [ideal], to=ir.DataType.FLOAT8E4M3FN, saturate=1)
        rounded = op(f"{name}.stored", "Cast", [codes], to=ir.DataType.FLOAT)
        step = op(f"{name}.step", "Mul", [rounded, scale])
        # A block whose scale rounds to zero becomes zero; its quotients are no numbers.
        empty = op(f"{name}.empty", "Equal", [step, number(0)])
        quotient = op(f"{name}.quotient", "Div", [magnitude, step])
        clipped = op(f"{name}.clipped", "Min", [quotient, number(_E2M1_MAX)])
        fine = op(f"{name}.fine", "Less", [clipped, number(2)])
        middle = op(f"{name}.middle", "Less", [clipped, number(4)])
        coarse = op(f"{name}.coarse", "Where", [middle, number(1), number(2)])
        grid = op(f"{name}.grid", "Where", [fine, number(0.5), coarse])
        nearest = op(f"{name}.nearest", "Round", [op(f"{name}.steps", "Div", [clipped, grid])])
        e2m1 = op(f"{name}.e2m1", "Mul", [nearest, grid])
        values = op(
            f"{name}.values",
            "Mul",
            [op(f"{name}.restored", "Mul", [e2m1, step]), op(f"{name}.sign", "Sign", [blocks])],
        )
        kept = op(f"{name}.kept", "Where", [empty, number(0), values])
        whole: ir.Value = op(f"{name}.rounded", "Reshape", [kept, op(f"{name}.shape", "Shape", [x])])
        return whole
