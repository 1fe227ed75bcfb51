"""What holds for every weight format."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nvlm_deploy.errors import NvlmError
from nvlm_deploy.quantization.formats import PackedWeight, WeightCodec, codec, weight_codec

NAMES = ("fp8", "int8", "int4", "w4a8", "nvfp4")
# Half of the range between two codes, relative to the largest weight that shares their scale.
WORST_ERROR = {"fp8": 1 / 28, "int8": 0.51 / 127, "int4": 0.51 / 7, "w4a8": 1 / 14 + 1 / 28, "nvfp4": 0.2}
SHAPES = {
    "fp8": ((), None),
    "int8": ((10,), None),
    "int4": ((10, 2), None),
    "w4a8": ((10, 2), ()),
    "nvfp4": ((10, 4), ()),
}


@pytest.fixture(params=NAMES)
def form(request: pytest.FixtureRequest) -> WeightCodec:
    return weight_codec(request.param, group_size=32)


@pytest.fixture
def weight_NK() -> torch.Tensor:
    return torch.randn(10, 64, generator=torch.Generator().manual_seed(0))


def same(one: PackedWeight, other: PackedWeight) -> bool:
    ours, theirs = one.tensors(), other.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n].float(), theirs[n].float()) for n in ours)


def test_a_round_trip_is_off_by_at_most_half_a_step(form: WeightCodec, weight_NK: torch.Tensor) -> None:
    fake_NK = form.fake(weight_NK, form.amax(weight_NK))
    assert fake_NK.dtype == torch.float32
    assert fake_NK.shape == weight_NK.shape
    largest = weight_NK.abs().max()
    assert (fake_NK - weight_NK).abs().max() <= WORST_ERROR[form.name] * largest


def test_shapes_and_bytes(form: WeightCodec, weight_NK: torch.Tensor) -> None:
    packed = form.pack(weight_NK, form.amax(weight_NK))
    scale, scale_2 = SHAPES[form.name]
    assert tuple(packed.weight_scale.shape) == scale
    assert (packed.weight_scale_2 is None) == (scale_2 is None)
    assert list(packed.tensors()) == ["weight", "weight_scale", "weight_scale_2"][: 2 + (scale_2 is not None)]
    bits = 8 if form.name in ("fp8", "int8") else 4
    assert packed.weight.nbytes == weight_NK.numel() * bits // 8
    assert packed.nbytes == sum(tensor.nbytes for tensor in packed.tensors().values())


def test_a_packed_weight_survives_another_round_trip(form: WeightCodec, weight_NK: torch.Tensor) -> None:
    amax = form.amax(weight_NK)
    fake_NK = form.fake(weight_NK, amax)
    assert torch.equal(form.fake(fake_NK, amax), fake_NK)


def test_chunks_change_nothing(
    form: WeightCodec, weight_NK: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    amax = form.amax(weight_NK)
    whole = form.pack(weight_NK, amax)
    values_NK = form.unpack(whole)
    monkeypatch.setattr(codec, "_CHUNK_BYTES", 4 * 64 * 4)
    assert [part.stop for part in codec.row_chunks(*weight_NK.shape)] == [4, 8, 10]
    assert same(form.pack(weight_NK, amax), whole)
    assert torch.equal(form.unpack(whole), values_NK)


def test_bf16_is_widened_before_anything_else(form: WeightCodec, weight_NK: torch.Tensor) -> None:
    narrow_NK = weight_NK.bfloat16()
    wide_NK = narrow_NK.float()
    assert torch.equal(form.amax(narrow_NK), form.amax(wide_NK))
    packed = form.pack(narrow_NK, form.amax(wide_NK).bfloat16())
    assert same(packed, form.pack(wide_NK, form.amax(wide_NK)))


def test_parameters_and_transposed_weights_are_weights(form: WeightCodec, weight_NK: torch.Tensor) -> None:
    amax = form.amax(weight_NK)
    whole = form.pack(weight_NK, amax)
    parameter = nn.Parameter(weight_NK.T.contiguous().T)
    assert not parameter.is_contiguous()
    assert same(form.pack(parameter, form.amax(parameter)), whole)
    assert not form.fake(parameter, amax).requires_grad


def test_zeros_stay_zeros(form: WeightCodec) -> None:
    zeros_NK = torch.zeros(4, 64)
    packed = form.pack(zeros_NK, form.amax(zeros_NK))
    assert packed.weight.view(torch.uint8).count_nonzero() == 0
    for name, scale in packed.tensors().items():
        assert name == "weight" or torch.equal(scale.float(), torch.ones(scale.shape))
    assert torch.equal(form.unpack(packed), zeros_NK)


@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-30, 1e37])
def test_extreme_weights_stay_finite(form: WeightCodec, weight_NK: torch.Tensor, size: float) -> None:
    extreme_NK = weight_NK * size
    fake_NK = form.fake(extreme_NK, form.amax(extreme_NK))
    assert fake_NK.isfinite().all()
    if size > 1e-38:
        limit = WORST_ERROR[form.name] * extreme_NK.abs().max()
        assert (fake_NK - extreme_NK).abs().max() <= limit


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(form: WeightCodec, value: float) -> None:
    weight_NK = torch.zeros(4, 64, dtype=torch.bfloat16)
    amax = form.amax(weight_NK)
    weight_NK[3, 5] = value
    with pytest.raises(NvlmError, match="the weight holds values that are no finite numbers"):
        form.pack(weight_NK, amax)
    with pytest.raises(NvlmError, match="amax holds values"):
        form.pack(weight_NK, form.amax(weight_NK))


def test_an_amax_of_another_shape_or_sign_is_refused(form: WeightCodec, weight_NK: torch.Tensor) -> None:
    amax = form.amax(weight_NK)
    with pytest.raises(NvlmError, match=r"amax has the shape \[.*1\]"):
        form.pack(weight_NK, amax[..., None])
    with pytest.raises(NvlmError, match="negative"):
        form.pack(weight_NK, amax - 1000)


def test_tensors_of_another_format_are_refused(form: WeightCodec, weight_NK: torch.Tensor) -> None:
    packed = form.pack(weight_NK, form.amax(weight_NK))
    with pytest.raises(NvlmError, match=r"weight is .* and should be a matrix of"):
        form.unpack(PackedWeight(packed.weight.float(), packed.weight_scale, packed.weight_scale_2))
    with pytest.raises(NvlmError, match=r"a scale is .* and should be"):
        form.unpack(PackedWeight(packed.weight, packed.weight_scale[..., None], packed.weight_scale_2))
    if packed.weight_scale_2 is not None:
        with pytest.raises(NvlmError, match="a scale is missing"):
            form.unpack(PackedWeight(packed.weight, packed.weight_scale))


@pytest.mark.parametrize("bad", [torch.ones(4), torch.ones(4, 64).int(), torch.ones(0, 64)])
def test_only_matrices_of_floats_are_quantized(form: WeightCodec, bad: torch.Tensor) -> None:
    with pytest.raises(NvlmError, match="cannot be quantized"):
        form.amax(bad)


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(NvlmError, match="no weight format 'int3'") as failure:
        weight_codec("int3")
    assert "int4" in str(failure.value.hint)
