"""Losses against a plain pass through a model whose weights were rounded by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nvlm_deploy.calibration import CalibrationSample
from nvlm_deploy.config.catalog import load_yaml_model
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.config.sensitivity import SensitivityReport
from nvlm_deploy.eval.agreement import Agreement, agreement
from nvlm_deploy.models import Nvlm, load_model
from nvlm_deploy.pipeline.sensitivity import (
    SensitivityPlan,
    SensitivityRequest,
    load_prompts,
    plan_sensitivity,
    recipe_agreement,
    run_sensitivity,
)
from nvlm_deploy.preprocess import normalize_tiles
from nvlm_deploy.quantization import dequantize, quantize
from nvlm_deploy.sensitivity.prompts import answer_positions


def rounded(model: Nvlm, belongs: Callable[[str], bool]) -> Nvlm:
    """The model with INT4 matrices in groups of 32 where `belongs` says so."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if belongs(name) and weight.dim() == 2 and "embed" not in name:
                matrix = quantize(weight.numpy(), bits=4, group_size=32, symmetric=True)
                weight.copy_(torch.from_numpy(dequantize(matrix, weight.shape[1])))
    return model


def answer_logits(model: Nvlm, sample: CalibrationSample) -> np.ndarray:
    ids_1S = torch.from_numpy(sample.input_ids)[None]
    mask_1S = torch.zeros_like(ids_1S, dtype=torch.bool)
    mask_1S[0, sample.visual_positions] = True
    with torch.inference_mode():
        logits_1SV: Tensor = model(ids_1S, torch.from_numpy(normalize_tiles(sample.tiles)), mask_1S)
    return logits_1SV[0, sample.prompt_length - 1 : -1].numpy()


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Nvlm:
    return load_model(tiny_checkpoint)


def divergence(plan: SensitivityPlan, model: Nvlm, changed: Nvlm) -> Agreement:
    total = Agreement()
    for sample in load_prompts(plan).samples:
        total += agreement(answer_logits(model, sample), answer_logits(changed, sample))
    return total


@pytest.mark.parametrize("unit", ["vision.layers.1", "projector", "language.layers.0", "language.lm_head"])
def test_a_units_loss_is_the_divergence_of_the_whole_model(
    unit: str, plan: SensitivityPlan, report: SensitivityReport, model: Nvlm
) -> None:
    changed = rounded(model, lambda name: name.startswith(f"{unit}."))
    expected = divergence(plan, model, changed)
    (found,) = [each for each in report.units if each.name == unit]
    option = found.option("int4 g32 rtn")
    assert option is not None
    assert option.loss == pytest.approx(expected.kl, rel=1e-3)
    assert option.top1 == expected.top1
    assert report.prompts.positions == expected.positions


def test_a_recipes_divergence_is_that_of_all_units_together(plan: SensitivityPlan, model: Nvlm) -> None:
    expected = divergence(plan, model, rounded(model, lambda name: True))
    found = recipe_agreement(plan, load_yaml_model("recipe", "int4-rtn", Recipe))
    assert found.kl == pytest.approx(expected.kl, rel=1e-3)


def test_the_local_measure_is_the_error_of_a_layers_own_output(tiny_checkpoint: Path, model: Nvlm) -> None:
    request = SensitivityRequest(tiny_checkpoint, ("int4-rtn",), count=2, local=True)
    plan = plan_sensitivity(request)
    report = run_sensitivity(plan)
    assert report.measure == "relative-error"
    changed = rounded(model, lambda name: name.startswith("vision.layers.0."))
    error = square = 0.0
    with torch.inference_mode():
        for sample in load_prompts(plan).samples:
            x_TPC = model.vision.embed(torch.from_numpy(normalize_tiles(sample.tiles)))
            exact, y = model.vision.layers[0](x_TPC), changed.vision.layers[0](x_TPC)
            error, square = error + float((y - exact).square().sum()), square + float(exact.square().sum())
    (option,) = report.units[0].options[1:]
    assert option.loss == pytest.approx(error / square, rel=1e-3)
    assert option.top1 is None


def test_positions_are_those_that_predict_the_answer(plan: SensitivityPlan) -> None:
    sample = load_prompts(plan).samples[0]
    positions = answer_positions(sample)
    answer = plan.tokenizer.decode(sample.input_ids[positions + 1].tolist())
    assert answer.strip()
    assert list(positions) == list(range(sample.prompt_length - 1, len(sample) - 1))
    without = sample.shorten(sample.prompt_length)
    assert without is not None
    assert list(answer_positions(without)) == [sample.prompt_length - 1]


def test_16_bits_lose_nothing_and_more_bits_lose_less(report: SensitivityReport) -> None:
    for unit in report.units:
        assert (unit.options[0].label, unit.options[0].loss) == ("16 bits", 0)
        losses = {option.label.split()[0]: option.loss for option in unit.options[1:]}
        assert 0 < (losses["int8"] or 0) < (losses["int4"] or 0)
