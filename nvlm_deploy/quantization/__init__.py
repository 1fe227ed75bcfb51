"""Quantization: a recipe resolved to one storage per tensor, and the numerics that make the integers."""

from nvlm_deploy.quantization.plan import PartBytes, QuantizationPlan, Storage, TensorPlan, resolve
from nvlm_deploy.quantization.rtn import QuantizedMatrix, dequantize, quantize

__all__ = [
    "PartBytes",
    "QuantizationPlan",
    "QuantizedMatrix",
    "Storage",
    "TensorPlan",
    "dequantize",
    "quantize",
    "resolve",
]
