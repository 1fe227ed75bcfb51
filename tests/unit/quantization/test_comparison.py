"""The shipped recipes on the shapes of the released model."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from nvlm_deploy.checkpoint import model_shapes
from nvlm_deploy.checkpoint.weight_table import expected_tensors, model_table
from nvlm_deploy.cli.recipes import recipe_rows
from nvlm_deploy.config.catalog import find, list_names, load_yaml_model
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.parameters import Shape, parameter_shapes
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.quantization import resolve
from nvlm_deploy.quantization.comparison import compare
from nvlm_deploy.synthetic.shapes import SHAPES, released_style_config

RECIPES = {name: load_yaml_model("recipe", name, Recipe) for name in list_names("recipe")}
CALIBRATED = [name for name, recipe in RECIPES.items() if recipe.makes_checkpoint]


@pytest.fixture(scope="module")
def released() -> NvlmConfig:
    return NvlmConfig.from_dict(released_style_config(SHAPES["nvlm-d-72b"]))


@pytest.fixture(scope="module")
def shapes(released: NvlmConfig) -> dict[str, Shape]:
    return parameter_shapes(released)


def test_names_and_shapes_are_those_of_the_weight_table(released: NvlmConfig) -> None:
    small = NvlmConfig.from_dict(released_style_config(SHAPES["nvlm-d-0.5b"]))
    tied = replace(small, language=replace(small.language, tie_word_embeddings=True))
    llama = replace(small, language=replace(small.language, qkv_bias=False))
    for config in (released, small, tied, llama):
        assert parameter_shapes(config) == model_shapes(config)


@pytest.mark.parametrize("name", CALIBRATED)
def test_a_calibrated_recipe_fits_the_released_model(name: str, shapes: dict[str, Shape]) -> None:
    """Its `never` patterns match, its groups divide, and its file says the size that comes out."""
    plan = resolve(RECIPES[name], shapes)
    size = sum(part.after for part in plan.sizes())
    (stated,) = re.findall(r"^# NVLM-D-72B: ([\d.]+) GB", find("recipe", name).path.read_text(), re.MULTILINE)
    assert stated == f"{size / 1e9:.1f}"


def test_groups_divide_the_released_files_too(released: NvlmConfig, shapes: dict[str, Shape]) -> None:
    """The tower's attention has dummy heads there."""
    on_disk, rules = expected_tensors(released), model_table(released).rules
    for name in CALIBRATED:
        plan = resolve(RECIPES[name], shapes)
        for rule in rules:
            storage = plan.storage(rule.targets[0])
            if storage.algorithm and storage.group_size:
                assert on_disk[rule.sources[0]][1] % storage.group_size == 0, (name, rule.sources[0])


@pytest.mark.parametrize("name", CALIBRATED)
def test_what_is_never_quantized_is_in_floats(name: str, shapes: dict[str, Shape]) -> None:
    plan = resolve(RECIPES[name], shapes)
    quantized = {n for n, tensor in plan.tensors.items() if tensor.storage.quantized}
    assert quantized <= {n for n, tensor in plan.tensors.items() if tensor.matrix}
    # The rows of the tile tags among them.
    assert ("language.embed_tokens.weight" in quantized) == name.endswith("-head8")
    assert len(RECIPES[name].never) == 7
    assert all(rule.reason for rule in RECIPES[name].never)


@pytest.mark.parametrize("name", CALIBRATED)
def test_engines_are_those_that_take_the_formats(name: str) -> None:
    recipe = RECIPES[name]
    weights, engines = recipe.weights, set(recipe.engines)
    tower = weights.vision.quantized or weights.projector.quantized
    if "vllm" in engines:
        # vLLM's loader of ModelOpt checkpoints: FP8 and NVFP4, and never the tower.
        assert weights.language.format in ("fp8", "nvfp4")
        assert not tower
    if recipe.kv_cache == "fp8":
        assert "onnxruntime" not in engines
    grouped = {part.group_size for part in weights.all() if part.format == "int4"}
    if engines & {"tensorrt_llm", "tensorrt", "tensorrt_rtx"}:
        assert grouped <= {64, 128}
        assert not weights.lm_head.quantized
        assert not weights.embedding.quantized
        assert recipe.needs_sm is not None
    if "tensorrt_llm" in engines and weights.language.activations == "fp8" and grouped:
        assert grouped == {128}


def test_bytes_per_weight_are_those_of_the_formats() -> None:
    names = ("fp32", "fp16", "int8", "int8-wo", "int4-awq", "int4-awq-vit-int8", "fp8", "nvfp4")
    figures = {each.name: each for each in compare(RECIPES[name] for name in names)}
    assert figures["fp32"].bytes_per_weight == 4
    assert figures["fp16"].decoder_bytes_per_weight == 2
    # 4 bits, and an FP32 scale for 128 weights; FP8 has one scale per matrix.
    assert figures["int4-awq"].decoder_bytes_per_weight == 0.5 + 4 / 128
    assert figures["nvfp4"].decoder_bytes_per_weight == pytest.approx(0.5 + 1 / 16, rel=1e-6)
    assert figures["fp8"].decoder_bytes_per_weight == pytest.approx(1, rel=1e-6)
    assert figures["int4-awq"].bytes_per_weight > figures["int4-awq-vit-int8"].bytes_per_weight
    assert (figures["fp8"].capability, figures["int8"].capability) == ("8.9", "any")
    assert not figures["int8-wo"].needs_calibration
    assert [name for name in CALIBRATED if not RECIPES[name].needs_calibration] == ["int8-wo"]


def test_the_documentation_has_the_same_table(repository: Path) -> None:
    lines = (repository / "docs" / "recipes.md").read_text().splitlines()
    cells = [
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")
    ]
    headings, *rows = recipe_rows(compare(RECIPES.values()))
    assert cells[0] == list(headings)
    assert cells[2 : 2 + len(rows)] == [list(row) for row in rows]


def test_a_model_of_one_s_own_can_be_compared(released: NvlmConfig) -> None:
    small = NvlmConfig.from_dict(released_style_config(SHAPES["nvlm-d-0.5b"]))
    (large,), (other,) = compare([RECIPES["int8-sq"]], released), compare([RECIPES["int8-sq"]], small)
    assert other.weight_bytes < large.weight_bytes / 50
