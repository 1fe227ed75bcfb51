"""Graphs of ONNX Runtime bundles as its CUDA provider takes them. Not yet run on a GPU.

Which kernels there are is read from ONNX Runtime's own list, docs/OperatorKernels.md.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from nvlm_deploy.backends.onnxruntime.cuda import CACHE_NAMES, CACHE_TYPE_KEY
from nvlm_deploy.backends.onnxruntime.stored import all_nodes
from nvlm_deploy.errors import UnsuitableError

_ATTENTION = "GroupQueryAttention"
# Queries, keys and values, and the tables of the rotary embedding.
_ATTENTION_FLOATS = (0, 1, 2, 7, 8)
# What lowered graphs have with a CUDA kernel; MatMulIntegerToFloat is the one without.
_KERNELS = frozenset(
    (
        *("Add", "Cast", "Concat", "Conv", "DequantizeLinear", "Div", "Expand", "FusedMatMul", "Gather"),
        *("GatherBlockQuantized", "GatherND", "Gelu", "GroupQueryAttention", "LayerNormalization"),
        *("MatMulNBits", "Mul", "MultiHeadAttention", "QuantizeLinear", "QuickGelu", "ReduceMax", "Reshape"),
        *("ScatterND", "Shape", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"),
        *("Slice", "Sub", "Transpose", "Unsqueeze"),
        # Of cross-attention.
        *("And", "ConstantOfShape", "Greater", "GreaterOrEqual", "If", "Less", "MatMul", "Not", "Or"),
        *("Range", "Softmax", "Split", "Squeeze", "Tanh", "Where"),
    )
)


def cuda_graph(path: Path, changed: bytes | None = None) -> bytes:
    """Return the graph at `path`, or `changed` in its place, with attention and its cache in FP16.

    The CUDA kernel of attention knows no FP32. Its results are FP32 again; weights stay in their file.

    Raises:
        UnsuitableError: an operator of the graph has no CUDA kernel.
    """
    model = onnx.load_from_string(changed) if changed else onnx.load(str(path), load_external_data=False)
    graph = model.graph
    without = sorted({node.op_type for node in all_nodes(graph)} - _KERNELS)
    if without:
        raise UnsuitableError(
            f"{path} has operators that ONNX Runtime runs on the CPU only: {', '.join(without)}",
            hint="recipes with static INT8 activations multiply on the CPU; build one with weights of 4 or 8 "
            "bits, or fp16",
        )
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes += _half_attention(node) if node.op_type == _ATTENTION else [node]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in (*graph.input, *graph.output):
        if value.name.startswith(CACHE_NAMES):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    known = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, {**known, CACHE_TYPE_KEY: "float32"})
    serialized: bytes = model.SerializeToString()
    return serialized


def _half_attention(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    before: list[onnx.NodeProto] = []
    for index in _ATTENTION_FLOATS:
        name = node.input[index] if index < len(node.input) else ""
        if name:
            node.input[index] = f"{node.name}.in{index}.fp16"
            before.append(_cast(name, node.input[index], TensorProto.FLOAT16))
    result = node.output[0]
    node.output[0] = f"{result}.fp16"
    return [*before, node, _cast(node.output[0], result, TensorProto.FLOAT)]


def _cast(source: str, target: str, dtype: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=dtype)
