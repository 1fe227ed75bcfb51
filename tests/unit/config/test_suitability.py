"""Recipes and targets together."""

from __future__ import annotations

import pytest

from nvlm_deploy.config.catalog import list_names, load_yaml_model
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.config.suitability import check_engine, check_target
from nvlm_deploy.config.target import Target, capability
from nvlm_deploy.errors import UnsuitableError

GPUS = {"jetson-agx-orin-64": 87, "a100-80": 80, "l40s": 89, "h100-80": 90, "b200": 100}


def recipe(name: str) -> Recipe:
    return load_yaml_model("recipe", name, Recipe)


def target(name: str) -> Target:
    return load_yaml_model("target", name, Target)


def test_shipped_targets_know_their_gpu() -> None:
    shipped = {name: target(name).sm for name in list_names("target")}
    assert shipped == {**GPUS, "cpu-x86": None, "cpu-arm64": None}
    assert [capability(sm) for sm in (87, 100, 121)] == ["8.7", "10.0", "12.1"]


@pytest.mark.parametrize("name", GPUS)
def test_an_engine_for_a_gpu_is_refused_in_time(name: str) -> None:
    with pytest.raises(UnsuitableError, match=f"engines for {name} are made by tensorrt-llm") as caught:
        check_engine(recipe("int4-awq"), target(name))
    assert caught.value.exit_code == 3
    assert f"nvlm-build quantize --target {name}" in str(caught.value.hint)


def test_a_recipe_must_be_for_the_backend() -> None:
    check_engine(recipe("int4-awq"), target("cpu-x86"))
    with pytest.raises(UnsuitableError, match="recipe fp8-kv8 is for tensorrt-llm and vllm"):
        check_engine(recipe("fp8-kv8"), target("cpu-x86"))


@pytest.mark.parametrize(
    ("recipe_name", "runs_on"),
    [
        ("fp8", {"l40s", "h100-80", "b200"}),
        ("w4a8-awq", {"l40s", "h100-80", "b200"}),
        ("nvfp4", {"b200"}),
        ("int8-sq", set(GPUS)),
        ("int4-awq-vit-int8", set(GPUS)),
    ],
)
def test_a_gpu_is_refused_by_its_compute_capability(recipe_name: str, runs_on: set[str]) -> None:
    for name, sm in GPUS.items():
        if name in runs_on:
            check_target(recipe(recipe_name), target(name))
            continue
        needed = recipe(recipe_name).needs_sm
        assert needed is not None
        both = rf"capability {capability(needed)}, and {name} has {capability(sm)}"
        with pytest.raises(UnsuitableError, match=both):
            check_target(recipe(recipe_name), target(name))
