"""Checkpoints: the released layout in and out, and the Megatron-core layout."""

from nvlm_deploy.checkpoint.megatron import import_megatron
from nvlm_deploy.checkpoint.megatron_export import export_megatron
from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.checkpoint.safetensors_file import TensorInfo
from nvlm_deploy.checkpoint.summary import CheckpointSummary, summarize
from nvlm_deploy.checkpoint.weight_table import expected_tensors, model_shapes
from nvlm_deploy.checkpoint.writer import ShardedWriter, copy_companion_files, save_model

__all__ = [
    "CheckpointReader",
    "CheckpointSummary",
    "ModelWeights",
    "ShardedWriter",
    "TensorInfo",
    "copy_companion_files",
    "expected_tensors",
    "export_megatron",
    "import_megatron",
    "model_shapes",
    "save_model",
    "summarize",
]
