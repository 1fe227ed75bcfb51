"""FP8 against the format's bit fields in exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from nvlm_deploy.quantization.formats import Fp8, PackedWeight, fake_quantize_fp8

from .conftest import E4M3, exact

INF = torch.tensor(math.inf)


def with_neighbours(x: torch.Tensor) -> torch.Tensor:
    x = torch.cat([x, -x])
    return torch.stack([x.nextafter(-INF), x, x.nextafter(INF)])


def float_tensor(values: list[Fraction]) -> torch.Tensor:
    return torch.tensor([float(value) for value in values])


def test_every_code_has_the_value_of_its_bit_fields() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(16, 16).view(torch.float8_e4m3fn)
    values = Fp8().unpack(PackedWeight(codes, torch.tensor(0.5))).flatten().tolist()
    for code, value in enumerate(values):
        if code % 128 == 127:
            assert math.isnan(value)
        else:
            sign = -1 if code >= 128 else 1
            assert Fraction(value) == sign * E4M3.magnitude(code % 128) / 2


def test_every_value_midpoint_and_neighbour_goes_to_the_nearest_even_code() -> None:
    weight_NK = with_neighbours(float_tensor(E4M3.magnitudes + E4M3.midpoints))
    packed = Fp8().pack(weight_NK, torch.tensor(448.0))
    assert packed.weight_scale == 1
    assert exact(packed.weight) == [E4M3.nearest(value) for value in exact(weight_NK)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("amax", [0.07, 1.3125, 3.0, 7.0, 1e-30, 5e33])
def test_codes_are_nearest_where_an_fp32_quotient_would_tie(amax: float, dtype: torch.dtype) -> None:
    largest = torch.tensor(amax, dtype=dtype)
    scale = largest.float() / 448
    weight_NK = with_neighbours(float_tensor(E4M3.midpoints) * scale).to(dtype)
    packed = Fp8().pack(weight_NK, largest)
    assert torch.equal(packed.weight_scale, scale)
    (step,) = exact(scale)
    assert exact(packed.weight) == [E4M3.nearest(value / step) for value in exact(weight_NK)]


def test_weights_beyond_amax_saturate() -> None:
    weight_NK = torch.tensor([[2.0, -2.0, 1e30, -1e30, 1.0]])
    packed = Fp8().pack(weight_NK, torch.tensor(1.0))
    assert packed.weight.float().tolist() == [[448, -448, 448, -448, 448]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_activations_are_rounded_as_fp32_quotients(dtype: torch.dtype) -> None:
    x = (torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1)) * 4).to(dtype)
    scale = torch.tensor(0.0173)
    rounded = fake_quantize_fp8(x, scale)
    assert rounded.dtype == dtype
    quotients = x.float().numpy() / scale.numpy()
    nearest = [float(E4M3.nearest(Fraction(float(q)))) for q in quotients.flatten()]
    expected = torch.from_numpy(np.array(nearest, np.float32).reshape(x.shape) * scale.numpy())
    assert torch.equal(rounded, expected.to(dtype))


def test_nan_activations_stay_nan() -> None:
    assert fake_quantize_fp8(torch.tensor([math.nan]), torch.tensor(1.0)).isnan().all()
