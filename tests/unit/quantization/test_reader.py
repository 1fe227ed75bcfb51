"""Quantized checkpoints that are not in order: the reader names what is wrong before anything is computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.quantization.checkpoint import QuantizedReader, QuantizedWeights, open_weights

from .conftest import Quantized

MODULE = "language_model.model.layers.1.mlp.down_proj"
Broken = Callable[..., Path]


@pytest.fixture
def broken(quantized: Quantized, tmp_path: Path) -> Broken:
    """Copies a quantized checkpoint and changes the tensors of its second decoder layer."""

    def make(recipe: str, change: Callable[[dict[str, Tensor]], object]) -> Path:
        directory = Path(shutil.copytree(quantized(recipe), tmp_path / "broken"))
        index = directory / "model.safetensors.index.json"
        entries = json.loads(index.read_text())
        shard = entries["weight_map"][f"{MODULE}.weight"]
        tensors = load_file(directory / shard)
        change(tensors)
        save_file(tensors, directory / shard)
        kept = {name: file for name, file in entries["weight_map"].items() if file != shard}
        entries["weight_map"] = kept | dict.fromkeys(tensors, shard)
        index.write_text(json.dumps(entries))
        return directory

    return make


def change_config(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "hf_quant_config.json"
    config = json.loads(path.read_text())
    change(config["quantization"])
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("recipe", "suffix"),
    [
        ("fp8", "input_scale"),
        ("fp8", "weight_scale"),
        ("int4-awq", "weight_scale"),
        ("int8-wo", "weight_scale"),
        ("nvfp4", "weight_scale_2"),
        ("w4a8-awq", "weight_scale_2"),
        ("w4a8-awq", "input_scale"),
    ],
)
def test_a_missing_companion(broken: Broken, recipe: str, suffix: str) -> None:
    directory = broken(recipe, lambda tensors: tensors.pop(f"{MODULE}.{suffix}"))
    with pytest.raises(NvlmError, match=f"the tensor {MODULE}.{suffix} is missing"):
        QuantizedReader(directory)


def test_a_missing_scale_of_the_cache(broken: Broken) -> None:
    name = "language_model.model.layers.1.self_attn.v_proj.v_scale"
    directory = broken("fp8-kv8", lambda tensors: tensors.pop(name))
    with pytest.raises(NvlmError, match=f"the tensor {name} is missing"):
        QuantizedReader(directory)


@pytest.mark.parametrize(
    ("recipe", "name", "other"),
    [
        ("int4-awq", "weight", torch.zeros(64, 96, dtype=torch.uint8)),
        ("int4-awq", "weight_scale", torch.zeros(64, 2)),
        ("int4-awq", "pre_quant_scale", torch.zeros(64, dtype=torch.bfloat16)),
        ("fp8", "weight", torch.zeros(64, 96)),
        ("fp8", "weight_scale", torch.zeros(64)),
        ("nvfp4", "weight_scale", torch.zeros(64, 6)),
        ("int8-sq", "weight_scale", torch.zeros(64, dtype=torch.float16)),
    ],
)
def test_a_tensor_of_another_shape_or_dtype(broken: Broken, recipe: str, name: str, other: Tensor) -> None:
    directory = broken(recipe, lambda tensors: tensors.update({f"{MODULE}.{name}": other}))
    with pytest.raises(NvlmError, match=rf"{MODULE}.{name} is \w+ .*, but its format has \w+ \["):
        QuantizedReader(directory)


def test_a_companion_of_nothing(broken: Broken) -> None:
    stray = "language_model.model.layers.1.mlp.down_porj.input_scale"
    directory = broken("fp8", lambda tensors: tensors.update({stray: torch.ones(())}))
    with pytest.raises(NvlmError, match=f"{stray} belongs to no quantized matrix") as caught:
        QuantizedReader(directory)
    assert f"{MODULE}.weight" in str(caught.value.hint)


def test_an_excluded_module_that_is_quantized(broken: Broken) -> None:
    directory = broken("fp8", lambda tensors: None)
    change_config(directory, lambda config: config["exclude_modules"].append(MODULE))
    with pytest.raises(NvlmError, match=f"{MODULE}.weight has the dtype 'F8_E4M3', but .* excludes it"):
        QuantizedReader(directory)


def test_a_module_in_floats_that_should_be_quantized(broken: Broken) -> None:
    directory = broken("fp8", lambda tensors: None)
    change_config(directory, lambda config: config["exclude_modules"].remove("language_model.lm_head"))
    with pytest.raises(NvlmError, match=r"lm_head\.weight is BF16 .* but its format has F8_E4M3"):
        QuantizedReader(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(quant_algo="FP4_MAGIC"), "the format FP4_MAGIC is not supported"),
        (lambda config: config.pop("quant_algo"), "there is no quantization.quant_algo"),
    ],
)
def test_an_unknown_format(broken: Broken, change: Callable[[dict[str, Any]], object], message: str) -> None:
    directory = broken("fp8", lambda tensors: None)
    change_config(directory, change)
    with pytest.raises(NvlmError, match=message):
        QuantizedReader(directory)


def test_a_config_that_is_no_json(broken: Broken) -> None:
    directory = broken("fp8", lambda tensors: None)
    (directory / "hf_quant_config.json").write_text("{")
    with pytest.raises(NvlmError, match=r"hf_quant_config.json cannot be read"):
        QuantizedReader(directory)


def test_a_group_size_that_is_not_that_of_the_scales(broken: Broken) -> None:
    directory = broken("int4-awq", lambda tensors: None)
    change_config(directory, lambda config: config.update(group_size=16))
    with pytest.raises(NvlmError, match=r"weight_scale is F32 .* but its format has F32"):
        QuantizedReader(directory)


def test_released_and_quantized_checkpoints_are_told_apart(quantized: Quantized, checkpoint: Path) -> None:
    assert isinstance(open_weights(quantized("fp8")), QuantizedWeights)
    released = open_weights(checkpoint)
    assert type(released) is ModelWeights
    with pytest.raises(NvlmError, match="is no quantized checkpoint"):
        QuantizedReader(checkpoint)
