"""Losses by layer lead to recipes that lose less than uniform ones, and are what checkpoints really lose."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from nvlm_deploy.calibration import CalibrationSample
from nvlm_deploy.cli.main import run
from nvlm_deploy.config.catalog import load_yaml_model
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.eval.agreement import Agreement, agreement
from nvlm_deploy.models import Nvlm, load_model
from nvlm_deploy.models.quantized import load_quantized_model
from nvlm_deploy.pipeline.sensitivity import (
    SensitivityPlan,
    SensitivityRequest,
    load_prompts,
    plan_sensitivity,
    plan_with_recipes,
    recipe_agreement,
)
from nvlm_deploy.preprocess import PromptBuilder, normalize_tiles
from nvlm_deploy.sensitivity.prompts import Prompts, answer_positions, document_prompts

EXAMPLE = Path(__file__).parents[2] / "examples" / "nvlm-d-tiny"
FORMATS = "int4-rtn,int8"
COUNT = 12
DECODER_16 = ("weights.language.group_size=16", "weights.lm_head.group_size=16")
INT8 = "{format: int8, group_size: 64, activations: int8}"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Losses of the example's layers in INT4 and in INT8."""
    path = tmp_path_factory.mktemp("sensitivity") / "report.json"
    arguments = ["sensitivity", str(EXAMPLE), "--formats", FORMATS, "--count", str(COUNT), "-o", str(path)]
    assert run(arguments) == 0
    return path


@pytest.fixture(scope="module")
def plan() -> SensitivityPlan:
    return plan_sensitivity(SensitivityRequest(EXAMPLE, tuple(FORMATS.split(",")), count=COUNT))


@pytest.fixture(scope="module")
def other_pages(plan: SensitivityPlan) -> Prompts:
    """Pages that nothing was chosen by."""
    builder = PromptBuilder(plan.tokenizer, plan.weights.reader.config)
    return Prompts("others", document_prompts(builder, 3 * COUNT).samples[COUNT:])


@pytest.mark.parametrize(
    "overrides",
    [
        (*DECODER_16, "weights.vision.group_size=16", "weights.projector.group_size=16"),
        (*DECODER_16, f"weights.vision={INT8}", f"weights.projector={INT8}"),
    ],
    ids=["5 bits everywhere", "tower INT8, decoder 5 bits"],
)
def test_an_auto_recipe_beats_a_uniform_one_of_its_size(
    overrides: tuple[str, ...],
    report: Path,
    plan: SensitivityPlan,
    other_pages: Prompts,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uniform = load_yaml_model("recipe", "int4-rtn", Recipe, overrides)
    uniform_bits = _bits(plan, uniform)
    output = tmp_path / "auto.yaml"
    words = ["auto", str(EXAMPLE), "--budget", f"{uniform_bits}bits", "--sensitivity", str(report)]
    assert run([*words, "-o", str(output), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["bits"] <= uniform_bits
    assert result["lower_bound"] == result["predicted"]
    # Errors of layers are nearly independent, so that losses nearly add up.
    assert 0.5 < result["measured"] / result["predicted"] < 2
    auto = load_yaml_model("recipe", str(output), Recipe)
    assert _bits(plan, auto) == pytest.approx(result["bits"])
    losses = [recipe_agreement(plan, recipe, prompts=other_pages).kl for recipe in (auto, uniform)]
    assert losses[0] < losses[1]
    assert result["measured"] < recipe_agreement(plan, uniform).kl


def test_a_mixed_recipe_becomes_a_checkpoint_that_loses_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, checkpoint = tmp_path / "mixed.yaml", tmp_path / "checkpoint"
    few = ["--set", "calibration.count=8"]
    words = ["auto", str(EXAMPLE), "--formats", "int8-wo,fp8-vit-fp8", "--budget", "9bits"]
    assert run([*words, "--count", "6", *few, "-o", str(recipe), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert run(["quantize", str(EXAMPLE), "--recipe", str(recipe), *few, "-o", str(checkpoint)]) == 0
    layers = json.loads((checkpoint / "hf_quant_config.json").read_text())["quantization"]
    assert layers["quant_algo"] == "MIXED_PRECISION"
    assert {layer["quant_algo"] for layer in layers["quantized_layers"].values()} == {"FP8", "W8A16"}
    plan = plan_sensitivity(SensitivityRequest(EXAMPLE, ("int8-wo",), count=6))
    found = _agreement(load_model(EXAMPLE), load_quantized_model(checkpoint), load_prompts(plan).samples)
    assert found.kl == pytest.approx(result["measured"], rel=1e-3)
    assert found.top1 == result["top1"]


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("int4-gptq", ("weights.language.group_size=32",)),
        ("w4a8-awq", ("weights.language.group_size=32",)),
        ("int8-sq-vit-int8", ()),
        ("fp8-vit-fp8", ()),
        ("nvfp4", ()),
    ],
)
def test_linears_in_memory_are_those_of_a_checkpoint(
    recipe: str, overrides: tuple[str, ...], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    output, few = tmp_path / "checkpoint", "calibration.count=2"
    changes = [word for text in (*overrides, few) for word in ("--set", text)]
    assert run(["quantize", str(tiny_checkpoint), "--recipe", recipe, *changes, "-o", str(output)]) == 0
    own = (*(f"{recipe}.{text}" for text in overrides), few)
    plan = plan_sensitivity(SensitivityRequest(tiny_checkpoint, (recipe,), count=2, overrides=own))
    measured = recipe_agreement(plan, plan.candidates[0].recipe)
    samples = load_prompts(plan).samples
    found = _agreement(load_model(tiny_checkpoint), load_quantized_model(output), samples)
    assert measured.kl > 0
    assert measured.kl == pytest.approx(found.kl, rel=1e-2)


def _bits(plan: SensitivityPlan, recipe: Recipe) -> float:
    units = plan_with_recipes(plan.request, [recipe]).units
    stored = sum(unit.options[-1].nbytes for unit in units)
    return 8 * stored / sum(unit.weights for unit in units)


def _agreement(reference: Nvlm, candidate: Nvlm, samples: Sequence[CalibrationSample]) -> Agreement:
    total = Agreement()
    for sample in samples:
        ids_1S = torch.from_numpy(sample.input_ids)[None]
        mask_1S = torch.zeros_like(ids_1S, dtype=torch.bool)
        mask_1S[0, sample.visual_positions] = True
        pixels = torch.from_numpy(normalize_tiles(sample.tiles))
        with torch.inference_mode():
            exact, found = (
                model(ids_1S, pixels, mask_1S)[0, answer_positions(sample)].numpy()
                for model in (reference, candidate)
            )
        total += agreement(exact, found)
    return total
