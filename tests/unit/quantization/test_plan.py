"""Recipes resolved against models."""

from __future__ import annotations

import pytest

from nvlm_deploy.config.catalog import load_yaml_model
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.models import meta_model
from nvlm_deploy.quantization import QuantizationPlan, Storage, resolve
from nvlm_deploy.synthetic.shapes import SHAPES, ModelShape, released_style_config

SMALL = ModelShape(
    tile_size=56,
    vision_hidden=32,
    vision_intermediate=64,
    vision_layers=1,
    vision_heads=2,
    hidden=64,
    intermediate=96,
    layers=2,
    heads=4,
    kv_heads=2,
    vocab_size=320,
)


def plan(recipe: str, shape: ModelShape, *overrides: str, tied: bool = False) -> QuantizationPlan:
    raw = released_style_config(shape)
    raw["llm_config"]["tie_word_embeddings"] = tied
    model = meta_model(NvlmConfig.from_dict(raw))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return resolve(load_yaml_model("recipe", recipe, Recipe, overrides), shapes)


def test_matrices_follow_the_recipe_and_the_rest_stays_fp32() -> None:
    resolved = plan("int4-rtn", SMALL)
    assert resolved.storage("language.layers.1.mlp.down_proj.weight") == Storage("int4", 32, True, "int8")
    assert resolved.storage("vision.layers.0.mlp.fc1.weight") == Storage("int4", 32, True, "int8")
    assert resolved.tensors["language.lm_head.weight"].part == "lm_head"
    for name in (
        "language.layers.0.attention.q_proj.bias",
        "language.norm.weight",
        "vision.position_embedding",
        "vision.patch_embedding.weight",
        "vision.layers.0.layer_scale1",
        "projector.norm.weight",
    ):
        assert resolved.storage(name) == Storage("fp32"), name


def test_sizes_are_those_of_the_formats() -> None:
    assert Storage("fp16").nbytes((3, 5)) == 30
    # Two groups per row: 32 bytes of codes and 4 of scales; asymmetric adds one byte of zero points.
    assert Storage("int4", 32).nbytes((10, 64)) == 10 * (32 + 4)
    assert Storage("int4", 32, symmetric=False).nbytes((10, 64)) == 10 * (32 + 4 + 1)
    # A partial group is stored whole.
    assert Storage("int8", 32).nbytes((10, 40)) == 10 * (64 + 4)


@pytest.mark.parametrize("recipe", ["int4-rtn", "int4-rtn-g128", "int4-rtn-vit-int8"])
def test_the_released_model_fits_the_promised_size(recipe: str) -> None:
    sizes = {part.part: part for part in plan(recipe, SHAPES["nvlm-d-72b"]).sizes()}
    linears = [sizes[part] for part in ("vision", "projector", "language", "lm_head")]
    assert sum(p.linear_after for p in linears) <= 0.30 * sum(p.linear_before for p in linears)
    # All parameters without the dummy heads, in 16 bits.
    assert sum(part.before for part in sizes.values()) == 2 * 78_863_416_704


def test_kept_matrices_are_not_quantized() -> None:
    rule = "keep=[{match: 'language.layers.0.mlp.*', reason: first layer}]"
    resolved = plan("int4-rtn", SMALL, rule)
    kept = [name for name, tensor in resolved.tensors.items() if tensor.kept]
    assert kept == [f"language.layers.0.mlp.{p}_proj.weight" for p in ("gate", "up", "down")]
    assert {resolved.storage(name) for name in kept} == {Storage("fp16")}


def test_a_keep_pattern_must_match_a_matrix() -> None:
    with pytest.raises(NvlmError, match=r"'language\.norm\.weight' matches no matrix"):
        plan("int4-rtn", SMALL, "keep=[{match: language.norm.weight, reason: r}]")


def test_a_tied_head_shares_the_embedding_only_if_stored_alike() -> None:
    alike = plan(
        "int4-rtn-g128", SMALL, "weights.embedding.group_size=64", "weights.lm_head.group_size=64", tied=True
    )
    assert alike.tied
    assert alike.stored_bytes("language.lm_head.weight") == 0
    different = plan("int4-rtn", SMALL, tied=True)
    assert different.tied
    assert different.stored_bytes("language.lm_head.weight") == Storage("int4", 32).nbytes((320, 64))
    padded = plan("int4-rtn-g128", SMALL, tied=True)
    assert not padded.shares_embedding, "rows of 64 are padded to 128 in the head and not in the embedding"
    assert not plan("int4-rtn", SMALL).tied


AWQ_64 = "weights.language.group_size=32"


def test_the_first_rule_that_matches_wins_and_keep_comes_before_layers() -> None:
    resolved = plan(
        "int4-awq",
        SMALL,
        AWQ_64,
        "layers=[{match: 'language.layers.0.mlp.down_proj.*', format: fp16, reason: a},"
        " {match: 'language.layers.0.*', format: int8, algorithm: max, activations: int8, reason: b}]",
        "keep=[{match: 'language.layers.0.attention.*', reason: c}]",
    )
    int8 = Storage("int8", activations="int8", algorithm="max")
    assert resolved.storage("language.layers.0.mlp.gate_proj.weight") == int8
    assert resolved.storage("language.layers.1.mlp.gate_proj.weight").format == "int4"
    kept = {name: tensor.kept for name, tensor in resolved.tensors.items() if tensor.kept}
    assert kept == {
        "language.layers.0.mlp.down_proj.weight": "a",
        **{f"language.layers.0.attention.{p}_proj.weight": "c" for p in "qkvo"},
    }


def test_a_rule_of_a_round_to_nearest_recipe_has_groups() -> None:
    rule = "layers=[{match: 'language.layers.1.*', format: int8, group_size: 64, reason: r}]"
    resolved = plan("int4-rtn", SMALL, rule)
    assert resolved.storage("language.layers.1.mlp.up_proj.weight") == Storage("int8", 64)
    assert resolved.storage("language.layers.0.mlp.up_proj.weight").format == "int4"


def test_layer_rules_leave_the_embedding_to_its_part() -> None:
    rule = "layers=[{match: '*', format: int8, algorithm: max, activations: int8, reason: r}]"
    assert plan("int4-awq", SMALL, AWQ_64, rule).storage("language.embed_tokens.weight") == Storage("fp16")
    with pytest.raises(NvlmError, match="matches no matrix") as caught:
        plan("int4-awq", SMALL, AWQ_64, rule.replace("'*'", "language.embed_tokens.*"))
    assert caught.value.hint == "the embedding's format is weights.embedding"


@pytest.mark.parametrize(
    ("rule", "problem", "hint"),
    [
        (
            "{match: language.layer.1.mlp.up_proj.weight, format: fp16, reason: r}",
            "the layers pattern 'language.layer.1.mlp.up_proj.weight' matches no matrix",
            "language.layers.1.mlp.up_proj.weight",
        ),
        (
            "{match: 'language.layers.*', format: fp16, reason: r},"
            " {match: 'language.layers.0.*', format: fp16, reason: r}",
            "'language.layers.0.*' has no effect: 'language.layers.*' comes before it",
            "special ones before the general ones",
        ),
        (
            "{match: language.layers.0.mlp.up_proj.weight, format: fp16, reason: r}",
            "up_proj.weight in another way than language.layers.0.mlp.gate_proj.weight, but tensorrt_llm",
            "'language.layers.0.mlp.*'",
        ),
        (
            "{match: vision.layers.0.attention.q_proj.weight, format: fp8, activations: fp8, algorithm: max,"
            " reason: r}",
            "but the tower's q, k and v are one tensor",
            "'vision.layers.0.attention.*'",
        ),
        (
            "{match: 'language.layers.0.*', format: int4, group_size: 64, reason: r}",
            "down_proj.weight has 96 inputs, which groups of 64 do not divide",
            "--set layers.0.group_size=32",
        ),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rule: str, problem: str, hint: str) -> None:
    with pytest.raises(NvlmError) as caught:
        plan("int4-awq", SMALL, AWQ_64, f"layers=[{rule}]")
    assert problem in caught.value.message
    assert hint in str(caught.value.hint)


def test_engines_that_fuse_nothing_take_any_mix() -> None:
    rule = "layers=[{match: language.layers.0.mlp.up_proj.weight, format: fp16, reason: r}]"
    resolved = plan("int4-awq", SMALL, AWQ_64, rule, "engines=[onnxruntime]")
    assert resolved.storage("language.layers.0.mlp.up_proj.weight") == Storage("fp16")


def test_what_is_never_quantized_is_not_quantized_by_a_rule_either() -> None:
    never = "never=[{match: '*.layers.0.mlp.*', reason: it overflows}]"
    rule = "layers=[{match: 'language.layers.*', format: fp8, activations: fp8, reason: r}]"
    with pytest.raises(NvlmError, match=r"quantizes language\.layers\.0\..* it overflows"):
        plan("fp8", SMALL, "weights.language={format: fp16}", rule, never)
