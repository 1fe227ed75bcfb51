"""The schema of recipes, and the recipes that ship."""

from __future__ import annotations

from typing import Any

import pytest

from nvlm_deploy.config.catalog import list_names, load_yaml_model
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.errors import NvlmError


def test_the_promised_recipes_ship() -> None:
    assert {"fp32", "fp16", "int8", "int4-rtn", "int4-rtn-g128"} <= set(list_names("recipe"))


@pytest.mark.parametrize("name", list_names("recipe"))
def test_a_shipped_recipe_is_valid_and_named_after_its_file(name: str) -> None:
    assert load_yaml_model("recipe", name, Recipe).name == name


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("weights.language.group_size=48", "no power of two"),
        ("weights.language.group_size=8", "no power of two"),
        ("weights.language.format=fp16", "is for integers, not for fp16"),
        ("weights.language={format: int4}", "needs a group_size"),
        ("weights.language.format=int5", "weights.language.format"),
        ("weights.encoder={format: fp16}", "'weights.encoder' is not known"),
        ("weights.language.activations=int4", "weights.language.activations"),
        ("kv_cache=int8", "kv_cache"),
        ("algorithm=none", "algorithm is none, and the weights are quantized"),
        ("keep=[{match: '*'}]", "'keep.0.reason' is missing"),
    ],
)
def test_an_override_that_makes_no_sense_is_refused(override: str, problem: str) -> None:
    with pytest.raises(NvlmError, match=problem.replace(".", r"\.")):
        load_yaml_model("recipe", "int4-rtn", Recipe, [override])


@pytest.mark.parametrize(
    ("recipe", "rule", "problem"),
    [
        ("int4-awq", "format: int8", "'x': awq is for int4 weights, not for int8"),
        ("int4-awq", "format: int8, group_size: 32, algorithm: max", "a scale per output channel"),
        ("int4-rtn", "format: int8", "'x': round-to-nearest"),
        ("int4-rtn", "format: fp8, activations: fp8", "integers in groups"),
        ("fp32", "format: int8, group_size: 32", "algorithm is none, and the weights are quantized"),
        ("int4-awq", "format: int4", "int4 needs a group_size"),
    ],
)
def test_a_layer_rule_is_held_to_what_parts_are(recipe: str, rule: str, problem: str) -> None:
    with pytest.raises(NvlmError) as caught:
        load_yaml_model("recipe", recipe, Recipe, [f"layers=[{{match: x, reason: r, {rule}}}]"])
    assert problem in caught.value.message


def test_a_recipe_may_quantize_by_rules_alone() -> None:
    floats = ["weights.language={format: fp16}"]
    with pytest.raises(NvlmError, match="weights are not quantized"):
        load_yaml_model("recipe", "fp8", Recipe, floats)
    rule = "layers=[{match: x, reason: r, format: fp8, activations: fp8}]"
    recipe = load_yaml_model("recipe", "fp8", Recipe, [*floats, rule])
    assert recipe.makes_checkpoint
    assert recipe.needs_calibration


def test_no_part_has_a_default(tmp_path: Any) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\ndescription: d\nruns_on: r\nengines: [onnxruntime]\n"
        "algorithm: none\nkv_cache: fp32\nkeep: []\n"
        "weights: {vision: {format: fp16}}\n"
    )
    with pytest.raises(NvlmError, match=r"weights\.projector' is missing"):
        load_yaml_model("recipe", str(path), Recipe)
