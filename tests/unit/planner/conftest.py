"""The released 72B as a config.json, and questions about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.parameters import parameter_shapes
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.planner import DevicePlan, Parallel, PlanRequest, read_question, read_recipe
from nvlm_deploy.quantization.plan import QuantizationPlan, resolve
from nvlm_deploy.synthetic.shapes import SHAPES, released_style_config

Planner = Callable[..., DevicePlan]


@pytest.fixture(scope="session")
def config_2_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The widths of the 72B with two layers in tower and decoder: to plan dozens of engines."""
    path = tmp_path_factory.mktemp("2-layers") / "config.json"
    shape = replace(SHAPES["nvlm-d-72b"], layers=2, vision_layers=2)
    path.write_text(json.dumps(released_style_config(shape)))
    return path


@pytest.fixture(scope="session")
def config_72b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("72b") / "config.json"
    path.write_text(json.dumps(released_style_config(SHAPES["nvlm-d-72b"])))
    return path


@pytest.fixture(scope="session")
def plan_72b(config_72b: Path) -> Planner:
    """Plans a recipe for a target; more arguments as in `PlanRequest`."""

    shapes = parameter_shapes(NvlmConfig.from_file(config_72b))

    @cache
    def resolved(name: str) -> tuple[Recipe, QuantizationPlan]:
        recipe = read_recipe(name, ())
        return recipe, resolve(recipe, shapes)

    @cache
    def plan(recipe: str, target: str, tp: int = 1, pp: int = 1, **more: object) -> DevicePlan:
        request = PlanRequest(config_72b, recipe, target, Parallel(tp, pp), **more)  # type: ignore[arg-type]
        question, overrides = read_question(request)
        assert overrides == []
        return question.plan_resolved(*resolved(recipe))

    return plan
