"""The two config files of a unified checkpoint, and what loaders make of them."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch

from nvlm_deploy.errors import NvlmError
from nvlm_deploy.quantization.plan import Storage
from nvlm_deploy.quantization.unified import QuantConfig, quant_algorithm, quant_config

from .conftest import CALIBRATED, VISION, Quantized, stored_tensors

# What ModelOpt 0.47 writes for a format: `quant_algo`, and the keys that stand beside it.
AWQ = {"group_size": 32, "has_zero_point": False, "pre_quant_scale": True}
DETAILS: dict[str, tuple[str, dict[str, Any]]] = {
    "fp8": ("FP8", {}),
    "fp8-kv8": ("FP8", {}),
    "int4-awq": ("W4A16_AWQ", AWQ),
    "int4-gptq": ("W4A16_AWQ", AWQ),
    "w4a8-awq": ("W4A8_AWQ", AWQ),
    "int8-sq": ("W8A8_SQ_PER_CHANNEL", {}),
    "int8-wo": ("W8A16", {}),
    "nvfp4": ("NVFP4", {"group_size": 16}),
}
FLOAT8 = {"dynamic": False, "num_bits": 8, "type": "float"}
FLOAT4 = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
UNQUANTIZED = ["language_model.lm_head", "language_model.model.embed_tokens", "mlp1*", "vision_model*"]


def configs(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    names = ("hf_quant_config.json", "config.json")
    hf, config = (json.loads((directory / name).read_text()) for name in names)
    return hf, config["quantization_config"]


@pytest.mark.parametrize("recipe", CALIBRATED)
def test_one_format_is_described_as_modelopt_describes_it(quantized: Quantized, recipe: str) -> None:
    hf, section = configs(quantized(recipe))
    algorithm, details = DETAILS[recipe]
    kv = "FP8" if recipe == "fp8-kv8" else None
    assert hf["producer"]["name"] == "modelopt"
    assert hf["quantization"] == {
        "quant_algo": algorithm,
        "kv_cache_quant_algo": kv,
        **details,
        "exclude_modules": UNQUANTIZED,
    }
    assert (section["quant_method"], section["quant_algo"]) == ("modelopt", algorithm)
    assert section["ignore"] == UNQUANTIZED
    assert {key: section[key] for key in details} == details
    assert section.get("kv_cache_scheme") == (FLOAT8 if kv else None)
    tensors = {"FP8": FLOAT8, "NVFP4": FLOAT4}.get(algorithm)
    if tensors is None:
        assert "config_groups" not in section
    else:
        group = {"input_activations": tensors, "weights": tensors, "targets": ["Linear"]}
        assert section["config_groups"] == {"group_0": group}


def test_several_formats_are_listed_by_module(quantized: Quantized) -> None:
    hf, section = configs(quantized("int4-awq-vit-int8-head8"))
    quantization = hf["quantization"]
    assert quantization["quant_algo"] == section["quant_algo"] == "MIXED_PRECISION"
    layers = quantization["quantized_layers"]
    assert section["quantized_layers"] == layers
    assert layers["language_model.model.layers.1.self_attn.k_proj"] == {"quant_algo": "W4A16_AWQ", **AWQ}
    assert layers["vision_model.encoder.layers.0.attn.qkv"] == {"quant_algo": "W8A8_SQ_PER_CHANNEL"}
    assert layers["mlp1.1"] == {"quant_algo": "W8A8_SQ_PER_CHANNEL"}
    assert layers["language_model.lm_head"] == {"quant_algo": "W8A16"}
    assert len(layers) == 2 * 4 + 2 + 2 * 7 + 1
    assert quantization["exclude_modules"] == ["language_model.model.embed_tokens"]


@pytest.mark.parametrize("recipe", [*CALIBRATED, *VISION])
def test_what_is_written_is_read_again(quantized: Quantized, recipe: str) -> None:
    directory = quantized(recipe)
    config = QuantConfig.read(directory)
    assert config is not None
    quantized_modules = {
        name.removesuffix(".weight_scale")
        for name in stored_tensors(directory)
        if name.endswith(".weight_scale")
    }
    for name, tensor in stored_tensors(directory).items():
        module, _, suffix = name.rpartition(".")
        if suffix == "weight" and tensor.dim() == 2:
            assert (config.storage(module) is not None) == (module in quantized_modules), module


@pytest.mark.parametrize("name", ["FP8", "NVFP4", "W4A16_AWQ", "W4A8_AWQ", "W8A8_SQ_PER_CHANNEL", "W8A16"])
def test_names_of_formats_and_storages_belong_together(name: str) -> None:
    config = QuantConfig({"quantization": {"quant_algo": name, "group_size": 64}}, "here")
    storage = config.storage("some.module")
    assert storage is not None
    assert quant_algorithm(storage) == name
    assert storage.group_size == {"NVFP4": 16, "W4A16_AWQ": 64, "W4A8_AWQ": 64}.get(name, 0)


def test_formats_without_a_name_are_refused() -> None:
    with pytest.raises(NvlmError, match="has no fp8 weights with nvfp4 activations") as caught:
        quant_algorithm(Storage("fp8", activations="nvfp4"))
    assert "NVFP4" in str(caught.value.hint)


def test_modules_in_floats_are_excluded_one_by_one_where_their_branch_is_not() -> None:
    fp8, floats = Storage("fp8", activations="fp8", algorithm="max"), Storage("fp16")
    linears = {"mlp1.1": fp8, "mlp1.3": floats, "vision_model.a": floats, "language_model.b": fp8}
    quantization = quant_config(linears, "fp16")["quantization"]
    assert quantization["exclude_modules"] == ["mlp1.3", "vision_model*"]


# What vLLM's loader reads (vllm/model_executor/layers/quantization/modelopt.py, main of 2026): algorithms,
# and dtype and shape of a linear's tensors for N outputs and K inputs.
Shape = tuple[str | int, ...]
VLLM: dict[str, dict[str, tuple[torch.dtype, Shape]]] = {
    "FP8": {
        "weight": (torch.float8_e4m3fn, ("N", "K")),
        "weight_scale": (torch.float32, ()),
        "input_scale": (torch.float32, ()),
    },
    "NVFP4": {
        "weight": (torch.uint8, ("N", "K/2")),
        "weight_scale": (torch.float8_e4m3fn, ("N", "K/16")),
        "weight_scale_2": (torch.float32, ()),
        "input_scale": (torch.float32, ()),
    },
}
# It fuses these, under names of its own, and has one scale per tensor for all of them.
VLLM_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
VLLM_REQUIRED = ("quant_algo", "kv_cache_quant_algo", "exclude_modules")


# Outputs and inputs of the linears of a decoder layer of the model in these tests.
WIDTHS = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (96, 64),
    "mlp.up_proj": (96, 64),
    "mlp.down_proj": (64, 96),
}


class TestVllm:
    RECIPES = ("fp8", "fp8-kv8", "nvfp4")

    @pytest.mark.parametrize("recipe", RECIPES)
    def test_every_linear_has_the_tensors_that_are_read_and_no_other(
        self, quantized: Quantized, recipe: str
    ) -> None:
        directory = quantized(recipe)
        tensors = stored_tensors(directory)
        algorithm = configs(directory)[0]["quantization"]["quant_algo"]
        for layer in range(2):
            for name, (rows, columns) in WIDTHS.items():
                stem = f"language_model.model.layers.{layer}.{name}."
                sizes = {"N": rows, "K": columns, "K/2": columns // 2, "K/16": columns // 16}
                expected = {
                    suffix: (dtype, tuple(sizes[str(size)] for size in shape))
                    for suffix, (dtype, shape) in VLLM[algorithm].items()
                }
                if name.endswith(("q_proj", "k_proj", "v_proj")):
                    expected["bias"] = (torch.float32, (rows,))
                if recipe == "fp8-kv8" and name[-6:] in ("k_proj", "v_proj"):
                    expected[f"{name[-6]}_scale"] = (torch.float32, ())
                found = {n.removeprefix(stem): t for n, t in tensors.items() if n.startswith(stem)}
                assert {n: (t.dtype, tuple(t.shape)) for n, t in found.items()} == expected, stem

    @pytest.mark.parametrize("recipe", RECIPES)
    def test_its_keys_are_there(self, quantized: Quantized, recipe: str) -> None:
        hf, section = configs(quantized(recipe))
        quantization = hf["quantization"]
        assert set(VLLM_REQUIRED) <= set(quantization)
        assert quantization["quant_algo"] in VLLM
        assert section["quant_method"] == "modelopt"
        assert isinstance(section["ignore"], list)
        if quantization["quant_algo"] == "NVFP4":
            assert quantization["group_size"] == section["group_size"] == 16

    @pytest.mark.parametrize("recipe", RECIPES)
    def test_it_quantizes_the_decoder_and_nothing_else(self, quantized: Quantized, recipe: str) -> None:
        patterns = configs(quantized(recipe))[1]["ignore"]

        def excluded(prefix: str) -> bool:
            """It takes a pattern as a glob, and also as a part of the module's name."""
            return any(fnmatchcase(prefix, pattern) or pattern in prefix for pattern in patterns)

        for layer in (0, 1, 79):
            stem = f"language_model.model.layers.{layer}."
            for name in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"):
                assert not excluded(stem + name)
            for parts in VLLM_FUSED.values():
                assert not any(excluded(f"{stem}x.{part}") for part in parts)
        for name in (
            "language_model.lm_head",
            "language_model.model.embed_tokens",
            "mlp1.1",
            "vision_model.encoder.layers.3.attn.qkv",
        ):
            assert excluded(name)
