"""Bytes of a model's weights: as a recipe stores them, and as the engine of a backend keeps them.

A recipe's count is that of `nvlm-build recipes`: the quantized checkpoint that all engines are made of, with
FP32 scales. Engines differ: the GPU backends keep scales and everything that is not quantized in 16 bits, and
the rotation tables beside them; ONNX Runtime keeps what the recipe says, with whole pages for large tensors.
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
# A tensor of the graph's data file begins on a page: half a page is lost on average.
_HALF_PAGE = 2048
# Nodes of a layer in the graph's own file, measured on graphs of this project.
_VISION_NODES = 12_000
_DECODER_NODES = 7_500
# Manifest, tokenizer, configs and what does not grow with the model.
_COMPANIONS = 100_000


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


def engine_bytes(plan: QuantizationPlan, config: NvlmConfig, backend: Backend, context: int) -> PartBytes:
    """Weights and tables as an engine of `backend` keeps them on one device, all layers of it."""
    if backend == "onnxruntime":
        weights = recipe_bytes(plan, backend)
    else:
        weights = _by_part(plan.tensors.values(), lambda tensor: gpu_bytes(tensor, tensor.shape, plan))
    tables = rotary_bytes(config, context)
    return PartBytes(weights.vision, weights.projector, weights.language + tables)


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


def bundle_bytes(plan: QuantizationPlan, config: NvlmConfig, backend: Backend, context: int) -> int:
    """Size of all files of a bundle."""
    weights = engine_bytes(plan, config, backend, context).total
    if backend != "onnxruntime":
        return weights + _COMPANIONS
    layers = (config.vision.num_layers, config.language.num_layers)
    nodes = layers[0] * _VISION_NODES + layers[1] * _DECODER_NODES
    return weights + nodes + _padding(plan) + _COMPANIONS


def resident_bytes(plan: QuantizationPlan, config: NvlmConfig, backend: Backend, context: int) -> PartBytes:
    """Weights as they lie in memory when an engine is open.

    ONNX Runtime's CPU kernels have no FP16 and no FP8: such matrices are widened to FP32 when it opens them.
    """
    if backend != "onnxruntime":
        return engine_bytes(plan, config, backend, context)
    plan = adapt(plan)

    def widened(tensor: TensorPlan) -> int:
        if tensor.part != "embedding" and tensor.storage.format in ("fp16", "fp8"):
            return math.prod(tensor.shape) * _FLOAT32
        return plan.stored_bytes(tensor.name)

    weights = _by_part(plan.tensors.values(), widened)
    return PartBytes(weights.vision, weights.projector, weights.language + rotary_bytes(config, context))


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


def _padding(plan: QuantizationPlan) -> int:
    """What the page boundaries of the data files cost on average; q, k and v are one tensor there."""
    padding = 0
    for tensor in plan.tensors.values():
        fused = tensor.name.endswith(("k_proj.weight", "v_proj.weight"))
        if tensor.matrix and not fused:
            padding += _HALF_PAGE * (2 if tensor.storage.quantized else 1)
    return padding
