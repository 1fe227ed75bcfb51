"""What TensorRT and TensorRT-RTX cannot do, found before the first second of work."""

from __future__ import annotations

from nvlm_deploy.backends.makers import EngineSettings
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.target import Target, capability
from nvlm_deploy.errors import UnsuitableError
from nvlm_deploy.quantization.plan import QuantizationPlan, TensorPlan

# Compute capabilities that TensorRT-RTX 1.7 compiles for, without those (7.5) that have no BF16 and no INT4.
RTX_CAPABILITIES = (80, 86, 89, 120, 121)
# Oldest compute capability by the formats that are multiplied in hardware.
_FP8_SINCE = 89


def check_plan(library: str, config: NvlmConfig, plan: QuantizationPlan, settings: EngineSettings) -> None:
    """Refuse devices and formats that this library, or these graphs, do not have.

    Raises:
        UnsuitableError: names what is asked for and what there is.
    """
    target = settings.target
    if target is None or target.sm is None:
        name = target.name if target else "any machine"
        raise UnsuitableError(f"{library} makes engines for GPUs, and {name} has none")
    if library == "tensorrt_rtx" and target.sm not in RTX_CAPABILITIES:
        known = ", ".join(capability(sm) for sm in RTX_CAPABILITIES)
        raise UnsuitableError(
            f"{target.name} has compute capability {capability(target.sm)}, and TensorRT-RTX compiles "
            f"for {known}",
            hint="use another maker of engines: --set backend=tensorrt or backend=tensorrt_llm",
        )
    if library not in target.onnx_opset:
        raise UnsuitableError(f"{target.name} does not say which opset {library} takes there")
    if plan.kv_cache == "fp8":
        raise UnsuitableError(
            f"recipe {plan.recipe}: these engines keep keys and values in {target.compute}, not in FP8",
            hint="use --set kv_cache=fp16",
        )
    limit = config.language.max_position_embeddings
    if not 1 <= settings.context_length <= limit:
        raise UnsuitableError(
            f"a context of {settings.context_length} tokens is outside this model's [1, {limit}]"
        )
    for tensor in plan.tensors.values():
        _check_tensor(plan.recipe, tensor, target)


def _check_tensor(recipe: str, tensor: TensorPlan, target: Target) -> None:
    storage = tensor.storage
    reason = None
    if storage.format == "nvfp4" or storage.activations == "nvfp4":
        reason = "NVFP4, which has no standard ONNX operators"
    elif storage.format == "int4" and storage.activations == "fp8":
        reason = "INT4 with FP8 activations, for which these graphs have no form"
    elif not storage.symmetric:
        reason = "zero points, which TensorRT wants to be zero"
    elif storage.format == "int8" and storage.group_size:
        reason = "INT8 in groups, for which TensorRT has no kernels"
    elif storage.group_size and tensor.shape[1] % storage.group_size:
        reason = f"groups of {storage.group_size}, which do not divide its {tensor.shape[1]:,} inputs"
    elif "fp8" in (storage.format, storage.activations) and (target.sm or 0) < _FP8_SINCE:
        reason = (
            f"FP8, and {target.name} has compute capability {capability(target.sm or 0)}, older than "
            f"{capability(_FP8_SINCE)}"
        )
    if reason is not None:
        raise UnsuitableError(
            f"recipe {recipe}: {tensor.name} is stored in {reason}",
            hint="int4-awq and int8-sq run from 8.0 on, fp8 from 8.9 on: nvlm-build recipes",
        )
