"""Losses of NVLM-X and NVLM-H: cross-attention is part of its layer, and tiles reach every measure."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from nvlm_deploy.eval.agreement import Agreement, agreement
from nvlm_deploy.eval.forced import model_logits
from nvlm_deploy.models import Nvlm, load_model
from nvlm_deploy.pipeline.sensitivity import (
    SensitivityPlan,
    SensitivityRequest,
    load_prompts,
    plan_sensitivity,
    run_sensitivity,
)
from nvlm_deploy.quantization import dequantize, quantize
from nvlm_deploy.sensitivity.prompts import answer_positions
from tests.variants import logits, write_variant

OPTION = "int4 g32 rtn"


@pytest.fixture(scope="module", params=["X", "H"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_variant(request.param, tmp_path_factory.mktemp("sensitive") / request.param)


@pytest.fixture(scope="module")
def plan(checkpoint: Path) -> SensitivityPlan:
    return plan_sensitivity(SensitivityRequest(checkpoint, ("int4-rtn",), count=2, by="group"))


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Nvlm:
    return load_model(checkpoint)


def rounded(model: Nvlm, linears: tuple[str, ...]) -> Nvlm:
    """The model with INT4 matrices in groups of 32 where names start so."""
    model, count = copy.deepcopy(model), 0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith(linears) and weight.dim() == 2:
                matrix = quantize(weight.numpy(), bits=4, group_size=32, symmetric=True)
                weight.copy_(torch.from_numpy(dequantize(matrix, weight.shape[1])))
                count += 1
    assert count
    return model


def divergence(plan: SensitivityPlan, model: Nvlm, changed: Nvlm) -> Agreement:
    total = Agreement()
    for sample in load_prompts(plan).samples:
        rows = answer_positions(sample)
        total += agreement(*(logits(each, sample)[rows].numpy() for each in (model, changed)))
    return total


def test_a_group_s_loss_is_the_divergence_of_the_whole_model(plan: SensitivityPlan, model: Nvlm) -> None:
    report = {unit.name: unit for unit in run_sensitivity(plan).units}
    stem = "language.layers.1.cross.attention"
    for unit, linears in {
        f"{stem}.k/v": (f"{stem}.k_", f"{stem}.v_"),
        f"{stem}.q_proj": (f"{stem}.q_",),
        f"{stem}.o_proj": (f"{stem}.o_",),
        # What the tower and the projector lose goes through the tiles.
        "vision.layers.1.mlp.fc1": ("vision.layers.1.mlp.fc1.",),
        "projector.fc1": ("projector.fc1.",),
    }.items():
        option = report[unit].option(OPTION)
        assert option is not None
        assert option.loss is not None
        expected = divergence(plan, model, rounded(model, linears))
        assert expected.kl > 0
        assert option.loss == pytest.approx(expected.kl, rel=2e-2), unit


def test_layer_by_layer_every_group_of_cross_attention_loses_something(checkpoint: Path) -> None:
    request = SensitivityRequest(checkpoint, ("int4-rtn",), count=2, by="group", local=True)
    report = run_sensitivity(plan_sensitivity(request))
    cross = [unit for unit in report.units if ".cross." in unit.name]
    assert [unit.name.rpartition(".")[2] for unit in cross] == ["k/v", "q_proj", "o_proj"]
    for unit in cross:
        option = unit.option(OPTION)
        assert option is not None
        assert option.loss is not None
        assert option.loss > 0


def test_by_layers_cross_attention_is_part_of_its_layer(checkpoint: Path) -> None:
    units = plan_sensitivity(SensitivityRequest(checkpoint, ("int4-rtn",), count=2)).units
    (layer,) = [unit for unit in units if unit.name == "language.layers.1"]
    assert "language.layers.1.cross.attention.k_proj.weight" in layer.matrices
    assert len(layer.matrices) == 7 + 4


def test_forced_logits_see_the_tiles(plan: SensitivityPlan, model: Nvlm) -> None:
    for sample in load_prompts(plan).samples:
        expected = logits(model, sample)[sample.prompt_length - 1 : -1]
        torch.testing.assert_close(torch.from_numpy(model_logits(model)(sample)), expected)
