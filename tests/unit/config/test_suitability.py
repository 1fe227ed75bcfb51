"""Recipes and targets together."""

from __future__ import annotations

import pytest

from nvlm_deploy.config.catalog import list_names, load_yaml_model
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.config.suitability import check_backend, check_engine, check_target
from nvlm_deploy.config.target import capability, load_target
from nvlm_deploy.errors import UnsuitableError

GPUS = {name: load_target(name).sm for name in list_names("target") if load_target(name).gpu}
ORINS = {name for name in GPUS if "orin" in name}
HOPPER_AND_ADA = {"l4-24gb", "l40s-48gb", "rtx-4090-24gb", "h100-80gb", "h200-141gb"}
BLACKWELL = {"b200-180gb", "rtx-5090-32gb", "rtx-pro-6000-96gb", "dgx-spark", "jetson-agx-thor-128gb"}


def recipe(name: str) -> Recipe:
    return load_yaml_model("recipe", name, Recipe)


def test_the_shipped_gpus_are_those_of_the_documentation() -> None:
    assert set(GPUS) == ORINS | HOPPER_AND_ADA | BLACKWELL | {"a100-80gb"}
    assert len(ORINS) == 5
    assert {GPUS[name] for name in ORINS} == {87}
    assert [capability(sm) for sm in (87, 100, 121)] == ["8.7", "10.0", "12.1"]


def test_every_maker_of_engines_is_taken() -> None:
    check_engine(recipe("int4-awq"), load_target("h100-80gb"))
    check_engine(recipe("int4-awq"), load_target("jetson-agx-orin-64gb"))


def test_plans_of_tensorrt_are_engines() -> None:
    check_engine(recipe("int4-awq"), load_target("l40s-48gb", ["backend=tensorrt_rtx"]))
    check_engine(recipe("int4-awq"), load_target("jetson-agx-orin-64gb", ["backend=tensorrt"]))


def test_a_recipe_must_be_for_the_backend() -> None:
    check_engine(recipe("int4-awq"), load_target("cpu-x86"))
    with pytest.raises(UnsuitableError, match="recipe fp8-kv8 is for tensorrt_llm and vllm"):
        check_engine(recipe("fp8-kv8"), load_target("cpu-x86"))
    check_backend(recipe("fp8-kv8"), load_target("h100-80gb"))
    with pytest.raises(UnsuitableError, match="for h100-80gb are made by onnxruntime"):
        check_backend(recipe("fp8-kv8"), load_target("h100-80gb", ["backend=onnxruntime"]))


@pytest.mark.parametrize(
    ("recipe_name", "runs_on"),
    [
        ("fp8", set(GPUS) - ORINS - {"a100-80gb"}),
        ("nvfp4", BLACKWELL),
        ("int4-awq-vit-int8", set(GPUS)),
    ],
)
def test_a_gpu_is_refused_by_its_compute_capability(recipe_name: str, runs_on: set[str]) -> None:
    needed = recipe(recipe_name).needs_sm
    assert needed is not None
    for name, sm in GPUS.items():
        # By TensorRT where TensorRT-LLM has kernels for some of the formats only.
        target = load_target(name, ["backend=tensorrt"])
        if name in runs_on:
            check_target(recipe(recipe_name), target)
            continue
        assert sm is not None
        both = rf"capability {capability(needed)}, and {name} has {capability(sm)}"
        with pytest.raises(UnsuitableError, match=both):
            check_target(recipe(recipe_name), target)


def test_a_precision_belongs_to_the_maker_of_the_engine() -> None:
    target = load_target("rtx-5090-32gb")
    with pytest.raises(UnsuitableError, match="has language in int4, which tensorrt_llm does not") as caught:
        check_target(recipe("int4-awq"), target)
    assert "--recipe auto --target rtx-5090-32gb" in str(caught.value.hint)
    check_target(recipe("int4-awq"), load_target("rtx-5090-32gb", ["backend=tensorrt_rtx"]))
    # The tower of a TensorRT-LLM engine is TensorRT's, which multiplies in INT8 there.
    check_target(recipe("int4-awq-vit-int8"), load_target("b200-180gb"))
    with pytest.raises(UnsuitableError, match="has language in int8, which tensorrt_llm does not"):
        check_target(recipe("int8-sq"), load_target("b200-180gb"))
