"""Plans of NVLM-X and NVLM-H: what stands in the sequence, what cross-attention keeps, what comes of it."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from nvlm_deploy.config.cross_attention import every
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.planner import DevicePlan, PlanRequest, read_question, read_recipe
from nvlm_deploy.planner.workload import cross_entries, prompt_tokens, shortest_context, tile_state_bytes
from nvlm_deploy.preprocess import PromptBuilder, Tokenizer
from nvlm_deploy.synthetic.shapes import SHAPES, ModelShape, cross_style_config, released_style_config

Variant = Literal["D", "X", "H"]
VARIANTS: tuple[Variant, ...] = ("D", "X", "H")


def config_json(variant: Variant, shape: ModelShape, interval: int) -> dict[str, object]:
    if variant == "D":
        return released_style_config(shape)
    return cross_style_config(shape, variant, every(interval, shape.layers))


def config_72b(variant: Variant) -> NvlmConfig:
    return NvlmConfig.from_dict(config_json(variant, SHAPES["nvlm-d-72b"], 8))


@pytest.fixture(scope="module")
def tokenizer(shared_data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("vocabulary")
    packed = (shared_data_dir / "qwen2-tokenizer.json.gz").read_bytes()
    (directory / "tokenizer.json").write_bytes(gzip.decompress(packed))
    return Tokenizer.from_directory(directory)


@pytest.mark.parametrize("variant", VARIANTS)
def test_prompts_are_as_long_as_the_tokenizer_makes_them(tokenizer: Tokenizer, variant: Variant) -> None:
    config = config_72b(variant)
    builder = PromptBuilder(tokenizer, config)
    for tiles in (1, 3, 5, 7):
        prompt = builder.build("<image>\n", [tiles])
        assert len(prompt) == shortest_context(config, tiles) - 1
        if prompt.cross is not None:
            tags = sum(map(len, prompt.cross.tags))
            assert cross_entries(config, tiles) == 256 * len(prompt.cross.tiles) + tags


def test_worked_sizes_of_the_72b() -> None:
    sizes = {v: (prompt_tokens(config_72b(v), 7), tile_state_bytes(config_72b(v), 4, 7)) for v in VARIANTS}
    # Ten layers, 1,024 numbers for a key and as many for a value, of 1,792 and of 6 x 261 entries.
    assert sizes == {"D": (1862, 0), "X": (71, 146_800_640), "H": (296, 128_286_720)}


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[Variant, DevicePlan]:
    """The three on a CPU whose speed is given; two layers of the tower are enough here."""
    directory = tmp_path_factory.mktemp("plans")
    shape = replace(SHAPES["nvlm-d-0.5b"], vision_layers=2)
    known = ("bandwidth_gb_s=50", "tflops.fp32=1", "tflops.int8=2")
    made = {}
    for variant in VARIANTS:
        path = directory / f"{variant}.json"
        path.write_text(json.dumps(config_json(variant, shape, 4)))
        overrides = tuple(f"target.{each}" for each in known)
        question, _ = read_question(PlanRequest(path, "int4-rtn", "cpu-x86", overrides=overrides))
        made[variant] = question.plan(read_recipe("int4-rtn", ()))
    return made


def test_first_tokens_come_earlier_without_tiles_in_the_sequence(plans: dict[Variant, DevicePlan]) -> None:
    ttft = {variant: plan.prediction.ttft_ms for variant, plan in plans.items()}
    assert ttft["X"][7] < ttft["H"][7] < ttft["D"][7]
    # With one tile NVLM-H has what NVLM-D has, and nothing in cross-attention.
    assert ttft["H"][1] == pytest.approx(ttft["D"][1], rel=0.15)


def test_memory_and_weights_count_cross_attention(plans: dict[Variant, DevicePlan]) -> None:
    d, x, h = (plans[variant] for variant in VARIANTS)
    assert d.memory.tile_states == 0
    # Six layers, 128 numbers each, FP32.
    assert x.memory.tile_states == 2 * 6 * 128 * 4 * 7 * 256
    assert h.memory.tile_states == 2 * 6 * 128 * 4 * 6 * 261
    assert x.engine.language > d.engine.language
    # Keys and values of tiles are made once per image, so decoding does not read their weights.
    kv = 2 * 6 * 128 * (896 // 2 + 896 // 32 * 2)
    read = x.prediction.decode_bytes - x.memory.tile_states - d.prediction.decode_bytes
    states = d.kv_bytes_per_token * (prompt_tokens(d.config, 7) - prompt_tokens(x.config, 7))
    added = x.engine.language - d.engine.language
    assert read + states == added - kv
