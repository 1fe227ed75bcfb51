"""Bytes of a model's weights: as a recipe stores them, and as the engine of a backend keeps them.

A recipe's count is that of `nvlm-build recipes`: the quantized checkpoint that all engines are made of, with
FP32 scales. Engines differ: the GPU backends keep scales and everything that is not quantized in 16 bits, and
the rotation tables beside them; ONNX Runtime keeps what the recipe says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nvlm_deploy.backends.onnxruntime.storage import adapt
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.target import Backend
from nvlm_deploy.quantization.plan import LM_HEAD, QuantizationPlan, Storage, TensorPlan

Shape = tuple[int, ...]

_FLOAT16 = 2
_FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class PartBytes:
    """Bytes by part; `language` includes embedding and `lm_head`."""

    vision: int
    projector: int
    language: int

    @property
    def total(self) -> int:
        return self.vision + self.projector + self.language

    def to_dict(self) -> dict[str, int]:
        return {
            "vision": self.vision,
            "projector": self.projector,
            "language": self.language,
            "total": self.total,
        }


def recipe_bytes(plan: QuantizationPlan, backend: Backend) -> PartBytes:
    """Weights as the recipe stores them; for ONNX Runtime in the forms that its kernels take."""
    plan = adapt(plan) if backend == "onnxruntime" else plan
    return _by_part(plan.tensors.values(), lambda tensor: plan.stored_bytes(tensor.name))


def engine_bytes(plan: QuantizationPlan, backend: Backend) -> PartBytes:
    """Weights as an engine of `backend` keeps them, all layers of it, without the tables of rotations."""
    if backend == "onnxruntime":
        return recipe_bytes(plan, backend)
    return _by_part(plan.tensors.values(), lambda tensor: gpu_bytes(tensor, tensor.shape, plan))


def gpu_bytes(tensor: TensorPlan, shape: Shape, plan: QuantizationPlan) -> int:
    """Bytes of `tensor`, or of the piece of it with `shape`, in an engine of a GPU backend."""
    if tensor.name == LM_HEAD and plan.shares_embedding:
        return 0
    storage = tensor.storage
    if not tensor.matrix or not storage.quantized:
        return math.prod(shape) * _FLOAT16
    rows, columns = shape
    return rows * columns * storage.bits // 8 + _gpu_scales(storage, rows, columns)


def rotary_bytes(config: NvlmConfig, context: int) -> int:
    """Cosines and sines of every position, FP32."""
    return context * config.language.head_dim * _FLOAT32


def resident_bytes(plan: QuantizationPlan, backend: Backend) -> PartBytes:
    """Weights as they lie in memory when an engine is open.

    ONNX Runtime's CPU kernels have no FP16 and no FP8: such matrices are widened to FP32 when it opens them.
    """
    if backend != "onnxruntime":
        return engine_bytes(plan, backend)
    plan = adapt(plan)

    def widened(tensor: TensorPlan) -> int:
        if tensor.part != "embedding" and tensor.storage.format in ("fp16", "fp8"):
            return math.prod(tensor.shape) * _FLOAT32
        return plan.stored_bytes(tensor.name)

    return _by_part(plan.tensors.values(), widened)


def _by_part(tensors: Iterable[TensorPlan], size: Callable[[TensorPlan], int]) -> PartBytes:
    sums = {"vision": 0, "projector": 0, "language": 0}
    for tensor in tensors:
        sums[tensor.part if tensor.part in sums else "language"] += size(tensor)
    return PartBytes(**sums)


def _gpu_scales(storage: Storage, rows: int, columns: int) -> int:
    """Scales: 16 bits for a group and an input (AWQ), 8 bits a block (NVFP4), 32 bits a row or matrix."""
    if storage.format == "nvfp4":
        return rows * storage.groups(columns) + 2 * _FLOAT32
    if storage.format == "fp8":
        return 2 * _FLOAT32
    if not storage.group_size:
        return rows * _FLOAT32
    inputs = columns * _FLOAT16 if storage.algorithm == "awq" else 0
    return rows * storage.groups(columns) * _FLOAT16 + inputs
