"""Build arguments of TensorRT-LLM: releases, limits, precisions. Names are held against those recorded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nvlm_deploy.backends.tensorrt_llm.adapter import installed_version, require_interface
from nvlm_deploy.backends.tensorrt_llm.build_config import (
    EngineLimits,
    arguments,
    check_engine_config,
    check_names,
    settle,
)
from nvlm_deploy.backends.tensorrt_llm.interface import V0_12, V1, Interface, interface_of
from nvlm_deploy.errors import NvlmError, UnsuitableError

NVLM_72B = EngineLimits(max_batch=4, context=32768, max_tiles=7, tokens_per_tile=256, max_num_tokens=8192)


def checkpoint(algorithm: str | None = None, cache: str | None = None, **mapping: int) -> dict[str, Any]:
    quantization = {"quant_algo": algorithm, "kv_cache_quant_algo": cache}
    return {
        "dtype": "bfloat16",
        "mapping": {"tp_size": 1, "pp_size": 1, **mapping},
        "quantization": quantization,
    }


@pytest.mark.parametrize(
    ("version", "interface"),
    [
        ("1.0.0", V1),
        ("1.1.0", V1),
        ("1.2.1", V1),
        ("1.2.0rc3+p1", V1),
        ("0.12.0", V0_12),
        ("0.12.0-jetson", V0_12),
    ],
)
def test_releases_with_an_interface(version: str, interface: Interface) -> None:
    assert interface_of(version) is interface


@pytest.mark.parametrize("version", ["1.3.0rc22", "1.4.0rc1", "2.0.0", "10.0.0"])
def test_releases_without_a_builder_say_what_to_use(version: str) -> None:
    with pytest.raises(UnsuitableError, match="removed") as caught:
        interface_of(version)
    assert "1.2.1" in str(caught.value.hint)


@pytest.mark.parametrize("version", ["0.11.0", "0.17.0", "0.21.0", "unknown"])
def test_other_releases_are_refused(version: str) -> None:
    with pytest.raises(UnsuitableError, match="not supported"):
        interface_of(version)


@pytest.mark.skipif(installed_version() is not None, reason="TensorRT-LLM is installed here")
def test_a_missing_package_is_named() -> None:
    with pytest.raises(UnsuitableError, match="not installed"):
        require_interface()


def test_the_prompt_table_holds_the_tiles_of_all_requests() -> None:
    settings = settle(checkpoint("W4A16_AWQ"), NVLM_72B, V1)
    assert settings.max_prompt_embedding_table_size == 4 * 7 * 256 == 7168
    built = arguments(settings, V1)
    assert built.build["max_prompt_embedding_table_size"] == 7168
    assert built.build["max_seq_len"] == 32768
    assert built.build["max_num_tokens"] == 8192
    assert built.build["strongly_typed"] is True


def test_cross_attention_has_an_encoder_and_whole_prompts() -> None:
    """NVLM-H: one thumbnail in the sequence, six tiles with their tags beside it."""
    limits = replace(NVLM_72B, max_tiles=1, encoder_entries=1 + 6 * 261)
    settings = settle(checkpoint("W4A16_AWQ"), limits, V1)
    built = arguments(settings, V1)
    assert built.build["max_encoder_input_len"] == 1567
    assert built.build["max_prompt_embedding_table_size"] == 4 * 256
    # Its profiles hold a batch of the longest prompts.
    assert built.build["max_input_len"] == built.build["max_num_tokens"] - 1 == 8191
    assert built.plugin["use_paged_context_fmha"] is False
    alone = arguments(settle(checkpoint("W4A16_AWQ"), NVLM_72B, V1), V1)
    assert "max_encoder_input_len" not in alone.build
    assert alone.build["max_input_len"] == 32767
    with pytest.raises(NvlmError, match="max_encoder_input_len is 1024, and 1567"):
        check_engine_config({"build_config": {**built.build, "max_encoder_input_len": 1024}}, settings)


def test_without_chunks_a_prompt_fits_into_one_pass() -> None:
    limits = EngineLimits(max_batch=1, context=8192, max_tiles=7, tokens_per_tile=256, max_num_tokens=4096)
    assert settle(checkpoint(), limits, V1).max_num_tokens == 4096
    jetson = settle(checkpoint("W4A16_AWQ"), limits, V0_12)
    assert jetson.max_num_tokens == 8192
    assert not jetson.paged_context_fmha


def test_a_pass_is_no_longer_than_all_requests_together() -> None:
    limits = EngineLimits(max_batch=2, context=512, max_tiles=1, tokens_per_tile=16, max_num_tokens=8192)
    assert settle(checkpoint(), limits, V1).max_num_tokens == 1024


@pytest.mark.parametrize(
    ("algorithm", "cache", "gemm", "paged", "fp8_attention", "fused"),
    [
        (None, None, "bfloat16", True, False, True),
        ("FP8", None, "fp8", True, False, False),
        ("FP8", "FP8", "fp8", True, True, False),
        ("W4A16_AWQ", None, "bfloat16", True, False, False),
        ("W4A16_AWQ", "FP8", "bfloat16", False, False, False),
        ("W4A8_AWQ", None, "bfloat16", True, False, False),
        ("W8A8_SQ_PER_CHANNEL", None, "bfloat16", True, False, False),
        ("NVFP4", None, "nvfp4", True, False, False),
    ],
)
def test_plugins_follow_the_precision(
    algorithm: str | None, cache: str | None, gemm: str, paged: bool, fp8_attention: bool, fused: bool
) -> None:
    plugin = arguments(settle(checkpoint(algorithm, cache), NVLM_72B, V1), V1).plugin
    assert plugin["gemm_plugin"] == gemm
    assert plugin["use_paged_context_fmha"] is paged
    assert plugin["use_fp8_context_fmha"] is fp8_attention
    assert plugin["use_fused_mlp"] is fused
    assert plugin["gpt_attention_plugin"] == plugin["dtype"] == "bfloat16"


@pytest.mark.parametrize("interface", [V0_12, V1])
@pytest.mark.parametrize("algorithm", [None, "FP8", "W4A16_AWQ", "NVFP4"])
def test_only_recorded_names_are_passed_on(interface: Interface, algorithm: str | None) -> None:
    built = arguments(settle(checkpoint(algorithm, tp_size=2, pp_size=2), NVLM_72B, interface), interface)
    assert set(built.build) <= interface.build_fields
    assert set(built.plugin) <= interface.plugin_fields


def test_the_fused_mlp_is_where_the_release_has_it() -> None:
    old = arguments(settle(checkpoint("W4A16_AWQ"), NVLM_72B, V0_12), V0_12)
    new = arguments(settle(checkpoint("W4A16_AWQ"), NVLM_72B, V1), V1)
    assert old.build["use_fused_mlp"] is False
    assert "use_fused_mlp" not in old.plugin
    assert new.plugin["use_fused_mlp"] is False
    assert "use_fused_mlp" not in new.build


def test_nccl_is_for_several_ranks() -> None:
    assert arguments(settle(checkpoint(), NVLM_72B, V1), V1).plugin["nccl_plugin"] is None
    settings = settle(checkpoint(tp_size=4, pp_size=2), NVLM_72B, V1)
    assert settings.world_size == 8
    assert arguments(settings, V1).plugin["nccl_plugin"] == "bfloat16"


def test_an_unknown_name_is_refused_and_its_neighbor_named() -> None:
    with pytest.raises(NvlmError, match="no field 'max_batchsize'") as caught:
        check_names("BuildConfig", {"max_batchsize": 1}, V1.build_fields, "1.2")
    assert "max_batch_size" in str(caught.value.hint)


def test_tiles_that_fill_the_context_are_refused() -> None:
    limits = EngineLimits(max_batch=1, context=1792, max_tiles=7, tokens_per_tile=256, max_num_tokens=8192)
    with pytest.raises(UnsuitableError, match="1,792"):
        settle(checkpoint(), limits, V1)


@pytest.mark.parametrize("broken", [{"dtype": "float16"}, {"dtype": "float32", "mapping": {}}, {}])
def test_a_checkpoint_that_is_not_in_order_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(NvlmError, match=r"config\.json"):
        settle(broken, NVLM_72B, V1)


def test_a_built_engine_is_held_against_what_was_asked_for() -> None:
    settings = settle(checkpoint(), NVLM_72B, V1)
    built = arguments(settings, V1).build
    check_engine_config({"build_config": built}, settings)
    with pytest.raises(NvlmError, match="max_prompt_embedding_table_size is 1792"):
        check_engine_config({"build_config": {**built, "max_prompt_embedding_table_size": 1792}}, settings)
    with pytest.raises(NvlmError, match="speculative"):
        check_engine_config({"build_config": {**built, "speculative_decoding_mode": 32}}, settings)
