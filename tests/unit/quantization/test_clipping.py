"""The search for clipped magnitudes against a plain one, and against ModelOpt's."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nvlm_deploy.quantization.clipping import clipped_amax

GROUP = 32


def problem(rows: int = 24, columns: int = 96, inputs: int = 50) -> tuple[Tensor, Tensor]:
    """A matrix with heavy tails, which clipping helps, and inputs with correlated channels."""
    generator = torch.Generator().manual_seed(2)
    weight_NK = torch.randn(rows, columns, generator=generator)
    weight_NK = weight_NK * weight_NK.abs() * 0.01
    mix_KK = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    return weight_NK, torch.randn(inputs, columns, generator=generator) @ mix_KK


def losses(weight_NK: Tensor, rows_RK: Tensor, ratio: float) -> Tensor:
    """Mean square error of every group's outputs, float64 [N, J]."""
    weight_NJG = weight_NK.double().view(len(weight_NK), -1, GROUP)
    x_RJG = rows_RK.double().view(len(rows_RK), -1, GROUP)
    scale = weight_NJG.abs().amax(-1, keepdim=True) * ratio / 7
    error = (weight_NJG / scale).round().clamp(-8, 7) * scale - weight_NJG
    return torch.einsum("njg,rjg->rnj", error, x_RJG).square().mean(0)


def test_no_other_magnitude_costs_less() -> None:
    weight_NK, rows_RK = problem()
    amax_NJ = weight_NK.view(24, -1, GROUP).abs().amax(-1)
    ratios = [1 - 0.05 * step for step in range(11)]
    table = torch.stack([losses(weight_NK, rows_RK, ratio) for ratio in ratios])
    chosen_NJ = clipped_amax(weight_NK, rows_RK, GROUP)
    steps_NJ = ((1 - chosen_NJ / amax_NJ) / 0.05).round().long()
    assert torch.allclose(chosen_NJ, amax_NJ * (1 - 0.05 * steps_NJ))
    cost_NJ = table.gather(0, steps_NJ.unsqueeze(0))[0]
    assert torch.all(cost_NJ <= table.amin(0) * (1 + 1e-4))
    assert len(steps_NJ.unique()) > 3, "the search has something to choose"


def test_it_chooses_what_modelopt_chooses(modelopt: None) -> None:
    import modelopt.torch.quantization as mtq

    # ModelOpt looks at 64 rows of a batch.
    weight_NK, rows_RK = problem(rows=64, columns=128, inputs=64)
    linear = nn.Linear(128, 64, bias=False)
    linear.weight.data = weight_NK.clone()
    form = {"num_bits": 4, "block_sizes": {-1: GROUP, "type": "static"}}
    config = [
        {"quantizer_name": "*weight_quantizer", "cfg": form},
        {"quantizer_name": "*input_quantizer", "enable": False},
    ]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        mtq.quantize(
            nn.Sequential(linear),
            {"quant_cfg": config, "algorithm": {"method": "awq_clip"}},
            lambda model: model(rows_RK),
        )
    quantizer: Any = linear.weight_quantizer
    theirs_NJ = quantizer.amax.view(64, -1)
    ours_NJ = clipped_amax(weight_NK, rows_RK, GROUP)
    assert torch.allclose(ours_NJ, theirs_NJ, rtol=1e-6)


@pytest.mark.parametrize("what", ["weights", "inputs"])
def test_nothing_is_clipped_where_it_would_save_nothing(what: str) -> None:
    weight_NK, rows_RK = problem()
    (weight_NK if what == "weights" else rows_RK)[:, :GROUP] = 0
    amax_NJ = weight_NK.view(24, -1, GROUP).abs().amax(-1)
    assert torch.equal(clipped_amax(weight_NK, rows_RK, GROUP)[:, 0], amax_NJ[:, 0])
