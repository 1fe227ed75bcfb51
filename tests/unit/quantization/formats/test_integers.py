"""INT4, INT8 and W4A8 against numpy and exact arithmetic."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from nvlm_deploy.errors import NvlmError
from nvlm_deploy.quantization.formats import W4A8, Int4, Int8, PackedWeight, fake_quantize_int8, int4_codes

from .conftest import E4M3

Float32 = NDArray[np.float32]
GROUP = 4
# Where clipping makes an amax subnormal it counts as the smallest normal number.
TINY = np.finfo(np.float32).tiny
GROUPED = Int4(GROUP)
MATRICES = hnp.arrays(
    np.float32,
    st.tuples(st.sampled_from([2, 4]), st.sampled_from([4, 8])),
    elements=st.floats(-1000, 1000, width=32, allow_subnormal=False),
)
CLIPS = st.sampled_from([1.0, 0.9, 0.33])


def codes_in_numpy(weight: Float32, scale: Float32, top: int) -> NDArray[np.int64]:
    codes: NDArray[np.int64] = np.clip(np.rint(weight / scale), -top - 1, top).astype(np.int64)
    return codes


def is_nearest(weight: float, scale: float, code: int, top: int) -> bool:
    """Whether no code is nearer, up to the rounding of an FP32 quotient."""
    quotient = Fraction(weight) / Fraction(scale)
    quotient = min(max(quotient, Fraction(-top - 1)), Fraction(top))
    return abs(quotient - code) <= Fraction(1, 2) + Fraction(top, 2**23)


@given(hnp.arrays(np.int8, st.tuples(st.integers(1, 3), st.integers(1, 9)), elements=st.integers(-8, 7)))
def test_int4_codes_come_back_from_their_bytes(half: NDArray[np.int8]) -> None:
    codes = np.concatenate([half, half[::-1, ::-1]])
    nibbles = codes.astype(np.int64) % 16
    pairs = (nibbles[0::2] + nibbles[1::2] * 16).tolist()
    packed = PackedWeight(torch.tensor(pairs, dtype=torch.uint8), torch.ones(len(codes), 1))
    assert int4_codes(packed).dtype == torch.int8
    assert np.array_equal(int4_codes(packed).numpy(), codes)


@settings(deadline=None, max_examples=60)
@given(MATRICES, CLIPS)
def test_int4_has_the_codes_scales_and_bytes_of_plain_arithmetic(weight: Float32, clip: float) -> None:
    groups = weight.reshape(len(weight), -1, GROUP)
    amax = np.abs(groups).max(-1)
    assert np.array_equal(GROUPED.amax(torch.from_numpy(weight)).numpy(), amax)
    amax = amax * np.float32(clip)
    packed = GROUPED.pack(torch.from_numpy(weight), torch.from_numpy(amax))
    scale = np.where(amax == 0, np.float32(1), np.maximum(amax, TINY) / np.float32(7))
    codes = codes_in_numpy(groups, scale[..., None], 7).reshape(weight.shape)
    assert np.array_equal(packed.weight_scale.numpy(), scale)
    assert packed.weight.tolist() == (codes[0::2] % 16 + codes[1::2] % 16 * 16).tolist()
    values = codes.astype(np.float32) * scale.repeat(GROUP, axis=1)
    assert np.array_equal(GROUPED.unpack(packed).numpy(), values)
    for (row, column), code in np.ndenumerate(codes):
        assert is_nearest(float(weight[row, column]), float(scale[row, column // GROUP]), int(code), 7)


@settings(deadline=None, max_examples=60)
@given(MATRICES, CLIPS)
def test_int8_has_the_codes_and_scales_of_plain_arithmetic(weight: Float32, clip: float) -> None:
    amax = np.abs(weight).max(-1)
    assert np.array_equal(Int8().amax(torch.from_numpy(weight)).numpy(), amax)
    amax = amax * np.float32(clip)
    packed = Int8().pack(torch.from_numpy(weight), torch.from_numpy(amax))
    scale = np.where(amax == 0, np.float32(1), np.maximum(amax, TINY) / np.float32(127))
    codes = codes_in_numpy(weight, scale[:, None], 127)
    assert packed.weight.dtype == torch.int8
    assert np.array_equal(packed.weight_scale.numpy(), scale)
    assert np.array_equal(packed.weight.numpy(), codes)
    assert np.array_equal(Int8().unpack(packed).numpy(), codes.astype(np.float32) * scale[:, None])
    for (row, column), code in np.ndenumerate(codes):
        assert is_nearest(float(weight[row, column]), float(scale[row]), int(code), 127)


def test_clipping_reaches_the_lowest_code() -> None:
    weight_NK = torch.tensor([[1.0, -1.0, 10.0, -10.0], [0.0, 0.6, -0.6, -1.2]])
    packed = GROUPED.pack(weight_NK, torch.ones(2, 1))
    assert int4_codes(packed).tolist() == [[7, -7, 7, -8], [0, 4, -4, -8]]
    packed = Int8().pack(weight_NK, torch.ones(2))
    assert packed.weight.tolist() == [[127, -127, 127, -128], [0, 76, -76, -128]]


def test_half_of_amax_is_below_the_tie_because_the_scale_is_rounded() -> None:
    weight_NK = torch.tensor([[1.0, 0.5, 0.0, -0.5]] * 2)
    packed = GROUPED.pack(weight_NK, GROUPED.amax(weight_NK))
    assert Fraction(float(packed.weight_scale[0, 0])) > Fraction(1, 7)
    assert int4_codes(packed)[0].tolist() == [7, 3, 0, -3]


def test_a_group_of_zeros_has_scale_one() -> None:
    weight_NK = torch.tensor([[0.0] * 4 + [7.0] * 4, [-14.0] * 4 + [0.0] * 4])
    packed = GROUPED.pack(weight_NK, GROUPED.amax(weight_NK))
    assert packed.weight_scale.tolist() == [[1, 1], [2, 1]]
    assert int4_codes(packed).tolist() == [[0] * 4 + [7] * 4, [-7] * 4 + [0] * 4]


def test_weights_far_beyond_a_tiny_amax_saturate() -> None:
    weight_NK = torch.tensor([[3e38, -3e38, 0.0, 1.0]] * 2)
    packed = GROUPED.pack(weight_NK, torch.full((2, 1), 1e-45))
    assert int4_codes(packed)[0].tolist() == [7, -8, 0, 7]


@pytest.mark.parametrize(
    ("rows", "columns", "problem"),
    [(3, 128, r"\[3, 128\] has an odd number"), (2, 100, "100 columns .* groups of 64")],
)
@pytest.mark.parametrize("form", [Int4, W4A8])
def test_int4_refuses_what_its_layout_has_no_place_for(
    form: type[Int4] | type[W4A8], rows: int, columns: int, problem: str
) -> None:
    with pytest.raises(NvlmError, match=problem) as failure:
        form(64).amax(torch.ones(rows, columns))
    assert failure.value.hint
    with pytest.raises(NvlmError, match=problem):
        form(64).pack(torch.ones(rows, columns), torch.ones(rows, -(-columns // 64)))


def test_int8_keeps_single_rows_and_odd_shapes() -> None:
    packed = Int8().pack(torch.tensor([[1.0, -0.5, 0.25]]), torch.tensor([1.0]))
    assert packed.weight.tolist() == [[127, -64, 32]]
    assert tuple(packed.weight_scale.shape) == (1,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_int8_activations(dtype: torch.dtype) -> None:
    x = (torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1)) * 4).to(dtype)
    scale = torch.tensor(6.0 / 127)
    codes = codes_in_numpy(x.float().numpy(), scale.numpy(), 127).astype(np.float32)
    assert set(codes.flatten()) > {-128, 127}
    rounded = fake_quantize_int8(x, scale)
    assert rounded.dtype == dtype
    assert torch.equal(rounded, torch.from_numpy(codes * scale.numpy()).to(dtype))
    assert fake_quantize_int8(torch.tensor([float("nan")]), scale).isnan().all()


def in_fp8(codes: NDArray[np.int8], scale: Float32, scale_2: np.float32) -> Float32:
    """FP8(code * scale / scale_2) * scale_2, the rounding to FP8 in exact arithmetic."""
    quotients = codes.astype(np.float32) * scale / scale_2
    nearest = [float(E4M3.nearest(Fraction(float(q)))) for q in quotients.flatten()]
    return np.array(nearest, np.float32).reshape(codes.shape) * scale_2


def test_w4a8_weights_are_int4_values_rounded_to_fp8() -> None:
    form = W4A8(32)
    weight_NK = torch.randn(6, 64, generator=torch.Generator().manual_seed(2))
    amax_NJ = form.amax(weight_NK) * 0.9
    packed = form.pack(weight_NK, amax_NJ)
    plain = Int4(32).pack(weight_NK, amax_NJ)
    assert torch.equal(packed.weight, plain.weight)
    assert torch.equal(packed.weight_scale, plain.weight_scale)
    assert packed.weight_scale_2 == amax_NJ.max() / 448
    scale = packed.weight_scale.numpy().repeat(32, axis=1)
    codes = int4_codes(packed).numpy()
    for scale_2 in (packed.weight_scale_2, packed.weight_scale_2 * 1.7):
        shared = replace(packed, weight_scale_2=scale_2)
        assert np.array_equal(form.unpack(shared).numpy(), in_fp8(codes, scale, np.float32(scale_2.item())))
