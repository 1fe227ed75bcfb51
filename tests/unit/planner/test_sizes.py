"""Weights, keys and values of the released model, against what its dimensions give by hand."""

from __future__ import annotations

import pytest

from nvlm_deploy.errors import UnsuitableError
from nvlm_deploy.planner import Parallel
from tests.unit.planner.conftest import Planner

# Matrices of NVLM-D-72B: 80 layers of q, o (8192 x 8192), k, v (1024 x 8192) and the MLP (3 x 29568 x 8192).
LAYER = 2 * 8192 * 8192 + 2 * 1024 * 8192 + 3 * 29568 * 8192
LINEARS = 80 * LAYER
TABLE = 152064 * 8192
TOWER = 45 * (4 * 3200 * 3200 + 2 * 3200 * 12800)
PROJECTOR = 12800 * 29568 + 29568 * 8192


def test_int4_with_a_tower_in_16_bits(plan_72b: Planner) -> None:
    plan = plan_72b("int4-awq", "h100-80gb")
    # As the quantized checkpoint has it: 4 bits, and an FP32 scale for 128 weights.
    by_hand = LINEARS * (0.5 + 4 / 128) + 2 * 2 * TABLE + 2 * (TOWER + PROJECTOR)
    assert plan.weights.total == pytest.approx(by_hand, rel=1e-3)
    assert plan.weights.total / 1e9 == pytest.approx(54.6, abs=0.05)
    # As an engine has it: the scale in 16 bits.
    engine = LINEARS * (0.5 + 2 / 128) + 2 * 2 * TABLE + 2 * (TOWER + PROJECTOR)
    assert plan.engine.total == pytest.approx(engine, rel=1e-3)
    assert plan.engine.total / 1e9 == pytest.approx(53.5, abs=0.05)
    assert plan.weights.vision == pytest.approx(2 * TOWER, rel=3e-3), "norms, biases, patches are 0.25 %"
    assert plan.weights.projector == pytest.approx(2 * PROJECTOR, rel=1e-3)


def test_fp8_with_a_tower_in_16_bits(plan_72b: Planner) -> None:
    plan = plan_72b("fp8", "h200-141gb")
    assert plan.weights.total == pytest.approx(LINEARS + 4 * TABLE + 2 * (TOWER + PROJECTOR), rel=1e-3)
    assert plan.weights.total / 1e9 == pytest.approx(87.5, abs=0.05)
    assert plan.engine.total / 1e9 == pytest.approx(87.5, abs=0.05)


@pytest.mark.parametrize(
    ("recipe", "target", "expected"),
    [
        ("int4-awq", "h100-80gb", 2 * 80 * 8 * 128 * 2),
        ("fp8-kv8", "h100-80gb", 2 * 80 * 8 * 128),
        ("int4-awq", "cpu-x86", 2 * 80 * 8 * 128 * 4),
    ],
)
def test_keys_and_values_of_a_token(plan_72b: Planner, recipe: str, target: str, expected: int) -> None:
    plan = plan_72b(recipe, target, context=4096, batch=2)
    assert plan.kv_bytes_per_token == expected
    assert plan.kv_bytes == plan.memory.kv_cache == 4096 * 2 * expected


def test_ranks_divide_the_linears_and_share_the_rest(plan_72b: Planner) -> None:
    one, two = plan_72b("fp8", "h200-141gb"), plan_72b("fp8", "h200-141gb", tp=2)
    tower = one.engine.vision + one.engine.projector
    # Tower, projector and embedding are whole on rank 0; layers and lm_head are halves.
    expected = tower + 2 * TABLE + (LINEARS + 2 * TABLE) / 2
    assert two.memory.weights == pytest.approx(expected, rel=1e-3)
    assert two.memory.kv_cache == one.memory.kv_cache / 2


def test_kv_heads_are_duplicated_beyond_their_number(plan_72b: Planner) -> None:
    eight, sixteen = (plan_72b("fp16", "h200-141gb", tp=tp) for tp in (8, 16))
    assert eight.kv_bytes_per_token == 327_680
    assert sixteen.kv_bytes_per_token == 2 * 327_680
    assert sixteen.memory.kv_cache == eight.memory.kv_cache


def test_the_inner_width_is_padded_to_whole_groups(plan_72b: Planner) -> None:
    # 29,568 are 231 groups of 128; 29,696 are 232, of which each of two ranks has 116.
    plan = plan_72b("int4-awq", "h200-141gb", tp=2)
    whole = plan_72b("fp16", "h200-141gb", tp=2)
    per_weight = 0.5 + 2 / 128
    rank = 80 * (8192 * 8192 + 1024 * 8192 + 3 * 14848 * 8192)
    tower_and_table = 2 * (TOWER + PROJECTOR) + 2 * TABLE + TABLE
    assert plan.memory.weights == pytest.approx(rank * per_weight + tower_and_table, rel=2e-3)
    unpadded = 80 * (8192 * 8192 + 1024 * 8192 + 3 * 14784 * 8192)
    assert whole.memory.weights == pytest.approx(2 * unpadded + tower_and_table, rel=1e-3)


def test_stages_have_their_layers_and_the_ends_of_the_model(plan_72b: Planner) -> None:
    plan = plan_72b("fp16", "h200-141gb", pp=2)
    # The first stage has the embedding, the tower and the projector; half of the layers are on each.
    assert plan.memory.weights == pytest.approx(LINEARS + 2 * TABLE + 2 * (TOWER + PROJECTOR), rel=1e-3)
    assert plan.memory.kv_cache == 40 * 2 * 8 * 128 * 2 * plan.load.context


@pytest.mark.parametrize(
    ("parallel", "message"), [(Parallel(tp=3), "64 attention"), (Parallel(pp=81), "80 lay")]
)
def test_what_cannot_be_split_is_refused(plan_72b: Planner, parallel: Parallel, message: str) -> None:
    with pytest.raises(UnsuitableError, match=message):
        plan_72b("fp16", "h200-141gb", tp=parallel.tp, pp=parallel.pp)
