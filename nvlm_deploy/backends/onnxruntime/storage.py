"""The forms in which ONNX Runtime's CPU kernels take the matrices of a quantized checkpoint."""

from __future__ import annotations

from dataclasses import replace

from nvlm_deploy.config.recipe import NVFP4_GROUP
from nvlm_deploy.quantization.plan import QuantizationPlan, Storage

# MatMulNBits has groups along the inputs; one scale a row is the same scale in all of its groups.
_ROW_GROUP = 128


def adapt(plan: QuantizationPlan) -> QuantizationPlan:
    """Return `plan` with storages that the kernels take; the numbers are the same.

    INT8 weights with one scale a row are multiplied in groups by MatMulNBits, except where static INT8
    activations make integer products of them. There is no kernel for NVFP4, where twice a number is an
    INT8 code, nor for INT4 that is widened to FP8.
    """
    tensors = {
        name: replace(tensor, storage=_adapted(tensor.storage)) for name, tensor in plan.tensors.items()
    }
    return replace(plan, tensors=tensors)


def _adapted(storage: Storage) -> Storage:
    if storage.algorithm is None:
        return storage
    if storage.format == "nvfp4":
        return replace(storage, format="int8", group_size=NVFP4_GROUP)
    if storage.format == "int4" and storage.activations == "fp8":
        return replace(storage, format="fp8", group_size=0)
    if storage.format == "int8" and storage.activations != "int8-static":
        return replace(storage, group_size=_ROW_GROUP)
    return storage
