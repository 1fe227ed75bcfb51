"""Quantization: a recipe resolved to one storage per tensor, and the numerics that make the integers."""

from nvlm_deploy.quantization.plan import QuantizationPlan, Storage, TensorPlan, resolve
from nvlm_deploy.quantization.rtn import QuantizedMatrix, dequantize, quantize

__all__ = [
    "QuantizationPlan",
    "QuantizedMatrix",
    "Storage",
    "TensorPlan",
    "dequantize",
    "quantize",
    "resolve",
]
