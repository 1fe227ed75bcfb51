"""Lower the rest of the standard graph: linears, embedding, activations and norms."""

from __future__ import annotations

import onnx_ir as ir

from nvlm_deploy.backends.onnxruntime.layouts import row_codes
from nvlm_deploy.backends.onnxruntime.rewrite import Inserter, match_linear, match_matrix, replace
from nvlm_deploy.export.initializers import add_initializer
from nvlm_deploy.export.matrices import Matrix
from nvlm_deploy.export.weights import float_layout


class LowerActivations(ir.passes.InPlacePass):
    """Swish becomes QuickGelu with alpha 1, the same function in one pass over the data."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [node for node in model.graph if node.op_type == "Swish"]
        for node in nodes:
            insert = Inserter(model.graph, node)
            active = insert.op(f"{node.outputs[0].name}.quick", "QuickGelu", node.inputs, alpha=1.0)[0]
            replace(node.outputs[0], active)
        return ir.passes.PassResult(model, bool(nodes))


class LowerLinears(ir.passes.InPlacePass):
    """MatMuls with weights, and the biases behind them, become MatMulNBits or FusedMatMul."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, modified = model.graph, False
        # Backwards, so that the Add of a bias is met before the MatMul inside it.
        for node in reversed(list(graph)):
            linear = match_linear(node.outputs[0])
            if linear is None or not _is_used(graph, linear.y):
                continue
            y = Inserter(graph, node).linear(f"{linear.name}.lowered", linear.x, linear.matrix, linear.bias)
            replace(linear.y, y)
            modified = True
        return ir.passes.PassResult(model, modified)


class LowerEmbedding(ir.passes.InPlacePass):
    """Gather of a stored table: only the rows that are asked for are dequantized or cast."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [node for node in model.graph if node.op_type == "Gather"]
        for node in nodes:
            matrix, ids = match_matrix(node.inputs[0]), node.inputs[1]
            if matrix is None or ids is None:
                continue
            rows = _gather(Inserter(model.graph, node), str(node.outputs[0].name), matrix, ids)
            replace(node.outputs[0], rows)
        return ir.passes.PassResult(model, bool(nodes))


class LowerNorms(ir.passes.InPlacePass):
    """RMSNormalization becomes ONNX Runtime's own kernel, fused with the residual sum before it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [node for node in model.graph if node.op_type == "RMSNormalization"]
        for node in nodes:
            x, weight = node.inputs
            name, epsilon = str(node.outputs[0].name), node.attributes["epsilon"].as_float()
            branches = _residual_sum(x)
            insert = Inserter(model.graph, node)
            if branches is None or x is None:
                normed = insert.op(
                    f"{name}.rms",
                    "SimplifiedLayerNormalization",
                    [x, weight],
                    domain="",
                    axis=-1,
                    epsilon=epsilon,
                )[0]
            else:
                normed, _, _, total = insert.op(
                    f"{name}.skip",
                    "SkipSimplifiedLayerNormalization",
                    [*branches, weight],
                    outputs=4,
                    epsilon=epsilon,
                )
                replace(x, total)
            replace(node.outputs[0], normed)
        return ir.passes.PassResult(model, bool(nodes))


def _gather(insert: Inserter, name: str, matrix: Matrix, ids: ir.Value) -> ir.Value:
    if not matrix.storage.quantized:
        table = add_initializer(insert.graph, f"{name}.table", float_layout(matrix, transposed=False))
        rows = insert.op(f"{name}.rows", "Gather", [table, ids], domain="", axis=0)[0]
        return rows if matrix.storage.format == "fp32" else insert.to_fp32(name, rows)
    codes = add_initializer(insert.graph, f"{name}.codes", row_codes(matrix))
    inputs = [codes, ids, insert.scales(name, matrix), insert.zero_points(name, matrix)]
    return insert.op(
        f"{name}.rows",
        "GatherBlockQuantized",
        inputs[:3] if inputs[3] is None else inputs,
        bits=matrix.storage.bits,
        block_size=matrix.storage.group_size,
        gather_axis=0,
        quantize_axis=1,
    )[0]


def _residual_sum(x: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """The two branches of `x = a + b` with equal shapes; sums with a parameter do not count."""
    node = x.producer() if x is not None else None
    if node is None or node.op_type != "Add":
        return None
    a, b = node.inputs
    if a is None or b is None or a.is_initializer() or b.is_initializer():
        return None
    return a, b


def _is_used(graph: ir.Graph, value: ir.Value) -> bool:
    return bool(value.uses()) or any(value is output for output in graph.outputs)
