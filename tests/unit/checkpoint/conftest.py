"""Small checkpoints in the released layout, written with the safetensors library."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from nvlm_deploy.checkpoint.weight_table import released_tensors
from nvlm_deploy.config.model import NvlmConfig

RawConfig = dict[str, Any]
ConfigFactory = Callable[..., RawConfig]
Tensors = dict[str, torch.Tensor]

# 25 + 7 vision heads and 8 key-value heads, as released, so that tensor parallelism 8 divides them.
_VISION = {
    "architectures": ["InternVisionModel"],
    "model_type": "intern_vit_6b",
    "hidden_act": "gelu",
    "norm_type": "rms_norm",
    "qk_normalization": True,
    "qkv_bias": False,
    "layer_norm_eps": 1e-6,
    "hidden_size": 100,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 25,
    "image_size": 56,
    "patch_size": 14,
    "num_channels": 3,
}
_LANGUAGE = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": True,
    "mlp_bias": False,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"factor": 3.0, "type": "dynamic"},
    "max_position_embeddings": 512,
    "vocab_size": 300,
    "tie_word_embeddings": False,
    "bos_token_id": 290,
    "eos_token_id": 291,
    "top_p": 0,
}
_TOP = {
    "architectures": ["NVLM_D"],
    "model_type": "NVLM_D",
    "downsample_ratio": 0.5,
    "ps_version": "v2",
    "select_layer": -1,
    "template": "chatml",
    "dynamic_image_size": True,
    "use_thumbnail": True,
    "force_image_size": 56,
    "max_dynamic_patch": 6,
    "min_dynamic_patch": 1,
}


@pytest.fixture(scope="session")
def raw_config() -> ConfigFactory:
    """Makes a small config.json; keyword arguments change its `llm_config`."""

    def make(**language: Any) -> RawConfig:
        raw = {**_TOP, "vision_config": _VISION, "llm_config": {**_LANGUAGE, **language}}
        return copy.deepcopy(raw)

    return make


@pytest.fixture
def config(raw_config: ConfigFactory) -> NvlmConfig:
    return NvlmConfig.from_dict(raw_config())


@pytest.fixture(scope="session")
def random_tensors() -> Callable[..., Tensors]:
    """Makes random tensors of a config in the released dtypes; the dummy heads are zero."""
    return _random_tensors


@pytest.fixture(scope="session")
def write_checkpoint() -> Callable[..., Path]:
    """Writes a directory with config.json, two shards by the safetensors library, and their index."""
    return _write_checkpoint


@pytest.fixture(scope="session")
def pristine_checkpoint(tmp_path_factory: pytest.TempPathFactory, raw_config: ConfigFactory) -> Path:
    """A complete checkpoint of the small config in two shards, to be read only."""
    return _write_checkpoint(tmp_path_factory.mktemp("pristine") / "checkpoint", raw_config())


@pytest.fixture
def checkpoint(tmp_path: Path, pristine_checkpoint: Path) -> Path:
    """A copy of the complete checkpoint."""
    return Path(shutil.copytree(pristine_checkpoint, tmp_path / "checkpoint"))


def _random_tensors(config: NvlmConfig, seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for row in released_tensors(config):
        tensor = torch.randn(row.shape, generator=generator)
        tensors[row.name] = _zero_dummy_heads(row.name, tensor, config).to(row.dtype)
    return tensors


def _zero_dummy_heads(name: str, tensor: torch.Tensor, config: NvlmConfig) -> torch.Tensor:
    width, padded = config.vision.hidden_size, config.vision.padded_hidden_size
    if name.endswith("attn.qkv.weight"):
        tensor.view(3, padded, -1)[:, width:] = 0
    elif name.endswith(("attn.q_norm.weight", "attn.k_norm.weight", "attn.proj.weight")):
        tensor[..., width:] = 0
    return tensor


def _write_checkpoint(
    directory: Path, raw: RawConfig, tensors: Mapping[str, torch.Tensor] | None = None
) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    (directory / "tokenizer.json").write_text("{}", encoding="utf-8")
    if tensors is None:
        tensors = _random_tensors(NvlmConfig.from_dict(raw))
    names = list(tensors)
    weight_map = {}
    for number, part in ((1, names[: len(names) // 2]), (2, names[len(names) // 2 :])):
        shard = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name].contiguous() for name in part}, directory / shard)
        weight_map.update(dict.fromkeys(part, shard))
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return directory
