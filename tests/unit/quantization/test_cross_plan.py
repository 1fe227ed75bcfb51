"""Recipes resolved for NVLM-X and NVLM-H: formats of cross-attention, what stays, and rules for layers."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest

from nvlm_deploy.config.catalog import list_names, load_yaml_model
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.parameters import parameter_shapes
from nvlm_deploy.config.recipe import LayerRule, NeverRule, Recipe
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.quantization.plan import QuantizationPlan, resolve
from nvlm_deploy.synthetic.shapes import SHAPES, cross_style_config

RECIPES = {name: load_yaml_model("recipe", name, Recipe) for name in list_names("recipe")}
LAYERS = tuple(range(7, 80, 8))
STEM = "language.layers.7.cross"


def plan_of(recipe: Recipe, variant: Literal["X", "H"]) -> QuantizationPlan:
    config = cross_style_config(SHAPES["nvlm-d-72b"], variant, LAYERS, gated_mlp=True, attention_bias=True)
    return resolve(recipe, parameter_shapes(NvlmConfig.from_dict(config)))


@pytest.mark.parametrize("variant", ["X", "H"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_stores_cross_attention_as_the_decoder(name: str, variant: Any) -> None:
    plan = plan_of(RECIPES[name], variant)
    decoder = plan.storage("language.layers.7.attention.q_proj.weight")
    cross = [tensor for tensor in plan.tensors.values() if ".cross." in tensor.name]
    assert len(cross) == len(LAYERS) * (4 + 3 + 3 + 3 + 2)
    for tensor in cross:
        if tensor.matrix:
            assert tensor.storage == decoder, tensor.name
        else:
            assert not tensor.storage.quantized
            assert tensor.name.endswith(("gate", "norm.weight", ".bias"))
    projector = [
        tensor.name for tensor in plan.tensors.values() if tensor.part == "projector" and tensor.matrix
    ]
    assert len(projector) == (1 if variant == "X" else 2)
    assert plan.tensors["language.embed_tokens.weight"].part == "embedding"


def test_gates_are_named_with_their_reason() -> None:
    calibrated = [recipe for recipe in RECIPES.values() if recipe.makes_checkpoint]
    assert len(calibrated) >= 14
    for recipe in calibrated:
        (rule,) = [rule for rule in recipe.never if rule.only == "cross_attention"]
        assert "an error in it is an error in all tokens" in rule.reason


def with_rules(name: str, **changes: Any) -> Recipe:
    data = json.loads(RECIPES[name].model_dump_json(exclude_unset=True))
    return Recipe.model_validate({**data, **changes})


def test_a_rule_can_keep_cross_attention() -> None:
    keep = [{"match": "language.layers.*.cross.*", "reason": "to compare with"}]
    plan = plan_of(with_rules("int4-awq", keep=keep), "X")
    assert not plan.storage(f"{STEM}.attention.k_proj.weight").quantized
    assert plan.tensors[f"{STEM}.attention.k_proj.weight"].kept == "to compare with"
    assert plan.storage("language.layers.7.attention.k_proj.weight").quantized


def test_keys_and_values_are_fused_and_queries_are_not() -> None:
    other = LayerRule(match=f"{STEM}.attention.q_proj.*", format="fp16", reason="a test").model_dump(
        exclude_unset=True
    )
    plan = plan_of(with_rules("fp8", layers=[other]), "H")
    assert not plan.storage(f"{STEM}.attention.q_proj.weight").quantized
    with pytest.raises(NvlmError, match=r"cross\.attention\.v_proj\.weight in another way than .*k_proj"):
        plan_of(with_rules("fp8", layers=[{**other, "match": f"{STEM}.attention.k_proj.*"}]), "H")


def test_a_rule_for_cross_attention_alone_must_match_there() -> None:
    rule = NeverRule(match="*.cross.*gat", reason="a typo", only="cross_attention").model_dump()
    recipe = with_rules("fp8", never=[rule])
    with pytest.raises(NvlmError, match="matches no parameter"):
        plan_of(recipe, "X")
