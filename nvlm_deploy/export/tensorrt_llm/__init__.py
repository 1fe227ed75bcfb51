"""TensorRT-LLM checkpoints of the language model: written from ours, and read back into the reference."""

from nvlm_deploy.export.tensorrt_llm.config import CONFIG_NAME, QUANT_CONFIG_NAME, model_config
from nvlm_deploy.export.tensorrt_llm.parallel import Parallel
from nvlm_deploy.export.tensorrt_llm.reader import RECORD_NAME, TensorRtLlmReader, load_tensorrt_llm_model
from nvlm_deploy.export.tensorrt_llm.releases import DEFAULT_RELEASE, RELEASES, Release, find_release
from nvlm_deploy.export.tensorrt_llm.source import LanguageSource, plan_layout
from nvlm_deploy.export.tensorrt_llm.table import Layout
from nvlm_deploy.export.tensorrt_llm.writer import DTYPES, RankFiles

__all__ = [
    "CONFIG_NAME",
    "DEFAULT_RELEASE",
    "DTYPES",
    "QUANT_CONFIG_NAME",
    "RECORD_NAME",
    "RELEASES",
    "LanguageSource",
    "Layout",
    "Parallel",
    "RankFiles",
    "Release",
    "TensorRtLlmReader",
    "find_release",
    "load_tensorrt_llm_model",
    "model_config",
    "plan_layout",
]
