"""Lower standard attention: GroupQueryAttention with an in-place cache, MultiHeadAttention for tiles."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from nvlm_deploy.backends.onnxruntime.rewrite import Inserter, Linear, match_linear, replace
from nvlm_deploy.export.initializers import add_initializer
from nvlm_deploy.export.matrices import Array, stacked
from nvlm_deploy.export.weights import StreamedTensor


class LowerVisionAttention(ir.passes.InPlacePass):
    """Attention without mask or cache becomes MultiHeadAttention, a tiled kernel without score matrices."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if node.op_type != "Attention" or len(node.inputs) != 3:
                continue
            heads = node.attributes["q_num_heads"].as_int()
            mixed = Inserter(model.graph, node).op(
                f"{node.outputs[0].name}.heads", "MultiHeadAttention", node.inputs, num_heads=heads
            )[0]
            replace(node.outputs[0], mixed)
            modified = True
        return ir.passes.PassResult(model, modified)


class LowerCachedAttention(ir.passes.InPlacePass):
    """Rotary embedding, cache update and masked attention become one GroupQueryAttention.

    Its `seqlens_k` (tokens per row after this step, minus one) hides the padding of shorter rows, and
    past and present may be the same buffer. q, k and v are packed into one linear where they are
    stored alike.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [node for node in model.graph if _is_cached_attention(node)]
        if nodes:
            lengths = _cache_lengths(model.graph, nodes[0])
            for node in nodes:
                _lower(model.graph, node, lengths)
        return ir.passes.PassResult(model, bool(nodes))


def _is_cached_attention(node: ir.Node) -> bool:
    keys = node.inputs[1].producer() if node.op_type == "Attention" and node.inputs[1] else None
    return keys is not None and keys.op_type == "TensorScatter"


def _cache_lengths(graph: ir.Graph, anchor: ir.Node) -> tuple[ir.Value, ir.Value]:
    """Insert `seqlens_k` int32 [B] and `total_sequence_length` int32 [], once for all layers."""
    inputs = {value.name: value for value in graph.inputs}
    insert = Inserter(graph, anchor)
    one = add_initializer(graph, "cache.one", ir.tensor(np.array(1, np.int32)))
    new = [inputs["past_lengths"], inputs["new_lengths"]]
    total_B = insert.op("cache.total", "Add", new, domain="")[0]
    last_B = insert.op("cache.last", "Sub", [total_B, one], domain="")[0]
    longest = insert.op("cache.longest", "ReduceMax", [total_B], domain="", keepdims=0)[0]
    return last_B, longest


def _lower(graph: ir.Graph, node: ir.Node, lengths: tuple[ir.Value, ir.Value]) -> None:
    q, keys, values = (_producer(value) for value in node.inputs[:3])
    k, past_key, past_value = _producer(keys.inputs[1]), keys.inputs[0], values.inputs[0]
    linears = [_head_linear(value) for value in (q.inputs[0], k.inputs[0], values.inputs[1])]
    insert, name = Inserter(graph, node), str(node.outputs[0].name)
    kv_heads, head_dim = _cache_heads(past_key)
    packed = _pack(insert, f"{name}.qkv", linears)
    queries = [linear.y for linear in linears] if packed is None else [packed, None, None]
    mixed, present_key, present_value = insert.op(
        f"{name}.grouped",
        "GroupQueryAttention",
        [*queries, past_key, past_value, *lengths, *q.inputs[1:3]],
        outputs=3,
        num_heads=linears[0].matrix.rows // head_dim,
        kv_num_heads=kv_heads,
        scale=1 / math.sqrt(head_dim),
        do_rotary=1,
    )
    # The standard kernel's heads are joined by a transpose and a reshape; this one joins them itself.
    joined = node.outputs[0].consumers()[0].outputs[0].consumers()[0].outputs[0]
    replace(joined, mixed)
    replace(keys.outputs[0], present_key)
    replace(values.outputs[0], present_value)


def _cache_heads(past: ir.Value | None) -> tuple[int, int]:
    """Number of heads and head size of a cache input [B, heads, capacity, head size]."""
    shape = past.shape if past is not None else None
    heads, size = (shape[1], shape[3]) if shape is not None else (None, None)
    if not isinstance(heads, int) or not isinstance(size, int):
        raise TypeError(f"{past}: the cache's heads must have known sizes")
    return heads, size


def _producer(value: ir.Value | None) -> ir.Node:
    node = value.producer() if value is not None else None
    assert node is not None, "standard attention reads the results of other nodes"
    return node


def _head_linear(heads: ir.Value | None) -> Linear:
    """The linear behind [B, H, S, K]: a reshape and a transpose lie between."""
    linear = match_linear(_producer(_producer(heads).inputs[0]).inputs[0])
    assert linear is not None, "standard attention splits the results of linears into heads"
    return linear


def _pack(insert: Inserter, name: str, linears: list[Linear]) -> ir.Value | None:
    """Insert one linear with the rows of q, k and v, if they are stored alike and have one input."""
    matrix = stacked([linear.matrix for linear in linears])
    if matrix is None or any(linear.x is not linears[0].x for linear in linears):
        return None
    biases = [linear.bias.const_value for linear in linears if linear.bias is not None]
    parts = [tensor for tensor in biases if isinstance(tensor, StreamedTensor)]
    bias = add_initializer(insert.graph, f"{name}.bias", _joined(parts)) if parts else None
    return insert.linear(name, linears[0].x, matrix, bias)


def _joined(parts: list[StreamedTensor]) -> StreamedTensor:
    """Vectors, one after the other."""

    def chunks() -> Iterator[Array]:
        for part in parts:
            yield from part.byte_chunks()

    size = sum(part.size for part in parts)
    return StreamedTensor(ir.DataType.FLOAT, (size,), chunks, ("joined", *(part.key for part in parts)))
