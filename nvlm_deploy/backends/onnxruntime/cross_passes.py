"""Lower attention to tiles: products of whole groups of query heads with the keys and values that they share.

Shapes: B rows, S tokens, L entries of tiles, H query heads, G KV heads, R = H / G query heads of each,
K head size.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from nvlm_deploy.backends.onnxruntime.rewrite import Inserter, replace
from nvlm_deploy.export.initializers import add_initializer
from nvlm_deploy.export.operators import HIDDEN


class LowerCrossAttention(ir.passes.InPlacePass):
    """Attention with a mask and without a cache becomes two products around a softmax.

    The R query heads of a KV head are so many more rows of one product, which reads keys and values as they
    are given, once. ONNX Runtime's own kernels would want them repeated R times.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        added: dict[ir.Value, ir.Value] = {}
        nodes = [node for node in model.graph.all_nodes() if _is_cross_attention(node)]
        for node in nodes:
            mask = node.inputs[3]
            assert mask is not None, "attention to tiles has a mask"
            if mask not in added:
                added[mask] = _added_to_scores(model.graph, mask)
            replace(node.outputs[0], _mixed(model.graph, node, added[mask]))
        return ir.passes.PassResult(model, bool(nodes))


def _is_cross_attention(node: ir.Node) -> bool:
    """Keys of tiles come from outside; those of text are what is in the cache."""
    keys = node.inputs[1] if node.op_type == "Attention" else None
    return keys is not None and keys.is_graph_input()


def _added_to_scores(graph: ir.Graph, mask: ir.Value) -> ir.Value:
    """Insert what is added to scores, float32 [B, 1, S, L], right behind the mask, once for all layers."""
    maker = mask.producer()
    assert maker is not None, "the mask is made by the graph"
    nodes = list(graph)
    insert = Inserter(graph, nodes[nodes.index(maker) + 1])
    numbers = [
        add_initializer(graph, f"{mask.name}.{name}", ir.tensor(np.array(value, np.float32)))
        for name, value in (("visible", 0), ("hidden", HIDDEN))
    ]
    return insert.op(f"{mask.name}.added", "Where", [mask, *numbers], domain="")[0]


def _mixed(graph: ir.Graph, node: ir.Node, added: ir.Value) -> ir.Value:
    """Insert the attention of `node`, [B, H, S, K]."""
    q_BHSK, k_BGLK, v_BGLK = node.inputs[:3]
    insert, name = Inserter(graph, node), str(node.outputs[0].name)
    groups, size = _groups(k_BGLK)
    heads = _heads(q_BHSK)

    def shaped(label: str, value: ir.Value | None, *shape: int) -> ir.Value:
        if heads == groups:
            assert value is not None, "only optional inputs are missing"
            return value
        key = "int64." + ".".join(str(n) for n in shape)
        constant = add_initializer(graph, key, ir.tensor(np.array(shape, np.int64)))
        return insert.op(f"{name}.{label}", "Reshape", [value, constant], domain="")[0]

    rows = shaped("rows", q_BHSK, 0, groups, -1, size)
    scale = 1 / math.sqrt(size)
    scores = insert.op(f"{name}.scores", "FusedMatMul", [rows, k_BGLK], transB=1, alpha=scale)[0]
    # Zeros copy a size, so the number of entries need not be known.
    masked = insert.op(f"{name}.masked", "Add", [shaped("heads", scores, 0, heads, -1, 0), added], domain="")[
        0
    ]
    shares = insert.op(f"{name}.shares", "Softmax", [masked], domain="", axis=-1)[0]
    grouped = shaped("grouped", shares, 0, groups, -1, 0)
    mixed = insert.op(f"{name}.groups", "MatMul", [grouped, v_BGLK], domain="")[0]
    return shaped("all", mixed, 0, heads, -1, size)


def _groups(keys: ir.Value | None) -> tuple[int, int]:
    """KV heads and head size of [B, G, L, K]."""
    shape = None if keys is None else keys.shape
    groups, size = (None, None) if shape is None else (shape[1], shape[3])
    if not isinstance(groups, int) or not isinstance(size, int):
        raise TypeError(f"{keys}: the heads of tiles must have known sizes")
    return groups, size


def _heads(queries: ir.Value | None) -> int:
    """Query heads: queries are split into them by a reshape with a constant shape."""
    transpose = None if queries is None else queries.producer()
    reshape = None if transpose is None or transpose.inputs[0] is None else transpose.inputs[0].producer()
    shape = None if reshape is None or reshape.inputs[1] is None else reshape.inputs[1].const_value
    assert shape is not None, "queries are split into heads by a constant shape"
    return int(shape.numpy()[2])
