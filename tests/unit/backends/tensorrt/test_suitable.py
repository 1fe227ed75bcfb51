"""What TensorRT cannot do is refused before any work, and graphs are written for what it can."""

from __future__ import annotations

import pytest

from nvlm_deploy.backends.makers import EngineSettings, engine_maker
from nvlm_deploy.backends.tensorrt.dialects import dialect_for
from nvlm_deploy.backends.tensorrt.profiles import decoder_ranges, vision_ranges
from nvlm_deploy.checkpoint import ModelWeights
from nvlm_deploy.config.catalog import load_yaml_model
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.config.target import load_target
from nvlm_deploy.errors import UnsuitableError, UsageError
from nvlm_deploy.export import build_decoder
from nvlm_deploy.quantization import QuantizationPlan, resolve

from ..conftest import plan_for
from .conftest import settings

ADA, AMPERE = "l40s-48gb", "a100-80gb"
# The tiny model's widths are no multiples of 128.
GROUPS = {"int4-awq": ["weights.language.group_size=32"], "w4a8-awq": ["weights.language.group_size=32"]}


def recipe_plan(weights: ModelWeights, name: str) -> QuantizationPlan:
    recipe = load_yaml_model("recipe", name, Recipe, GROUPS.get(name, []))
    return resolve(recipe, {n: weights.shape(n) for n in weights.names()})


def check(weights: ModelWeights, plan: QuantizationPlan, chosen: EngineSettings, library: str) -> None:
    engine_maker(library).check(weights.reader.config, plan, chosen)


@pytest.mark.parametrize("name", ["fp16", "int4-awq", "int8-sq-vit-int8", "fp8-vit-fp8"])
def test_formats_with_standard_operators_are_taken(weights: ModelWeights, name: str) -> None:
    check(weights, recipe_plan(weights, name), settings(ADA), "tensorrt_rtx")
    check(weights, recipe_plan(weights, name), settings(ADA), "tensorrt")


@pytest.mark.parametrize(
    ("name", "device", "reason"),
    [
        ("fp8", AMPERE, "FP8, and a100-80gb has compute capability 8.0, older than 8.9"),
        ("fp8", "jetson-agx-orin-64gb", "compute capability 8.7"),
        ("nvfp4", ADA, "NVFP4"),
        ("w4a8-awq", ADA, "INT4 with FP8 activations"),
        ("fp8-kv8", ADA, "not in FP8"),
        ("int8", ADA, "INT8 in groups"),
    ],
)
def test_other_formats_are_refused_with_the_reason(
    weights: ModelWeights, name: str, device: str, reason: str
) -> None:
    library = "tensorrt" if "orin" in device else "tensorrt_rtx"
    with pytest.raises(UnsuitableError, match=reason) as caught:
        check(weights, recipe_plan(weights, name), settings(device), library)
    assert caught.value.exit_code == 3
    assert caught.value.hint


@pytest.mark.parametrize("device", ["h100-80gb", "b200-180gb", "jetson-agx-orin-64gb"])
def test_gpus_that_tensorrt_rtx_does_not_compile_for(weights: ModelWeights, device: str) -> None:
    with pytest.raises(UnsuitableError, match=r"TensorRT-RTX compiles for 8\.0, 8\.6, 8\.9, 12\.0, 12\.1"):
        check(weights, recipe_plan(weights, "fp16"), settings(device), "tensorrt_rtx")


def test_cpus_and_contexts_that_the_model_does_not_have(weights: ModelWeights) -> None:
    with pytest.raises(UnsuitableError, match="cpu-x86 has none"):
        check(weights, recipe_plan(weights, "fp16"), settings("cpu-x86"), "tensorrt")
    with pytest.raises(UnsuitableError, match=r"4096 tokens is outside this model's \[1, 512\]"):
        check(weights, recipe_plan(weights, "fp16"), settings(ADA, context=4096), "tensorrt")
    with pytest.raises(UsageError, match="no maker of engines 'tensort'"):
        engine_maker("tensort")


@pytest.mark.parametrize(
    ("form", "opset", "expected"),
    [
        ({"format": "fp16"}, 17, (17, "fp16", "concat")),
        ({"format": "int4", "group_size": 32}, 17, (21, "fp16", "concat")),
        ({"format": "fp16"}, 24, (24, "fp16", "scatter")),
        ({"format": "fp32"}, 20, (20, "fp32", "concat")),
    ],
)
def test_the_opset_is_the_targets_unless_a_format_is_younger(
    weights: ModelWeights, form: dict[str, object], opset: int, expected: tuple[int, str, str]
) -> None:
    dialect = dialect_for("llm", plan_for(weights, form), opset, "fp16")
    assert (dialect.opset, dialect.floats, dialect.cache) == expected
    assert dialect.static_cache == (dialect.cache == "scatter")


def test_profiles_hold_every_image_and_every_prompt(weights: ModelWeights) -> None:
    config = weights.reader.config
    (tiles,) = vision_ranges(config, batch=2)
    assert tiles.sizes["tiles"] == (1, config.max_tiles + 1, 2 * (config.max_tiles + 1))
    dialect = dialect_for("llm", plan_for(weights, {"format": "fp16"}), 20, "fp16")
    graph = build_decoder(config.language, weights, plan_for(weights, {"format": "fp16"}), 256, dialect)
    prefill, decode = (r.profile(graph) for r in decoder_ranges(config, 256, batch=2))
    assert set(prefill) == set(decode) == {str(value.name) for value in graph.graph.inputs}
    assert prefill["input_ids"] == ((1, 1), (1, 256), (2, 256))
    assert decode["input_ids"] == ((1, 1), (1, 1), (2, 1))
    assert prefill["past_key.0"][2] == decode["past_key.0"][2] == (2, 2, 256, 16)
    assert load_target(ADA).limits.max_batch == 1
