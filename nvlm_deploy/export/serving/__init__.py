"""Unified checkpoints for servers: what vLLM, SGLang and TensorRT-LLM read, and whether it is there."""

from nvlm_deploy.export.serving.check import Finding, ServingReport, check_directory, check_unified
from nvlm_deploy.export.serving.loaders import LOADERS, Loader, find_loader

__all__ = ["LOADERS", "Finding", "Loader", "ServingReport", "check_directory", "check_unified", "find_loader"]
