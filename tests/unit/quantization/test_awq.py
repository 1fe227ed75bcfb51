"""The arithmetic that AWQ's search is given in the place of ModelOpt's, which copies whole matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from nvlm_deploy.quantization import modelopt as adapter
from nvlm_deploy.quantization.formats import codec

ELEMENTS = st.floats(-100, 100, width=32, allow_subnormal=False)


@settings(deadline=None, max_examples=60)
@given(hnp.arrays("float32", (6, 16), elements=ELEMENTS))
def test_groups_are_rounded_as_modelopt_rounds_them(modelopt: None, groups: NDArray[np.float32]) -> None:
    from modelopt.torch.quantization.tensor_quant import _tensor_quant

    weight_BG = torch.from_numpy(groups)
    weight_BG[2] = 0
    amax_B1 = weight_BG.abs().amax(1, keepdim=True)
    theirs_BG = _tensor_quant(weight_BG, amax_B1, num_bits=4, narrow_range=False)
    assert torch.equal(adapter._fake_int4(weight_BG, None), theirs_BG)


def test_chunks_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    weight_BG = torch.randn(100, 16, generator=torch.Generator().manual_seed(1))
    whole_BG = adapter._fake_int4(weight_BG, None)
    monkeypatch.setattr(codec, "_CHUNK_BYTES", 7 * 16 * 4)
    assert torch.equal(adapter._fake_int4(weight_BG, None), whole_BG)
