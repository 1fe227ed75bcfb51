"""Groups of linears, and the weight table's rules for numbers that are not weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nvlm_deploy.checkpoint.operations import Operation, Slice, Split
from nvlm_deploy.checkpoint.rules import Rule
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.models import meta_model
from nvlm_deploy.quantization.groups import all_groups
from nvlm_deploy.quantization.layout import per_column, per_group
from nvlm_deploy.synthetic.shapes import SHAPES, released_style_config


@pytest.mark.parametrize("shape", SHAPES)
def test_every_linear_is_in_one_group_and_every_norm_is_one_that_it_reads(shape: str) -> None:
    config = NvlmConfig.from_dict(released_style_config(SHAPES[shape]))
    modules = dict(meta_model(config).named_modules())
    linears = {name for name, module in modules.items() if isinstance(module, nn.Linear)}
    grouped = [name for group in all_groups(config) for name in group.linears]
    assert set(grouped) == linears
    assert len(grouped) == len(linears)
    for group in all_groups(config):
        widths = {modules[name].in_features for name in group.linears}
        assert len(widths) == 1
        if group.norm is not None:
            assert tuple(modules[group.norm].weight.shape) == (widths.pop(),)


HEADS, DUMMIES, GROUP = 3, 2, 16
PADDED = (HEADS + DUMMIES) * GROUP
COLUMNS = Slice(1, 0, HEADS * GROUP, PADDED)
ROWS = Slice(0, 0, HEADS * GROUP, PADDED)


def rule(targets: int, *operations: Operation) -> Rule:
    return Rule(("disk",), tuple(f"model{i}" for i in range(targets)), operations)


def test_scales_per_group_lose_the_dummy_heads_groups() -> None:
    out_proj = rule(1, COLUMNS)
    scales_NJ = torch.arange(4 * PADDED // GROUP).reshape(4, -1)
    (sliced_NJ,) = per_group(out_proj, GROUP).apply([scales_NJ])
    assert torch.equal(sliced_NJ, scales_NJ[:, :HEADS])


def test_scales_per_row_are_split_as_the_rows_of_fused_weights() -> None:
    qkv = rule(3, Split(0, (PADDED,) * 3), ROWS)
    scales = torch.arange(3 * PADDED)
    pieces = per_group(qkv, 0).apply([scales])
    expected = [scales[i * PADDED : i * PADDED + HEADS * GROUP] for i in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(pieces, expected, strict=True))


def test_scales_per_column_lose_the_dummy_heads_columns() -> None:
    row = torch.arange(PADDED).unsqueeze(0)
    assert torch.equal(per_column(rule(1, COLUMNS)).apply([row])[0], row[:, : HEADS * GROUP])
    fused = rule(3, Split(0, (PADDED,) * 3), ROWS)
    assert torch.equal(per_column(fused).apply([row])[0], row), "rows are no columns"


@given(st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 5))
def test_scales_go_to_disk_and_back(group_size: int, rows: int) -> None:
    for operations in ((COLUMNS,), ()):
        form = per_group(rule(1, *operations), group_size)
        width = HEADS * GROUP if operations else PADDED
        scales_NJ = torch.rand(rows, width // group_size)
        assert torch.equal(form.apply(form.inverse().apply([scales_NJ]))[0], scales_NJ)
