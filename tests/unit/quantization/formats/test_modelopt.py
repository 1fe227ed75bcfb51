"""The formats against what modelopt calibrates by maxima and exports."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from nvlm_deploy.quantization.formats import Fp8, Int8, WeightCodec, weight_codec

from .conftest import E4M3, ModeloptExport, exact

# Importing modelopt takes seconds, and most of two minutes on a machine that is busy.
pytestmark = pytest.mark.timeout(600)

DTYPES = (torch.float32, torch.bfloat16)
CASES = [
    ("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", "int4", 128),
    ("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", "int4", 32),
    ("INT8_WEIGHT_ONLY_CFG", "int8", 128),
    ("INT8_DEFAULT_CFG", "int8", 128),
    ("W4A8_AWQ_BETA_CFG", "w4a8", 128),
    ("W4A8_AWQ_BETA_CFG", "w4a8", 32),
    ("NVFP4_DEFAULT_CFG", "nvfp4", 16),
]


def random_weight(dtype: torch.dtype) -> Tensor:
    """A matrix with heavy tails, a group of zeros, and ties."""
    weight_NK = torch.randn(64, 256, generator=torch.Generator().manual_seed(7)) * 0.02
    weight_NK = weight_NK * weight_NK.abs() * 50
    weight_NK[5, 128:] = 0
    weight_NK[7, :128] = torch.arange(-64, 64) / 64
    return weight_NK.to(dtype)


def assert_equal(ours: Tensor | None, theirs: Tensor) -> None:
    assert ours is not None
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert torch.equal(ours.float(), theirs.float())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("preset", "name", "group_size"), CASES)
def test_codes_and_scales_are_those_of_modelopt(
    modelopt_export: ModeloptExport, preset: str, name: str, group_size: int, dtype: torch.dtype
) -> None:
    weight_NK = random_weight(dtype)
    theirs, simulated_NK = modelopt_export(weight_NK, preset, group_size)
    form: WeightCodec = weight_codec(name, group_size)
    packed = form.pack(weight_NK, form.amax(weight_NK))
    for suffix, tensor in packed.tensors().items():
        assert_equal(tensor, theirs[suffix])
    if name != "nvfp4":
        # It simulates with 7 / amax, and between INT4 and FP8 in the weight's precision: ties differ.
        step = packed.weight_scale.max()
        assert (form.unpack(packed) - simulated_NK.float()).abs().max() <= step * 1.01


@pytest.mark.parametrize("dtype", DTYPES)
def test_fp8_codes_are_nearest_and_those_of_modelopt_are_not_for_bf16(
    modelopt_export: ModeloptExport, dtype: torch.dtype
) -> None:
    weight_NK = random_weight(dtype)
    theirs, _ = modelopt_export(weight_NK, "FP8_DEFAULT_CFG", 0)
    packed = Fp8().pack(weight_NK, Fp8().amax(weight_NK))
    assert_equal(packed.weight_scale, theirs["weight_scale"])
    (scale,) = exact(packed.weight_scale)
    nearest = [E4M3.nearest(value / scale) for value in exact(weight_NK)]

    def wrong(codes: Tensor) -> Fraction:
        pairs = zip(exact(codes), nearest, strict=True)
        return Fraction(sum(code != best for code, best in pairs), len(nearest))

    assert wrong(packed.weight) == 0
    if dtype == torch.bfloat16:
        assert Fraction(1, 100) < wrong(theirs["weight"]) < Fraction(5, 100)
    else:
        assert wrong(theirs["weight"]) < Fraction(1, 1000)


def test_a_zero_row_has_scale_one_as_in_modelopt(modelopt_export: ModeloptExport) -> None:
    weight_NK = random_weight(torch.bfloat16)
    weight_NK[9] = 0
    theirs, _ = modelopt_export(weight_NK, "INT8_WEIGHT_ONLY_CFG", 0)
    packed = Int8().pack(weight_NK, Int8().amax(weight_NK))
    assert theirs["weight_scale"][9] == 1
    assert_equal(packed.weight_scale, theirs["weight_scale"])
    assert_equal(packed.weight, theirs["weight"])
