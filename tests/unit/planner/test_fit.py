"""What fits where, why not, and what would."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nvlm_deploy.config.catalog import list_names
from nvlm_deploy.config.parameters import parameter_shapes
from nvlm_deploy.config.target import GIB, load_target
from nvlm_deploy.planner import (
    DevicePlan,
    Parallel,
    PlanRequest,
    rank_recipes,
    read_question,
    read_recipe,
    with_hints,
)
from nvlm_deploy.planner.memory import rank_memory
from nvlm_deploy.planner.sizes import sum_sizes
from nvlm_deploy.planner.workload import Workload
from nvlm_deploy.quantization.plan import resolve
from tests.unit.planner.conftest import Planner


def test_fp8_needs_two_h100_or_one_h200(plan_72b: Planner) -> None:
    one = plan_72b("fp8", "h100-80gb")
    assert not one.fits
    assert "its weights alone are 81.5 GiB" in one.reasons[0]
    assert plan_72b("fp8", "h100-80gb", tp=2).fits
    assert plan_72b("fp8", "h200-141gb").fits


def test_int4_runs_on_orin_and_is_not_built_there(plan_72b: Planner) -> None:
    plan = plan_72b("int4-awq", "jetson-agx-orin-64gb")
    assert plan.fits
    assert plan.build.on_target is False
    assert plan.build.reason is not None
    assert "building on jetson-agx-orin-64gb itself would take" in plan.build.reason
    assert plan.build.reason in plan.notes
    # 41.2 GB of decoder, 2.5 times on the host and once on the device, share one memory.
    assert plan.build.host_bytes + plan.build.device_bytes > 3.5 * 41.2e9
    # Opening has to map the file: read whole, it would be there twice.
    assert plan.opening.mapped_only
    assert not plan_72b("int4-awq", "h100-80gb").opening.mapped_only
    assert plan_72b("int4-awq", "h200-141gb").build.on_target


@pytest.mark.parametrize("target", [name for name in list_names("target") if "orin" in name])
def test_fp8_never_runs_on_orin(plan_72b: Planner, target: str) -> None:
    plan = plan_72b("fp8", target)
    assert not plan.fits
    assert plan.reasons[0] == f"recipe fp8 needs a GPU of compute capability 8.9, and {target} has 8.7"
    assert plan.hints[0].startswith("int8-sq and int4-awq run from 8.0 on")
    assert plan.prediction.ttft_ms == {}


def test_ranks_are_for_tensorrt_llm(plan_72b: Planner) -> None:
    plan = plan_72b("int4-awq", "l40s-48gb", tp=2, overrides=("backend=tensorrt_rtx",))
    assert "tensorrt_rtx engines of int4-awq run on one device, not on 2" in plan.reasons


def test_an_unknown_memory_refuses_nothing_and_says_so(plan_72b: Planner) -> None:
    plan = plan_72b("int4-rtn-vit-int8", "cpu-x86")
    assert plan.fits
    assert plan.largest is None
    assert any("the memory of cpu-x86 is not known" in note for note in plan.notes)
    assert not plan_72b("int4-rtn-vit-int8", "cpu-x86", overrides=("target.memory.usable_gib=16",)).fits


def test_the_largest_workload_is_the_last_that_fits(plan_72b: Planner) -> None:
    plan = plan_72b("int4-awq", "jetson-agx-orin-64gb")
    assert plan.largest is not None
    assert plan.largest.context is not None
    assert plan.largest.tiles == 6
    usable = load_target("jetson-agx-orin-64gb").usable_bytes
    assert usable is not None
    quantization = resolve(plan.recipe, parameter_shapes(plan.config))
    sizes = sum_sizes(plan.config, quantization, plan.target, Parallel())

    def needed(context: int, batch: int) -> int:
        load = Workload(6, context, batch)
        return rank_memory(plan.config, sizes, plan.target, Parallel(), load).total

    for batch, context in plan.largest.frontier:
        assert needed(context, batch) <= usable < needed(context + 64, batch)
    assert plan.largest.frontier[0] == (1, plan.largest.context)
    # A longer context than fits is refused, and the one that fits is named.
    longer = plan_72b("int4-awq", "jetson-agx-orin-64gb", context=plan.largest.context + 64)
    assert not longer.fits
    assert longer.largest is not None
    assert longer.largest.context == plan.largest.context


def test_every_hint_is_a_plan_that_fits(config_2_layers: Path) -> None:
    small = "target.memory.usable_gib=11"

    def plan(recipe: str, target: str, ranks: int, *overrides: str) -> DevicePlan:
        request = PlanRequest(config_2_layers, recipe, target, Parallel(ranks), overrides=overrides)
        question, of_recipe = read_question(request)
        return with_hints(question, question.plan(read_recipe(recipe, of_recipe)))

    hints = plan("fp16", "h100-80gb", 1, small).hints
    (ranks,) = (re.match(r"--tp (\d)", hint) for hint in hints if hint.startswith("--tp"))
    assert ranks is not None
    assert plan("fp16", "h100-80gb", int(ranks.group(1)), small).fits
    assert not plan("fp16", "h100-80gb", int(ranks.group(1)) // 2, small).fits
    (recipes,) = (hint for hint in hints if hint.startswith("--recipe"))
    for name in recipes.removeprefix("--recipe ").partition(":")[0].split(" or "):
        assert plan(name, "h100-80gb", 1, small).fits
    (targets,) = (hint for hint in hints if hint.startswith("--target"))
    for text in targets.removeprefix("--target ").partition(":")[0].split(" or "):
        name, _, override = text.partition(" --set ")
        assert plan("fp16", name, 1, *([override] if override else [])).fits


def test_all_recipes_are_ranked(config_2_layers: Path) -> None:
    overrides = ("target.memory.usable_gib=14.5",)
    question, _ = read_question(
        PlanRequest(config_2_layers, "auto", "jetson-agx-orin-64gb", overrides=overrides)
    )
    ranking = rank_recipes(question)
    rows = ranking.to_dict()
    assert sorted(row["recipe"] for row in rows) == list(list_names("recipe"))
    fits = [row["fits"] for row in rows]
    assert fits == sorted(fits, reverse=True), "those that fit come first"
    seconds = [row["answer_s"] for row in rows if row["fits"]]
    assert len(seconds) > 3
    assert seconds == sorted(seconds)
    assert ranking.best is not None
    assert ranking.best.recipe.name == "int4-awq-vit-int8"
    reasons = {row["recipe"]: row["reasons"] for row in rows}
    assert "needs a GPU of compute capability 8.9" in reasons["fp8"][0]
    assert "recipe int4-rtn is for onnxruntime" in reasons["int4-rtn"][0]
    assert all(reasons[row["recipe"]] for row in rows if not row["fits"])
    accuracy = {row["recipe"]: row["accuracy"] for row in rows}
    assert accuracy["int4-awq"] == "4 bits, calibrated"
    assert accuracy["int4-rtn"] == "4 bits, no calibration"
    assert accuracy["fp16"] == "16 bits"
    runnable = rank_recipes(question, runnable=True)
    assert [plan.recipe.name for plan in runnable.plans if plan.fits] == [
        row["recipe"] for row in rows if row["fits"]
    ]


def test_memory_is_told_by_what_it_is_for(plan_72b: Planner) -> None:
    memory = plan_72b("int4-awq", "jetson-agx-orin-64gb").memory
    assert memory.total == sum(memory.to_dict().values())
    assert memory.workspace == GIB
    assert memory.prompt_table == 7 * 256 * 8192 * 2
    # 8,192 tokens: residual, normed, attention output, and gate and up of the MLP, in 16 bits; FP32 logits.
    assert memory.decoder_activations == 8192 * (3 * 8192 + 2 * 29568) * 2 + 152064 * 4
