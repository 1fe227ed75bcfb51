"""What can be said of TensorRT-LLM engines before anything is made: they are compiled from a build kit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nvlm_deploy.backends.makers import BuildProgress, EngineSettings
from nvlm_deploy.backends.tensorrt.engine import VISION_PATH
from nvlm_deploy.backends.tensorrt.suitable import check_plan
from nvlm_deploy.backends.tensorrt_llm.interface import interface_of
from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.suitability import check_cross_caches
from nvlm_deploy.config.target import Target
from nvlm_deploy.errors import UnsuitableError
from nvlm_deploy.export.tensorrt_llm import Release, find_release
from nvlm_deploy.export.tensorrt_llm.schemes import scheme_of
from nvlm_deploy.quantization.plan import QuantizationPlan, TensorPlan

ENGINE_FOLDER = "llm"
_TOWER = ("vision", "projector")


def adapt(plan: QuantizationPlan) -> QuantizationPlan:
    """See `EngineMaker.adapt`: checkpoints carry the numbers as they are stored."""
    return plan


def check(config: NvlmConfig, plan: QuantizationPlan, settings: EngineSettings) -> None:
    """See `EngineMaker.check`: the tower is TensorRT's, the language model a checkpoint's.

    Raises:
        UnsuitableError: names what is asked for and what there is.
    """
    target = settings.target
    if target is None or target.sm is None:
        raise UnsuitableError("TensorRT-LLM makes engines for GPUs, and the target has none")
    release = release_of(target)
    tower = {name: tensor for name, tensor in plan.tensors.items() if tensor.part in _TOWER}
    check_plan("tensorrt", config, replace(plan, tensors=tower, kv_cache="fp16"), settings)
    check_cross_caches(config, plan.kv_cache == "fp8")
    if plan.kv_cache == "fp8" and not release.fp8:
        raise UnsuitableError(
            f"recipe {plan.recipe}: TensorRT-LLM {release.name} has no FP8 cache",
            hint="use --set kv_cache=fp16",
        )
    for tensor in plan.tensors.values():
        if tensor.part == "language" and tensor.matrix:
            _check_language(tensor, release)


def files(config: NvlmConfig) -> tuple[str, ...]:
    """See `EngineMaker.files`; every further rank has an engine of its own."""
    return (VISION_PATH, f"{ENGINE_FOLDER}/config.json", f"{ENGINE_FOLDER}/rank0.engine")


def disk_bytes(plan: QuantizationPlan) -> int:
    """See `EngineMaker.disk_bytes`: those of a kit."""
    return sum(part.after for part in plan.sizes())


def tools() -> Mapping[str, str]:
    """See `EngineMaker.tools`; the device that compiles a kit adds its own."""
    return {}


def build_engine(
    weights: ModelWeights,
    config: NvlmConfig,
    plan: QuantizationPlan,
    settings: EngineSettings,
    output: Path,
    progress: BuildProgress | None = None,
) -> dict[str, Any]:
    """Refuse: these engines are made of kits (`nvlm_deploy.pipeline.kit`, `nvlm_deploy.pipeline.compile`).

    Raises:
        UnsuitableError: always.
    """
    raise UnsuitableError(
        "TensorRT-LLM engines are compiled from build kits", hint="nvlm-build engine writes one"
    )


def release_of(target: Target) -> Release:
    """The checkpoint format for the TensorRT-LLM of a target.

    Raises:
        UnsuitableError: the target has none, or one without an engine builder.
    """
    version = next((text for name, text in target.versions.items() if name == "tensorrt_llm"), None)
    if version is None:
        raise UnsuitableError(
            f"{target.name} has no TensorRT-LLM", hint=f"its engines are made by {', '.join(target.backends)}"
        )
    return find_release("0.12-jetson" if interface_of(version).name == "0.12" else "1.2")


def _check_language(tensor: TensorPlan, release: Release) -> None:
    storage = tensor.storage
    scheme = scheme_of(storage if storage.algorithm else None, tensor.name)
    if scheme.algorithm is not None:
        release.check_algorithm(scheme.algorithm)
