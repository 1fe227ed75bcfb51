"""Round to nearest, held against arithmetic that shares nothing with it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nvlm_deploy.errors import NvlmError
from nvlm_deploy.quantization.rtn import (
    Float32,
    QuantizedMatrix,
    dequantize,
    pack_nibbles,
    quantize,
    unpack_nibbles,
)

GROUP = 16
MATRICES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 40)),
    elements=st.floats(-1000, 1000, width=32, allow_subnormal=False),
)
FORMATS = st.tuples(st.sampled_from([4, 8]), st.booleans())


def cells(matrix: QuantizedMatrix, shape: tuple[int, ...]) -> list[tuple[int, int, Fraction, int, int]]:
    """Every weight's row, column, exact scale, zero point and code."""
    found = []
    for row in range(shape[0]):
        for column in range(shape[1]):
            group, place = divmod(column, GROUP)
            zeros = matrix.zero_points_NJ
            zero = 2 ** (matrix.bits - 1) if zeros is None else int(zeros[row, group])
            scale = Fraction(float(matrix.scales_NJ[row, group]))
            found.append((row, column, scale, zero, int(matrix.codes_NJG[row, group, place])))
    return found


@settings(deadline=None, max_examples=40)
@given(MATRICES, FORMATS)
def test_every_weight_is_off_by_at_most_half_a_scale(weight: Float32, form: tuple[int, bool]) -> None:
    bits, symmetric = form
    matrix = quantize(weight, bits=bits, group_size=GROUP, symmetric=symmetric)
    values = dequantize(matrix, weight.shape[1])
    for row, column, scale, zero, code in cells(matrix, weight.shape):
        assert 0 <= code < 2**bits
        exact = scale * (code - zero)
        assert abs(exact - Fraction(float(weight[row, column]))) <= scale / 2 * Fraction(1000001, 1000000)
        assert values[row, column] == pytest.approx(float(exact), rel=1e-6)


@settings(deadline=None, max_examples=40)
@given(MATRICES, FORMATS)
def test_no_smaller_scale_would_do(weight: Float32, form: tuple[int, bool]) -> None:
    bits, symmetric = form
    matrix = quantize(weight, bits=bits, group_size=GROUP, symmetric=symmetric)
    for row in range(len(weight)):
        for group, scale in enumerate(matrix.scales_NJ[row]):
            part = [Fraction(float(w)) for w in weight[row, group * GROUP : (group + 1) * GROUP]]
            high, low = max([Fraction(0), *part]), min([Fraction(0), *part])
            if scale == 0:
                assert high == low == 0
                continue
            smaller = Fraction(float(np.nextafter(scale, np.float16(0))))
            if symmetric:
                reach = [high - (2 ** (bits - 1) - 1) * smaller, -low - 2 ** (bits - 1) * smaller]
                assert max(reach) > -Fraction(1, 10**6) * max(high, -low)
            else:
                assert high - low > (2**bits - 1) * smaller * (1 - Fraction(1, 10**6))


def test_a_grid_is_kept_exactly() -> None:
    grid = np.arange(-8, 8, dtype=np.float32)[None] * np.float32(0.25)
    matrix = quantize(grid, bits=4, group_size=16, symmetric=True)
    assert matrix.scales_NJ.tolist() == [[0.25]]
    assert matrix.codes_NJG.tolist() == [[list(range(16))]]
    assert np.array_equal(dequantize(matrix, 16), grid)


def test_one_sided_groups_use_the_whole_range_when_asymmetric() -> None:
    weight = np.linspace(1, 16, 16, dtype=np.float32)[None]
    matrix = quantize(weight, bits=4, group_size=16, symmetric=False)
    assert matrix.zero_points_NJ is not None
    assert matrix.zero_points_NJ.tolist() == [[0]]
    assert matrix.codes_NJG.max() == 15


def test_a_partial_group_is_padded_with_codes_of_zero() -> None:
    matrix = quantize(np.ones((1, 20), np.float32), bits=4, group_size=16, symmetric=True)
    assert matrix.codes_NJG[0, 1].tolist() == [15] * 4 + [8] * 12


def test_tiny_weights_do_not_vanish() -> None:
    weight = np.full((1, 16), 1e-7, np.float32)
    matrix = quantize(weight, bits=8, group_size=16, symmetric=True)
    assert float(matrix.scales_NJ[0, 0]) > 0
    assert np.abs(dequantize(matrix, 16) - weight).max() <= float(matrix.scales_NJ[0, 0]) / 2


@pytest.mark.parametrize(("value", "problem"), [(np.nan, "finite"), (np.inf, "finite"), (1e9, "too large")])
def test_weights_that_no_scale_fits_are_refused(value: float, problem: str) -> None:
    weight = np.zeros((2, 16), np.float32)
    weight[1, 3] = value
    with pytest.raises(NvlmError, match=problem):
        quantize(weight, bits=4, group_size=16, symmetric=True)


def test_the_first_code_is_in_the_low_nibble() -> None:
    assert pack_nibbles(np.array([[1, 2, 15, 0]], np.uint8)).tolist() == [[0x21, 0x0F]]
    assert pack_nibbles(np.array([7, 8, 9], np.uint8)).tolist() == [0x87, 0x09]


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 9)), elements=st.integers(0, 15)))
def test_packing_is_undone_by_unpacking(codes: np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> None:
    packed = pack_nibbles(codes)
    assert packed.shape == (codes.shape[0], -(-codes.shape[1] // 2))
    assert np.array_equal(unpack_nibbles(packed, codes.shape[1]), codes)
