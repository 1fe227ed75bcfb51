"""Units and their options."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import pytest

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.config.sensitivity import SensitivityReport
from nvlm_deploy.config.yaml_file import parse_mapping
from nvlm_deploy.models import meta_model
from nvlm_deploy.pipeline.sensitivity import (
    SensitivityPlan,
    SensitivityRequest,
    plan_sensitivity,
    run_sensitivity,
)
from nvlm_deploy.quantization.plan import resolve
from nvlm_deploy.sensitivity.assign import assign
from nvlm_deploy.sensitivity.budget import Budget
from nvlm_deploy.sensitivity.options import Candidate, model_units, option_of
from nvlm_deploy.sensitivity.recipe_file import recipe_data, recipe_text
from nvlm_deploy.synthetic.shapes import SHAPES, released_style_config


@pytest.fixture(scope="module")
def by_group(tiny_checkpoint: Path) -> SensitivityPlan:
    return plan_sensitivity(SensitivityRequest(tiny_checkpoint, ("int4-rtn", "int8"), count=2, by="group"))


@pytest.fixture(scope="module")
def group_report(by_group: SensitivityPlan) -> SensitivityReport:
    return run_sensitivity(by_group)


@pytest.mark.parametrize("granularity", ["plan", "by_group"])
def test_units_hold_every_matrix_once_and_their_patterns_match_just_them(
    granularity: str, request: pytest.FixtureRequest
) -> None:
    plan: SensitivityPlan = request.getfixturevalue(granularity)
    tensors = plan.candidates[0].plan.tensors.values()
    matrices = [tensor.name for tensor in tensors if tensor.matrix and tensor.part != "embedding"]
    assert sorted(name for unit in plan.units for name in unit.matrices) == sorted(matrices)
    for unit in plan.units:
        # The unit of lm_head is a part, and needs no rule.
        if unit.part != "lm_head":
            assert sorted(fnmatch.filter(matrices, unit.pattern)) == sorted(unit.matrices), unit.name


def test_a_group_is_what_engines_fuse(by_group: SensitivityPlan) -> None:
    names = [unit.name for unit in by_group.units]
    stem = "language.layers.1."
    kinds = ("attention.q/k/v", "attention.o_proj", "mlp.gate/up", "mlp.down_proj")
    assert [name for name in names if name.startswith(stem)] == [stem + kind for kind in kinds]
    assert names[-1] == "language.lm_head"
    assert "projector.fc1" in names


def test_a_choice_by_group_is_a_recipe_that_engines_can_fuse(
    by_group: SensitivityPlan, group_report: SensitivityReport
) -> None:
    budget = Budget.parse("6.3bits")
    assignment = assign(group_report, by_group.units, by_group.candidates, budget)
    assert (
        len({each.option.label.split()[0] for each in assignment.units if each.unit.part == "language"}) > 1
    )
    data = recipe_data("mine", budget, assignment, by_group.candidates)
    recipe = Recipe.model_validate(parse_mapping(recipe_text(data, assignment, group_report), "mine"))
    weights = by_group.weights
    resolved = resolve(recipe, {name: weights.shape(name) for name in weights.names()})
    for each in assignment.units:
        assert {m: resolved.storage(m) for m in each.unit.matrices} == each.option.storages


def test_losses_of_groups_make_up_about_that_of_their_layer(
    group_report: SensitivityReport, tiny_checkpoint: Path
) -> None:
    layers = run_sensitivity(plan_sensitivity(SensitivityRequest(tiny_checkpoint, ("int4-rtn",), count=2)))
    for layer in layers.units[3:]:
        groups = [unit for unit in group_report.units if unit.name.startswith(layer.name)]
        options = [unit.option("int4 g32 rtn") for unit in groups]
        total = sum(option.loss or 0 for option in options if option)
        assert total == pytest.approx(layer.options[1].loss, rel=0.5), layer.name


def test_equal_storages_are_one_option(tiny_checkpoint: Path) -> None:
    names = ("int4-rtn", "int4-rtn-vit-int8")
    plan = plan_sensitivity(SensitivityRequest(tiny_checkpoint, names))
    decoder, tower = plan.units[-2], plan.units[0]
    assert [option.label for option in decoder.options] == ["16 bits", "int4 g32 rtn"]
    assert [option.label for option in tower.options] == ["16 bits", "int4 g32 rtn", "int8 g128 rtn"]
    second = plan.candidates[1]
    assert option_of(decoder, second) is decoder.options[1]
    assert option_of(tower, second) is tower.options[2]


def test_a_tied_head_is_no_unit(plan: SensitivityPlan) -> None:
    raw = released_style_config(SHAPES["nvlm-d-0.5b"])
    raw["llm_config"]["tie_word_embeddings"] = True
    config = NvlmConfig.from_dict(raw)
    shapes = {name: tuple(p.shape) for name, p in meta_model(config).named_parameters()}
    recipe = plan.candidates[0].recipe
    units = model_units(config, [Candidate(recipe, resolve(recipe, shapes))])
    assert "language.lm_head" not in [unit.name for unit in units]
    assert len(units) == 24 + 1 + 24


def test_a_unit_of_which_a_part_is_kept_says_so(tiny_checkpoint: Path) -> None:
    keep = "int8.keep=[{match: 'language.layers.0.mlp.down_proj.*', reason: r}]"
    plan = plan_sensitivity(SensitivityRequest(tiny_checkpoint, ("int8",), overrides=(keep,)))
    layers = [unit for unit in plan.units if unit.part == "language"]
    assert [unit.options[1].label for unit in layers] == ["int8 g64 rtn (int8)", "int8 g64 rtn"]
    assert layers[0].options[1].nbytes > layers[1].options[1].nbytes
