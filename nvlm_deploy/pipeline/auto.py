"""Stage: measured losses and a budget -> a recipe that assigns a format to every layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.config.sensitivity import SensitivityReport, read_report
from nvlm_deploy.config.yaml_file import parse_mapping
from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.eval.agreement import Agreement
from nvlm_deploy.pipeline.atomic import check_output
from nvlm_deploy.pipeline.resumable import write_whole
from nvlm_deploy.pipeline.sensitivity import (
    SensitivityPlan,
    SensitivityRequest,
    load_prompts,
    plan_sensitivity,
    plan_with_recipes,
    recipe_agreement,
    run_sensitivity,
)
from nvlm_deploy.progress import ProgressCallback, no_progress
from nvlm_deploy.quantization.plan import resolve
from nvlm_deploy.sensitivity.assign import Assignment, assign, uniform
from nvlm_deploy.sensitivity.budget import Budget
from nvlm_deploy.sensitivity.recipe_file import recipe_data, recipe_text


@dataclass(frozen=True, slots=True)
class AutoRequest:
    """What a user asks for.

    report: losses that were measured before; what they were measured with is in it. check: measure the
    recipe as a whole, too, which the exact measure alone can.
    """

    measuring: SensitivityRequest
    budget: str
    output: Path
    report: Path | None = None
    check: bool = True


@dataclass(frozen=True, slots=True)
class AutoPlan:
    """A choice that can start; `report` is None if losses are to be measured first."""

    measuring: SensitivityPlan
    budget: Budget
    output: Path
    report: SensitivityReport | None
    check: bool


@dataclass(frozen=True, slots=True)
class Uniform:
    """A candidate's own recipe in the same terms: bits per weight, and the sum of its losses."""

    recipe: str
    bits: float
    loss: float


@dataclass(frozen=True, slots=True)
class AutoResult:
    """The recipe file with what is in it. measured: the recipe as a whole against FP32, if it was checked."""

    output: Path
    recipe: Recipe
    assignment: Assignment
    report: SensitivityReport
    uniform: tuple[Uniform, ...]
    measured: Agreement | None

    def to_dict(self) -> dict[str, Any]:
        """A structure of plain types for JSON."""
        choice = self.assignment.choice
        return {
            "recipe": str(self.output),
            "measure": self.report.measure,
            "bits": self.assignment.bits,
            "bytes": self.assignment.nbytes,
            "predicted": choice.loss,
            "lower_bound": choice.lower_bound,
            "measured": None if self.measured is None else self.measured.kl,
            "top1": None if self.measured is None else self.measured.top1,
            "units": [
                {"unit": each.unit.name, "stored": each.option.label, "bits": each.bits, "loss": each.loss}
                for each in self.assignment.units
            ],
            "uniform": [
                {"recipe": each.recipe, "bits": each.bits, "predicted": each.loss} for each in self.uniform
            ],
        }


def plan_auto(request: AutoRequest) -> AutoPlan:
    """Check a request against checkpoint, recipes and report; writes nothing.

    Raises:
        UsageError: the output exists or is no recipe file, the budget is no size, formats are named beside
            a report.
        NvlmError: the report is not in order, or of another checkpoint.
    """
    if request.output.suffix not in (".yaml", ".yml"):
        raise UsageError(
            f"the output {request.output} is no recipe file", hint="give a name that ends in .yaml"
        )
    check_output(request.output)
    budget = Budget.parse(request.budget)
    if request.report is None:
        return AutoPlan(plan_sensitivity(request.measuring), budget, request.output, None, request.check)
    report = read_report(request.report)
    measuring = plan_with_recipes(_as_measured(request.measuring, report), report.recipes)
    if report.checkpoint_fingerprint != measuring.weights.reader.fingerprint():
        raise NvlmError(
            f"the report {request.report} is about another checkpoint than {measuring.request.checkpoint}",
            hint="measure again: nvlm-build sensitivity",
        )
    return AutoPlan(measuring, budget, request.output, report, request.check)


def run_auto(plan: AutoPlan, progress: ProgressCallback = no_progress) -> AutoResult:
    """Measure if needed, choose, write the recipe, and measure it.

    Raises:
        UnsuitableError: no choice fits into the budget.
        UsageError: the formats' recipes do not agree on what a recipe has once.
    """
    measuring = plan.measuring
    prompts = load_prompts(measuring) if plan.report is None or plan.check else None
    report = plan.report or run_sensitivity(measuring, progress, prompts)
    assignment = assign(report, measuring.units, measuring.candidates, plan.budget)
    data = recipe_data(plan.output.stem, plan.budget, assignment, measuring.candidates)
    text = recipe_text(data, assignment, report)
    recipe = _read_back(plan, text, assignment)
    plan.output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(plan.output, text.encode())
    measured = None
    if plan.check and report.measure == "kl":
        measured = recipe_agreement(measuring, recipe, progress, prompts)
    rows = [(c.recipe.name, *uniform(report, measuring.units, c)) for c in measuring.candidates]
    return AutoResult(plan.output, recipe, assignment, report, tuple(Uniform(*row) for row in rows), measured)


def _as_measured(request: SensitivityRequest, report: SensitivityReport) -> SensitivityRequest:
    """The request of a report: the same calibration and the same prompts."""
    if request.formats or request.overrides:
        raise UsageError(
            "the formats are those of the report", hint="give --sensitivity, or --formats with --set"
        )
    calibration = report.calibration
    return replace(
        request,
        calibration=calibration.name if calibration else request.calibration,
        overrides=tuple(f"calibration.{text}" for text in calibration.overrides) if calibration else (),
        prompts=report.prompts.name,
        count=report.prompts.count,
        local=report.measure != "kl",
        by=report.by,
    )


def _read_back(plan: AutoPlan, text: str, assignment: Assignment) -> Recipe:
    """Read the recipe as a build would, and check that it says what was chosen."""
    recipe = Recipe.model_validate(parse_mapping(text, str(plan.output)))
    weights = plan.measuring.weights
    resolved = resolve(recipe, {name: weights.shape(name) for name in weights.names()})
    for each in assignment.units:
        for matrix, storage in each.option.storages.items():
            if resolved.storage(matrix) != storage:
                raise NvlmError(
                    f"{plan.output}: {matrix} is not stored as chosen: {resolved.storage(matrix)}"
                )
    return recipe
