"""Lower standard graphs to what ONNX Runtime's CPU kernels run best; results stay equal."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from nvlm_deploy.backends.onnxruntime.attention_passes import LowerCachedAttention, LowerVisionAttention
from nvlm_deploy.backends.onnxruntime.cross_passes import LowerCrossAttention
from nvlm_deploy.backends.onnxruntime.fusion_passes import (
    LowerActivations,
    LowerEmbedding,
    LowerLinears,
    LowerNorms,
)
from nvlm_deploy.backends.onnxruntime.integer_passes import LowerStaticInt8
from nvlm_deploy.backends.onnxruntime.rewrite import CONTRIB

# What is left of the standard domain after lowering is as old as this, so that older runtimes load it.
_LOWERED_OPSET = 21
_LOWERED_IR_VERSION = 10
_STANDARD_ONLY = {"Attention", "RMSNormalization", "RotaryEmbedding", "Swish", "TensorScatter"}


def lower(model: ir.Model) -> ir.Model:
    """Lower a standard graph in place; weights stay lazy and are laid out anew when written."""
    passes = ir.passes.Sequential(
        LowerStaticInt8(),
        LowerVisionAttention(),
        LowerCachedAttention(),
        LowerCrossAttention(),
        LowerActivations(),
        LowerLinears(),
        LowerEmbedding(),
        LowerNorms(),
        RemoveUnusedNodesPass(),
    )
    lowered = passes(model).model
    left = sorted({node.op_type for node in lowered.graph.all_nodes() if node.domain == ""} & _STANDARD_ONLY)
    assert not left, f"not lowered: {', '.join(left)}"
    lowered.graph.opset_imports.update({"": _LOWERED_OPSET, CONTRIB: 1})
    lowered.ir_version = _LOWERED_IR_VERSION
    return lowered
