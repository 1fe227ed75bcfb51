"""GPTQ against ModelOpt's own, which quantizes whole matrices, and against what it is for."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nvlm_deploy.config.recipe import GptqSettings
from nvlm_deploy.quantization.formats import Int4
from nvlm_deploy.quantization.modelopt import gptq_weights

GROUP = 32


def problem() -> tuple[Tensor, Tensor]:
    """A matrix, and inputs with correlated channels, which GPTQ makes use of."""
    generator = torch.Generator().manual_seed(4)
    mix_KK = torch.randn(128, 128, generator=generator) / 128**0.5 + torch.eye(128)
    rows_RK = torch.randn(300, 128, generator=generator) @ mix_KK
    return torch.randn(48, 128, generator=generator) * 0.05, rows_RK


@pytest.mark.parametrize("block_size", [128, 48])
def test_it_rounds_as_modelopt_rounds(modelopt: None, block_size: int) -> None:
    import modelopt.torch.quantization as mtq

    weight_NK, rows_RK = problem()
    settings = GptqSettings(block_size=block_size)
    linear = nn.Linear(128, 48, bias=False)
    linear.weight.data = weight_NK.clone()
    form = {"num_bits": 4, "block_sizes": {-1: GROUP, "type": "static"}}
    config: list[dict[str, Any]] = [
        {"quantizer_name": "*weight_quantizer", "cfg": form},
        {"quantizer_name": "*input_quantizer", "enable": False},
    ]
    # It takes widths that are multiples of the block alone; other ones get the largest common divisor.
    algorithm = {"method": "gptq", "perc_damp": 0.01, "block_size": {128: 128, 48: 16}[block_size]}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = nn.Sequential(linear)
        mtq.quantize(model, {"quant_cfg": config, "algorithm": algorithm}, lambda model: model(rows_RK))
    amax_NJ = Int4(GROUP).amax(weight_NK)
    ours_NK = gptq_weights(weight_NK.clone(), rows_RK, amax_NJ, GROUP, settings)
    # A rounding that falls the other way in the last bit moves all that comes behind it in its row.
    same_N = torch.isclose(ours_NK, linear.weight, rtol=1e-4, atol=1e-6).all(1)
    assert same_N.float().mean() > 0.9


def test_outputs_are_nearer_than_those_of_rounding_to_nearest(modelopt: None) -> None:
    weight_NK, rows_RK = problem()
    amax_NJ = Int4(GROUP).amax(weight_NK)
    nearest_NK = Int4(GROUP).fake(weight_NK, amax_NJ)
    compensated_NK = gptq_weights(weight_NK.clone(), rows_RK, amax_NJ, GROUP, GptqSettings())

    def error(rounded_NK: Tensor) -> float:
        return float((rows_RK @ (rounded_NK - weight_NK).T).square().mean())

    assert error(compensated_NK) < 0.8 * error(nearest_NK)
    # What it returns is on the grid, so packing changes nothing.
    assert torch.equal(Int4(GROUP).fake(compensated_NK, amax_NJ), compensated_NK)
