"""Whether a recipe and a target make an engine together, as far as their files say."""

from __future__ import annotations

from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.config.target import Target, capability
from nvlm_deploy.errors import UnsuitableError

# The backends whose engines are written; the others read quantized checkpoints.
ENGINE_BACKENDS = ("onnxruntime",)


def check_engine(recipe: Recipe, target: Target) -> None:
    """Refuse targets whose engines are not written, and recipes that a target's engines do not take.

    Raises:
        UnsuitableError: names target, backend and what there is instead.
    """
    if target.backend not in ENGINE_BACKENDS:
        raise UnsuitableError(
            f"engines for {target.name} are made by {target.backend}, and this release writes engines for "
            "ONNX Runtime only",
            hint="use --target cpu-x86 or cpu-arm64; for a GPU, nvlm-build quantize --target "
            f"{target.name} writes the checkpoint that an engine is made from",
        )
    if target.backend not in recipe.engines:
        raise UnsuitableError(
            f"recipe {recipe.name} is for {' and '.join(recipe.engines)}, and engines for {target.name} are "
            f"made by {target.backend}",
            hint="nvlm-build recipes shows which engines take which recipe",
        )
    check_target(recipe, target)


def check_target(recipe: Recipe, target: Target) -> None:
    """Refuse a recipe whose arithmetic a target's GPU does not have.

    Raises:
        UnsuitableError: names both compute capabilities.
    """
    if recipe.needs_sm is None or target.sm is None or target.sm >= recipe.needs_sm:
        return
    raise UnsuitableError(
        f"recipe {recipe.name} needs a GPU of compute capability {capability(recipe.needs_sm)}, and "
        f"{target.name} has {capability(target.sm)}",
        hint="int8-sq and int4-awq run from 8.0 on: nvlm-build recipes shows what each one needs",
    )
