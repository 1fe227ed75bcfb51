"""Assignments as recipe files, and the reports that they are made from."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvlm_deploy.config.catalog import load_yaml_model
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.config.sensitivity import SensitivityReport, read_report
from nvlm_deploy.config.yaml_file import parse_mapping
from nvlm_deploy.errors import NvlmError, UnsuitableError, UsageError
from nvlm_deploy.pipeline.sensitivity import SensitivityPlan, SensitivityRequest, plan_sensitivity
from nvlm_deploy.quantization.plan import resolve
from nvlm_deploy.sensitivity.assign import Assignment, assign, fixed_bytes
from nvlm_deploy.sensitivity.budget import Budget
from nvlm_deploy.sensitivity.recipe_file import recipe_data, recipe_text


def assigned(plan: SensitivityPlan, report: SensitivityReport, budget: str) -> Assignment:
    return assign(report, plan.units, plan.candidates, Budget.parse(budget))


@pytest.mark.parametrize("budget", ["4.5bits", "5.5bits", "7bits", "16bits", "0.5MB"])
def test_the_recipe_says_what_was_chosen(
    budget: str, plan: SensitivityPlan, report: SensitivityReport
) -> None:
    assignment = assigned(plan, report, budget)
    data = recipe_data("mine", Budget.parse(budget), assignment, plan.candidates)
    recipe = Recipe.model_validate(parse_mapping(recipe_text(data, assignment, report), "mine.yaml"))
    resolved = resolve(recipe, {name: plan.weights.shape(name) for name in plan.weights.names()})
    for each in assignment.units:
        assert {m: resolved.storage(m) for m in each.unit.matrices} == each.option.storages
    assert sum(resolved.stored_bytes(name) for name in resolved.tensors) == assignment.nbytes


def test_a_budget_in_bytes_is_about_all_weights(plan: SensitivityPlan, report: SensitivityReport) -> None:
    fixed = fixed_bytes(plan.units, plan.candidates[0])
    assert assigned(plan, report, "0.5MB").nbytes <= 500_000
    least = fixed + sum(min(o.nbytes for o in unit.options) for unit in plan.units)
    assert assigned(plan, report, f"{least / 1000:.3f}kB").nbytes == least
    with pytest.raises(UnsuitableError, match="smallest formats"):
        assigned(plan, report, f"{(least - 1) / 1000:.3f}kB")


@pytest.mark.parametrize("text", ["5", "bits", "5 bytes", "-1GB", "0bits", "1e3GB"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no size"):
        Budget.parse(text)


def test_budgets_are_bits_or_bytes() -> None:
    assert Budget.parse("4.5 bits").left(weights=16, fixed=100) == 9
    assert Budget.parse("40GB").left(weights=16, fixed=10**9) == 39 * 10**9


def test_settings_are_taken_over_and_must_agree(tiny_checkpoint: Path) -> None:
    names = ("int4-awq-g32", "int4-awq-vit-int4wo")
    changes = (
        "int4-awq-vit-int4wo.weights.language.group_size=32",
        "int4-awq-vit-int4wo.weights.vision.group_size=16",
        "int4-awq-vit-int4wo.weights.projector.group_size=32",
    )
    steps = tuple(f"{name}.awq.alpha_step=0.5" for name in names)
    plan = plan_sensitivity(SensitivityRequest(tiny_checkpoint, names, overrides=(*changes, *steps)))
    report = made_up_report(plan)
    data = recipe_data("m", Budget.parse("9bits"), assigned(plan, report, "9bits"), plan.candidates)
    assert data["awq"] == {"alpha_step": 0.5}
    assert data["algorithm"] == "awq"
    assert {rule["match"] for rule in data["never"]} == {r.match for r in plan.candidates[0].recipe.never}
    differing = plan_sensitivity(SensitivityRequest(tiny_checkpoint, names, overrides=(*changes, steps[0])))
    with pytest.raises(UsageError, match="do not agree on awq"):
        recipe_data("m", Budget.parse("9bits"), assigned(plan, report, "9bits"), differing.candidates)


def test_formats_that_no_engine_takes_together_are_refused(tiny_checkpoint: Path) -> None:
    overrides = (
        "int8-wo.engines=[tensorrt]",
        "fp8-vit-fp8.engines=[vllm]",
        "fp8-vit-fp8.weights.language={format: fp16}",
    )
    names = ("int8-wo", "fp8-vit-fp8")
    plan = plan_sensitivity(SensitivityRequest(tiny_checkpoint, names, overrides=overrides))
    least = sum(min(option.nbytes for option in unit.options) for unit in plan.units)
    budget = Budget("the least", None, least + fixed_bytes(plan.units, plan.candidates[0]))
    assignment = assign(made_up_report(plan), plan.units, plan.candidates, budget)
    with pytest.raises(UnsuitableError, match="no engine takes both fp8-vit-fp8 and int8-wo"):
        recipe_data("m", budget, assignment, plan.candidates)


def made_up_report(plan: SensitivityPlan) -> SensitivityReport:
    """A report in which smaller options lose more, and vision layers little."""
    units = []
    for unit in plan.units:
        scale = 1e-3 if unit.part == "vision" else 1.0
        options = [
            {
                "label": option.label,
                "recipe": option.candidate.recipe.name if option.candidate else None,
                "nbytes": option.nbytes,
                "loss": scale * (2 * unit.weights - option.nbytes),
            }
            for option in unit.options
        ]
        units.append({"name": unit.name, "part": unit.part, "weights": unit.weights, "options": options})
    return SensitivityReport.model_validate(
        {
            "checkpoint_fingerprint": "none",
            "measure": "kl",
            "by": "layer",
            "recipes": [candidate.recipe for candidate in plan.candidates],
            "calibration": None,
            "prompts": {"name": None, "count": 1, "positions": 1, "digest": "none"},
            "units": units,
            "seconds": 0.0,
        }
    )


def test_an_option_that_is_not_finite_is_never_chosen(
    plan: SensitivityPlan, report: SensitivityReport
) -> None:
    data = report.model_dump()
    for option in data["units"][0]["options"]:
        if option["label"].startswith("int4"):
            option["loss"] = None
    broken = SensitivityReport.model_validate(data)
    first = assigned(plan, broken, "7bits").units[0]
    assert not first.option.label.startswith("int4")


def test_a_report_survives_its_file(report: SensitivityReport, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(report.model_dump_json())
    assert read_report(path) == report


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"measure":"kl"', '"measure":"mse"', "measure is 'mse'"),
        ('"units":', '"unit":', "the key 'unit' is not known"),
        ('"version":1', '"version":2', "version is 2"),
        ("{", "[", "Invalid JSON"),
    ],
)
def test_a_broken_report_is_named(
    old: str, new: str, problem: str, report: SensitivityReport, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    path.write_text(report.model_dump_json().replace(old, new, 1))
    with pytest.raises(NvlmError, match=r"report\.json") as caught:
        read_report(path)
    assert problem.lower() in caught.value.message.lower()


def test_a_report_of_other_formats_is_refused(
    plan: SensitivityPlan, report: SensitivityReport, tiny_checkpoint: Path
) -> None:
    other = plan_sensitivity(SensitivityRequest(tiny_checkpoint, ("int8",)))
    with pytest.raises(NvlmError, match="not those of this model"):
        assign(report, other.units, other.candidates, Budget.parse("9bits"))


def test_a_shipped_recipe_is_no_other_after_a_round_trip(plan: SensitivityPlan) -> None:
    recipe = load_yaml_model("recipe", "int4-rtn", Recipe)
    assert plan.candidates[0].recipe == recipe
