"""The roofline, against figures worked out by hand."""

from __future__ import annotations

import pytest

from tests.unit.planner.conftest import Planner

# Multiply-adds of one tile in the tower, and of one token in the decoder, see test_sizes.py.
TOWER = 45 * (4 * 3200 * 3200 + 2 * 3200 * 12800)
PROJECTOR = 12800 * 29568 + 29568 * 8192
LINEARS = 80 * (2 * 8192 * 8192 + 2 * 1024 * 8192 + 3 * 29568 * 8192)
TABLE = 152064 * 8192
PROMPT = 7 * 261 + 4 + 15 + 16


def test_decoding_reads_weights_and_cache_at_the_stated_share_of_the_bandwidth(plan_72b: Planner) -> None:
    plan = plan_72b("int4-awq", "jetson-agx-orin-64gb")
    read = LINEARS * (0.5 + 2 / 128) + 2 * TABLE + PROMPT * 327_680
    assert plan.prediction.decode_bytes == pytest.approx(read, rel=1e-3)
    assert plan.prediction.decode_tokens_per_s == pytest.approx(204.8e9 * 0.78 / read, rel=1e-3)
    assert plan.target.efficiency.decode == 0.78


def test_ranks_read_side_by_side(plan_72b: Planner) -> None:
    plan = plan_72b("fp8", "h100-80gb", tp=2)
    read = LINEARS + 2 * TABLE + PROMPT * 327_680
    assert plan.prediction.decode_tokens_per_s == pytest.approx(2 * 3350e9 * 0.5 / read, rel=2e-3)


def test_stages_take_turns(plan_72b: Planner) -> None:
    one, two = (plan_72b("fp8", "h200-141gb", pp=pp).prediction.decode_tokens_per_s for pp in (1, 2))
    assert one == pytest.approx(two, rel=1e-3)


def test_a_batch_shares_the_weights_and_not_the_cache(plan_72b: Planner) -> None:
    one, four = (plan_72b("fp8", "h200-141gb", batch=batch).prediction for batch in (1, 4))
    assert four.decode_bytes - one.decode_bytes == 3 * PROMPT * 327_680
    assert one.decode_batch_tokens_per_s is not None
    assert four.decode_batch_tokens_per_s is not None
    assert 3.8 < four.decode_batch_tokens_per_s / one.decode_batch_tokens_per_s < 4


def test_the_first_token_waits_for_tiles_and_prompt(plan_72b: Planner) -> None:
    plan = plan_72b("int4-awq", "jetson-agx-orin-64gb")
    attention = 4 * 1025**2 * 3200 * 45 + 2 * 3200 * 588 * 1025
    tile = 2 * (1025 * TOWER + 256 * PROJECTOR) + attention
    prompt = 2 * (PROMPT * LINEARS + TABLE) + 2 * PROMPT**2 * 8192 * 80
    seconds = (7 * tile + prompt) / (42.5e12 * 0.46)
    assert list(plan.prediction.ttft_ms) == [1, 3, 4, 5, 6, 7], "an image of two tiles has a thumbnail, too"
    assert plan.prediction.ttft_ms[7] == pytest.approx(1000 * seconds, rel=1e-3)
    # 12 TFLOP a tile and 0.14 TFLOP a token, which is 84 and 265 for the largest image.
    assert 7 * tile == pytest.approx(84e12, rel=0.05)
    assert prompt == pytest.approx(265e12, rel=0.02)


def test_formats_run_at_the_rate_of_their_arithmetic(plan_72b: Planner) -> None:
    ttft = {
        recipe: plan_72b(recipe, "h200-141gb").prediction.ttft_ms[7]
        for recipe in ("fp16", "int4-awq", "int8-sq", "fp8", "fp8-vit-fp8", "w4a8-awq")
    }
    assert ttft["int4-awq"] == ttft["fp16"], "weights alone are widened to 16 bits"
    assert ttft["fp8"] == ttft["int8-sq"] == ttft["w4a8-awq"]
    assert ttft["fp8-vit-fp8"] < ttft["fp8"] < ttft["fp16"]


def test_a_machine_without_figures_gets_no_prediction(plan_72b: Planner) -> None:
    plan = plan_72b("int4-awq", "cpu-x86")
    assert plan.prediction.ttft_ms == {}
    assert plan.prediction.decode_tokens_per_s is None
    assert plan.prediction.missing == ("bandwidth_gb_s", "tflops.fp32")
    assert any("--set target.bandwidth_gb_s=N" in note for note in plan.notes)
    overrides = ("target.bandwidth_gb_s=100", "target.tflops.fp32=2")
    told = plan_72b("int4-awq", "cpu-x86", overrides=overrides)
    assert told.prediction.decode_tokens_per_s is not None
    assert told.target.sources["bandwidth_gb_s"] == "set by the user"
    # INT8 activations that are made on the fly run at the INT8 rate where one is known.
    faster = plan_72b("int4-awq", "cpu-x86", overrides=(*overrides, "target.tflops.int8=8"))
    assert faster.prediction.ttft_ms[7] < told.prediction.ttft_ms[7]
