"""Lower static INT8 activations to the unsigned form whose products are exact on every CPU."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nvlm_deploy.backends.onnxruntime.rewrite import Inserter, replace
from nvlm_deploy.export.initializers import add_initializer

_MIDDLE = 128


class LowerStaticInt8(ir.passes.InPlacePass):
    """Signed codes around 0 become unsigned codes around 128, which stand for the same numbers.

    AVX2 kernels add pairs of unsigned times signed products in 16 bits, and saturate; unsigned times
    unsigned they widen first. CPUs with VNNI or AMX take both forms at the same speed.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [node for node in model.graph if _makes_int8(node)]
        for node in nodes:
            (reader,) = node.outputs[0].consumers()
            middle = add_initializer(model.graph, "int8.middle", ir.tensor(np.array(_MIDDLE, np.uint8)))
            insert, name = Inserter(model.graph, node), str(node.outputs[0].name)
            scale = node.inputs[1]
            codes = insert.op(f"{name}.unsigned", "QuantizeLinear", [*node.inputs, middle], domain="")[0]
            again = Inserter(model.graph, reader)
            values = again.op(f"{name}.values", "DequantizeLinear", [codes, scale, middle], domain="")[0]
            replace(reader.outputs[0], values)
        return ir.passes.PassResult(model, bool(nodes))


def _makes_int8(node: ir.Node) -> bool:
    if node.op_type != "QuantizeLinear":
        return False
    dtype = node.attributes["output_dtype"].as_int() if "output_dtype" in node.attributes else None
    return dtype == ir.DataType.INT8
