"""NVFP4 against the format's bit fields in exact arithmetic, and its scales against numpy."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nvlm_deploy.errors import NvlmError
from nvlm_deploy.quantization.formats import Nvfp4, PackedWeight, fake_quantize_nvfp4

from .conftest import E2M1, E4M3, MiniFloat, exact

Float32 = NDArray[np.float32]
INF = torch.tensor(math.inf)


def nearest(form: MiniFloat, x: Float32) -> Float32:
    values = [float(form.nearest(Fraction(value))) for value in x.flatten().tolist()]
    return np.array(values, np.float32).reshape(x.shape)


def two_levels(x: Float32, scale_2: np.float32, smallest: float) -> tuple[Float32, Float32]:
    """e4m3 scales [..., J] and what the codes stand for [..., K]."""
    blocks = x.reshape(*x.shape[:-1], -1, 16)
    ideal = np.abs(blocks).max(-1) / (np.float32(6) * scale_2)
    scales = nearest(E4M3, np.clip(ideal, smallest, 448).astype(np.float32))
    scales = np.where((ideal == 0) & (smallest > 0), np.float32(1), scales)
    steps = (scales * scale_2)[..., None]
    values = nearest(E2M1, np.divide(blocks, steps, out=np.zeros_like(blocks), where=steps != 0)) * steps
    return scales, values.reshape(x.shape)


def test_every_code_has_the_value_of_its_bit_fields() -> None:
    codes = list(range(16))
    pairs = torch.tensor([[low | high << 4 for high in codes for low in codes]], dtype=torch.uint8)
    scale_NJ = torch.full((1, 32), 2.0).to(torch.float8_e4m3fn)
    values = exact(Nvfp4().unpack(PackedWeight(pairs, scale_NJ, torch.tensor(0.25))))
    table = [(-1 if code & 8 else 1) * E2M1.magnitude(code & 7) for code in codes]
    assert values == [table[code] / 2 for high in codes for low in codes for code in (low, high)]


def test_every_value_midpoint_and_neighbour_goes_to_the_nearest_even_code() -> None:
    x = torch.tensor([float(value) for value in E2M1.magnitudes + E2M1.midpoints])
    x = torch.cat([x, -x])
    weight = torch.cat([x.nextafter(-INF), x, x.nextafter(INF)])
    # A 6 in every block gives it the scale 1 in units of weight_scale_2 = 1.
    weight_NK = torch.nn.functional.pad(weight.unflatten(0, (-1, 15)), (0, 1), value=6.0)
    weight_NK = weight_NK.clamp(-6, 6)
    packed = Nvfp4().pack(weight_NK, torch.tensor(6.0 * 448))
    assert torch.equal(packed.weight_scale.float(), torch.ones(len(weight_NK), 1))
    expected = [E2M1.nearest(value) for value in exact(weight_NK)]
    assert exact(Nvfp4().unpack(packed)) == expected


def test_the_even_column_is_in_the_low_nibble() -> None:
    weight_NK = torch.tensor([[6.0, -0.5] + [0.0] * 12 + [-6.0, 3.0]])
    packed = Nvfp4().pack(weight_NK, torch.tensor(6.0 * 448))
    assert packed.weight.tolist() == [[0x97, 0, 0, 0, 0, 0, 0, 0x5F]]


@pytest.mark.parametrize("clip", [1.0, 0.4])
@pytest.mark.parametrize("spread", [0.0, 3.0, 30.0])
def test_two_levels_of_scales(spread: float, clip: float) -> None:
    generator = torch.Generator().manual_seed(3)
    blocks = torch.randn(6, 8, 16, generator=generator)
    # Powers of two apart, so that some blocks' scales leave the range of e4m3.
    blocks *= torch.exp2(-spread * torch.rand(6, 8, 1, generator=generator))
    blocks[2, 3] = 0
    weight_NK = blocks.flatten(1)
    amax = Nvfp4().amax(weight_NK) * clip
    packed = Nvfp4().pack(weight_NK, amax)
    scale_2 = np.float32(amax.item()) / np.float32(6 * 448)
    assert packed.weight_scale_2 is not None
    assert packed.weight_scale_2 == float(scale_2)
    scales, values = two_levels(weight_NK.numpy(), scale_2, smallest=2.0**-9)
    assert np.array_equal(packed.weight_scale.float().numpy(), scales)
    assert np.array_equal(Nvfp4().unpack(packed).numpy(), values)
    assert packed.weight_scale[2, 3].float() == 1
    assert (clip == 1) or (scales == 448).sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_get_their_block_scales_when_they_are_seen(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(4))
    x[0, 1, 16:32] = 0
    x[1, 2, 32:48] *= 1e-6
    x = x.to(dtype)
    scale_2 = torch.tensor(2.5 / (6 * 448))
    rounded = fake_quantize_nvfp4(x, scale_2)
    assert rounded.dtype == dtype
    scales, values = two_levels(x.float().numpy(), np.float32(scale_2.item()), smallest=0)
    assert scales[1, 2, 2] == 0
    assert scales.max() == 448
    assert torch.equal(rounded, torch.from_numpy(values).to(dtype))
    assert fake_quantize_nvfp4(torch.full((1, 16), math.nan), scale_2).isnan().all()


def test_weights_and_activations_agree_where_no_scale_underflows() -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(5))
    amax = Nvfp4().amax(x)
    assert torch.equal(Nvfp4().fake(x, amax), fake_quantize_nvfp4(x, amax / torch.tensor(6.0 * 448)))


def test_partial_blocks_are_refused() -> None:
    with pytest.raises(NvlmError, match="blocks of 16 columns, and 40"):
        Nvfp4().amax(torch.ones(2, 40))
    with pytest.raises(NvlmError, match="blocks of 16 columns, and 40"):
        fake_quantize_nvfp4(torch.ones(2, 40), torch.tensor(1.0))
