"""Engines of quantized checkpoints compute what the reference model computes with the same numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from nvlm_deploy.backends import SessionOptions, open_decoder_session, open_vision_session
from nvlm_deploy.backends.onnxruntime.build import EngineSettings, build_engine
from nvlm_deploy.backends.onnxruntime.lower import lower
from nvlm_deploy.backends.onnxruntime.storage import adapt
from nvlm_deploy.eval.agreement import cosine
from nvlm_deploy.export import build_decoder, build_vision
from nvlm_deploy.models.quantized import load_quantized_model
from nvlm_deploy.pipeline.quantize import quantize_checkpoint
from nvlm_deploy.pipeline.quantize_plan import QuantizeRequest, plan_quantize
from nvlm_deploy.preprocess import normalize_tiles
from nvlm_deploy.quantization import QuantizationPlan, resolve
from nvlm_deploy.quantization.checkpoint import QuantizedReader, QuantizedWeights
from nvlm_deploy.quantization.record import QuantizationRecord

from .conftest import CONTEXT

COMMON = ("weights.lm_head.format=fp32", "weights.embedding.format=fp32", "calibration.count=2")
# What needs no search, so that no test here needs ModelOpt; sizes divide the tiny model's widths.
RECIPES: dict[str, tuple[str, ...]] = {
    "fp8-vit-fp8": (),
    "nvfp4": (),
    "int8-wo": (),
    "int8-sq-vit-int8": ("algorithm=max",),
    "int4-awq-vit-int4wo": (
        "algorithm=max",
        "weights.language.group_size=32",
        "weights.vision.group_size=16",
        "weights.projector.group_size=16",
    ),
    "w4a8-awq": ("algorithm=max", "weights.language.group_size=32"),
}

Quantize = Callable[[str], Path]


@pytest.fixture(scope="module")
def quantized(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantize:
    made: dict[str, Path] = {}

    def make(recipe: str) -> Path:
        if recipe not in made:
            made[recipe] = tmp_path_factory.mktemp("quantized") / recipe
            request = QuantizeRequest(
                tiny_checkpoint, recipe, made[recipe], overrides=(*RECIPES[recipe], *COMMON)
            )
            quantize_checkpoint(plan_quantize(request))
        return made[recipe]

    return make


def read(checkpoint: Path) -> tuple[QuantizedWeights, QuantizationPlan]:
    weights = QuantizedWeights(QuantizedReader(checkpoint))
    recipe = QuantizationRecord.read(checkpoint).recipe()
    return weights, adapt(resolve(recipe, {name: weights.shape(name) for name in weights.names()}))


@pytest.mark.parametrize("recipe", RECIPES)
def test_engines_compute_what_the_checkpoint_says(tmp_path: Path, quantized: Quantize, recipe: str) -> None:
    weights, plan = read(quantized(recipe))
    config = weights.reader.config
    build_engine(weights, config, plan, EngineSettings(CONTEXT), tmp_path)
    model = load_quantized_model(quantized(recipe))
    rng, options = np.random.default_rng(0), SessionOptions(threads=1)
    tiles = rng.integers(0, 256, (2, config.tile_size, config.tile_size, 3), np.uint8)
    ids = rng.integers(0, config.language.vocab_size, (1, 40))
    with torch.no_grad():
        visual = model.encode_tiles(torch.from_numpy(normalize_tiles(tiles))).numpy()
        expected = model(torch.from_numpy(ids)).numpy()
    vision = open_vision_session("onnxruntime", tmp_path / "vision/vision.onnx", options)
    decoder = open_decoder_session("onnxruntime", tmp_path / "llm/decoder.onnx", options)
    cache, lengths = decoder.new_cache(1, 40), np.array([40], np.int32)
    logits = decoder.run(ids, lengths, cache, logit_positions=np.arange(40)[None])
    # A sum in another order may put an activation on the other side of the middle of two codes.
    assert cosine(visual, vision.encode(tiles)) > 0.9995
    assert cosine(expected, logits) > 0.9995


def test_static_int8_runs_in_integers(quantized: Quantize) -> None:
    weights, plan = read(quantized("int8-sq-vit-int8"))
    config = weights.reader.config
    tower = Counter(node.op_type for node in lower(build_vision(config, weights, plan)).graph)
    # q, k, v, output and two of the MLP; the projector has two.
    assert tower["MatMulIntegerToFloat"] == 6 * config.vision.num_layers + 2
    # q, k and v round their input once.
    assert tower["QuantizeLinear"] == 4 * config.vision.num_layers + 2
    assert not {"DequantizeLinear", "MatMul", "FusedMatMul"} & set(tower)
    decoder = Counter(
        node.op_type for node in lower(build_decoder(config.language, weights, plan, CONTEXT)).graph
    )
    # q, k and v are one product; gate and up share their rounded input.
    assert decoder["MatMulIntegerToFloat"] == 5 * config.language.num_layers
    assert decoder["QuantizeLinear"] == 4 * config.language.num_layers


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_plan_knows_the_bytes_of_the_matrices(tmp_path: Path, quantized: Quantize, recipe: str) -> None:
    weights, plan = read(quantized(recipe))
    build_engine(weights, weights.reader.config, plan, EngineSettings(CONTEXT), tmp_path)
    written = sum(path.stat().st_size for path in tmp_path.rglob("*.data"))
    planned = sum(part.after for part in plan.sizes())
    # Files pad large tensors to pages, and keep small ones inside the graph.
    assert abs(written - planned) < 0.25 * planned
