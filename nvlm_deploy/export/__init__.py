"""Export: standard ONNX graphs built from the config, with weights that stream when they are written."""

from nvlm_deploy.export.decoder import build_decoder
from nvlm_deploy.export.dialect import STANDARD_DECODER, STANDARD_VISION, Dialect
from nvlm_deploy.export.matrices import CodeReader, WeightReader
from nvlm_deploy.export.vision import build_vision
from nvlm_deploy.export.writer import Progress, write_model

__all__ = [
    "STANDARD_DECODER",
    "STANDARD_VISION",
    "CodeReader",
    "Dialect",
    "Progress",
    "WeightReader",
    "build_decoder",
    "build_vision",
    "write_model",
]
