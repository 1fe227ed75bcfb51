"""Whether a recipe and a target make an engine together, as far as their files say."""

from __future__ import annotations

from collections.abc import Iterator

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.recipe import ActivationType, Recipe, WeightFormat
from nvlm_deploy.config.target import Backend, Target, capability
from nvlm_deploy.errors import UnsuitableError

# Verification looks into the graphs; those of the other makers are compiled for a GPU.
VERIFIABLE_BACKEND = "onnxruntime"

# What a format of activations is multiplied in; all others leave it to the weights' format.
_ACTIVATION_PRECISIONS: dict[ActivationType, str] = {"int8-static": "int8", "fp8": "fp8", "nvfp4": "nvfp4"}


# Who makes engines of models with gated cross-attention.
_CROSS_BACKENDS: tuple[Backend, ...] = ("onnxruntime", "tensorrt_llm")
# The first release of TensorRT-LLM whose decoder with cross-attention ours is built on.
_CROSS_TENSORRT_LLM = 1


def check_variant(config: NvlmConfig) -> None:
    """Refuse models with cross-attention where only NVLM-D is known.

    Raises:
        UnsuitableError: names the variant.
    """
    if config.variant != "D":
        raise UnsuitableError(
            f"this is an NVLM-{config.variant}, and no server knows more than NVLM-D",
            hint="nvlm-build engine makes engines of it; nvlm-build export --format trtllm, a checkpoint",
        )


def check_cross_backend(config: NvlmConfig, target: Target) -> None:
    """Refuse models with cross-attention for makers of engines that have none.

    Raises:
        UnsuitableError: names variant and backend.
    """
    if config.variant == "D":
        return
    maker: str = target.backend
    release = target.versions.get("tensorrt_llm", "")
    if maker == "tensorrt_llm" and int(release.split(".")[0] or 0) < _CROSS_TENSORRT_LLM:
        maker = f"TensorRT-LLM {release}"
    elif maker in _CROSS_BACKENDS:
        return
    raise UnsuitableError(
        f"this is an NVLM-{config.variant}, and {maker} makes engines of NVLM-D only",
        hint="onnxruntime has cross-attention: --target cpu-x86, or --set backend=onnxruntime",
    )


def check_cross_caches(config: NvlmConfig, fp8_cache: bool) -> None:
    """Refuse what TensorRT-LLM's caches cannot hold of tiles.

    Raises:
        UnsuitableError: heads of two widths, or a cache in FP8.
    """
    cross = config.cross_attention
    if cross is None:
        return
    if cross.head_dim != config.language.head_dim:
        raise UnsuitableError(
            f"heads of cross-attention have {cross.head_dim} features and the decoder's "
            f"{config.language.head_dim}: TensorRT-LLM's caches have one size of heads",
            hint="onnxruntime makes engines of this checkpoint",
        )
    if fp8_cache:
        raise UnsuitableError(
            f"the FP8 cache of an NVLM-{config.variant} would hold keys and values of tiles, too, whose "
            "scales are never measured",
            hint="quantize with --set kv_cache=fp16",
        )


def check_cross_ranks(config: NvlmConfig, pp: int) -> None:
    """Refuse pipeline stages for models with cross-attention.

    Raises:
        UnsuitableError: there are several.
    """
    if config.variant != "D" and pp > 1:
        raise UnsuitableError(
            f"--pp {pp}: TensorRT-LLM's decoder with cross-attention has no pipeline stages",
            hint="use --tp alone for NVLM-X and NVLM-H",
        )


def check_engine(recipe: Recipe, target: Target) -> None:
    """Refuse recipes that a target's engines do not take.

    Raises:
        UnsuitableError: names recipe, target and backend.
    """
    check_backend(recipe, target)
    check_target(recipe, target)


def check_backend(recipe: Recipe, target: Target) -> None:
    """Refuse a recipe that the chosen maker of engines does not take.

    Raises:
        UnsuitableError: names recipe and backend.
    """
    if target.backend not in recipe.engines:
        raise UnsuitableError(
            f"recipe {recipe.name} is for {' and '.join(recipe.engines)}, and engines for {target.name} are "
            f"made by {target.backend}",
            hint="nvlm-build recipes shows which engines take which recipe",
        )


def check_target(recipe: Recipe, target: Target) -> None:
    """Refuse a recipe whose arithmetic a target's GPU, or its engines, do not have.

    Raises:
        UnsuitableError: names both compute capabilities, or the precision and the backend.
    """
    if recipe.needs_sm is not None and target.sm is not None and target.sm < recipe.needs_sm:
        raise UnsuitableError(
            f"recipe {recipe.name} needs a GPU of compute capability {capability(recipe.needs_sm)}, and "
            f"{target.name} has {capability(target.sm)}",
            hint="int8-sq and int4-awq run from 8.0 on: nvlm-build recipes shows what each one needs",
        )
    for part, precision, backend in _needed(recipe, target):
        if not target.supports(precision, backend):
            raise UnsuitableError(
                f"recipe {recipe.name} has {part} in {precision}, which {backend} does not multiply with on "
                f"{target.name}: {', '.join(target.precisions[backend])}",
                hint="nvlm-build recipes shows the formats of all recipes; nvlm-build plan --recipe auto "
                f"--target {target.name} ranks them",
            )


def _needed(recipe: Recipe, target: Target) -> Iterator[tuple[str, str, Backend]]:
    """Part, precision and maker of everything that is multiplied. TensorRT-LLM's tower is TensorRT's."""
    separate = target.backend == "tensorrt_llm" and "tensorrt" in target.precisions
    tower: Backend = "tensorrt" if separate else target.backend
    weights = recipe.weights
    for part, backend in (
        ("vision", tower),
        ("projector", tower),
        ("language", target.backend),
        ("lm_head", target.backend),
    ):
        for precision in _precisions(weights.of(part)):
            yield part, precision, backend
    for rule in recipe.layers:
        for precision in _precisions(rule):
            vision = rule.match.startswith(("vision", "projector"))
            yield f"'{rule.match}'", precision, tower if vision else target.backend


def _precisions(weights: WeightFormat) -> tuple[str, ...]:
    activations = _ACTIVATION_PRECISIONS.get(weights.activations)
    return (weights.format,) if activations is None else (weights.format, activations)
