"""The dialect of the graphs that a TensorRT takes, by its opset and the numbers in the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from nvlm_deploy.export.dialect import Dialect, FloatType
from nvlm_deploy.quantization.plan import QuantizationPlan, Storage

Part = Literal["vision", "llm"]

PARTS: dict[Part, tuple[str, ...]] = {
    "vision": ("vision", "projector"),
    "llm": ("language", "lm_head", "embedding"),
}
# INT4 in groups and FP8 came into ONNX with these; TensorRT's parser has taken both since 10.0.
_BLOCKS_OPSET = 21
_FP8_OPSET = 21
# The newest that TensorRT-RTX 1.7 and TensorRT 11 are known to take, and the first with TensorScatter.
_SCATTER_OPSET = 24


def computes_in_16_bits(part: Part, plan: QuantizationPlan) -> bool:
    """Whether a part is more than FP32 throughout."""
    return any(storage.format != "fp32" for storage in _storages(part, plan))


def dialect_for(
    part: Part,
    plan: QuantizationPlan,
    opset: int,
    floats: FloatType,
    exceptions: Mapping[str, FloatType] | None = None,
) -> Dialect:
    """Return the dialect of one part: the target's opset, or the oldest newer one that has the formats.

    Graphs that are not quantized at all are FP32 throughout if the plan says so. From opset 24 on, keys and
    values are written in place, into a cache whose length TensorRT wants to know.
    """
    storages = _storages(part, plan)
    if not computes_in_16_bits(part, plan):
        floats = "fp32"
    needed = opset
    if any(storage.group_size for storage in storages):
        needed = max(needed, _BLOCKS_OPSET)
    if any(storage.format == "fp8" for storage in storages):
        needed = max(needed, _FP8_OPSET)
    in_place = needed >= _SCATTER_OPSET
    return Dialect(
        opset=needed,
        floats=floats,
        cache="scatter" if in_place else "concat",
        static_cache=in_place,
        # An engine with tensors of no elements cannot be tried without a GPU, so there are none.
        visual="select",
        half_attention=True,
        exceptions=exceptions or {},
    )


def _storages(part: Part, plan: QuantizationPlan) -> list[Storage]:
    return [t.storage for t in plan.tensors.values() if t.part in PARTS[part] and t.matrix]
