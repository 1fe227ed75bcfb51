"""Every field that the code relies on is asserted when it is read."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.synthetic.shapes import SHAPES, released_style_config


@pytest.fixture
def raw() -> dict[str, Any]:
    return copy.deepcopy(released_style_config(SHAPES["nvlm-d-72b"]))


def test_released_config(shared_data_dir: Path) -> None:
    config = NvlmConfig.from_file(shared_data_dir / "nvlm-d-72b.config.json")
    assert (config.vision.num_heads, config.vision.head_dim, config.vision.padded_hidden_size) == (
        25,
        128,
        4096,
    )
    assert (config.language.num_kv_heads, config.language.head_dim) == (8, 128)
    assert (config.tile_size, config.visual_tokens_per_tile, config.max_tiles) == (448, 256, 6)
    assert (config.projector_input_size, config.projector_hidden_size) == (12800, 29568)
    assert config.thumbnail_tag == "<tile_global_thumbnail>"
    assert config.language.qkv_bias
    assert not config.language.tie_word_embeddings


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("", "ps_version", "v1"),
        ("", "select_layer", -2),
        ("", "downsample_ratio", 0.25),
        ("", "use_thumbnail", False),
        ("", "architectures", ["NVLM_Q"]),
        ("", "force_image_size", 336),
        ("llm_config", "hidden_act", "gelu"),
        ("llm_config", "attention_bias", False),
        ("llm_config", "rope_scaling", {"type": "linear", "factor": 2.0}),
        ("llm_config", "num_key_value_heads", 7),
        ("llm_config", "architectures", ["MistralForCausalLM"]),
        ("vision_config", "qkv_bias", True),
        ("vision_config", "norm_type", "layer_norm"),
        ("vision_config", "hidden_size", "3200"),
        ("vision_config", "num_attention_heads", 24),
    ],
)
def test_refuses_with_field_and_value(raw: dict[str, Any], section: str, key: str, value: object) -> None:
    (raw[section] if section else raw)[key] = value
    with pytest.raises(NvlmError) as caught:
        NvlmConfig.from_dict(raw, source="some/config.json")
    prefix = f"{section}." if section else ""
    assert caught.value.message.startswith(f"some/config.json: {prefix}{key} is {value!r}; supported: ")


def test_missing_field(raw: dict[str, Any]) -> None:
    del raw["llm_config"]["rope_theta"]
    with pytest.raises(NvlmError, match=r"the field llm_config\.rope_theta is missing"):
        NvlmConfig.from_dict(raw)


def test_yi_34b(raw: dict[str, Any]) -> None:
    raw["llm_config"].update(
        architectures=["LlamaForCausalLM"],
        attention_bias=False,
        hidden_size=7168,
        intermediate_size=20480,
        num_attention_heads=56,
        num_hidden_layers=60,
        rope_theta=5e6,
        vocab_size=64000,
        rope_scaling=None,
    )
    config = NvlmConfig.from_dict(raw)
    assert config.thumbnail_tag == "<tile_global>"
    assert not config.language.qkv_bias
    assert (config.language.rope_theta, config.projector_hidden_size) == (5e6, 20480)
