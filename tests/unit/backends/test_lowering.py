"""Lowered graphs compute what the standard graphs compute, with the kernels that they were lowered for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from nvlm_deploy.backends.onnxruntime.lower import lower
from nvlm_deploy.checkpoint import ModelWeights
from nvlm_deploy.export import build_decoder, build_vision, write_model

from .conftest import CONTEXT, Form, plan_for

CAPACITY = 24
ERRORS_ONLY = 3
FORMS: list[Form] = [
    {"format": "fp32"},
    {"format": "fp16"},
    {"format": "int8", "group_size": 32},
    {"format": "int8", "group_size": 16, "symmetric": False},
    {"format": "int4", "group_size": 32},
    {"format": "int4", "group_size": 32, "symmetric": False},
    # Wider than some rows: every group of them is partial.
    {"format": "int4", "group_size": 128},
]


# The oldest release that is known to run the standard decoder; lowered graphs run on older ones.
ORT_VERSION = tuple(int(part) for part in ort.__version__.split(".")[:2])
needs_opset_24 = pytest.mark.skipif(ORT_VERSION < (1, 32), reason="this ONNX Runtime has no opset 24")


def form_name(form: Form) -> str:
    return "-".join(str(value) for value in form.values())


def run(model: ir.Model, path: Path, inputs: dict[str, Any]) -> np.ndarray:
    write_model(model, path)
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = ERRORS_ONLY, 1
    # The standard graph's quantized products would otherwise run with INT8 activations.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, inputs)[0]
    return result


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("form", FORMS, ids=form_name)
def test_vision_stays_equal(tmp_path: Path, weights: ModelWeights, form: Form) -> None:
    config, plan = weights.reader.config, plan_for(weights, form)
    side = config.tile_size
    tiles = {"tiles": np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)}
    standard = run(build_vision(config, weights, plan), tmp_path / "standard.onnx", tiles)
    lowered = run(lower(build_vision(config, weights, plan)), tmp_path / "lowered.onnx", tiles)
    assert relative_error(lowered, standard) < 2e-6


@needs_opset_24
@pytest.mark.parametrize("form", FORMS, ids=form_name)
def test_logits_stay_equal(tmp_path: Path, weights: ModelWeights, form: Form) -> None:
    config, plan = weights.reader.config.language, plan_for(weights, form)
    rng, lengths = np.random.default_rng(1), np.array([5, 9, 3], np.int32)
    shape = (3, config.num_kv_heads, CAPACITY, config.head_dim)
    names = [f"past_{kind}.{layer}" for kind in ("key", "value") for layer in range(config.num_layers)]
    inputs = {
        "input_ids": rng.integers(0, config.vocab_size, (3, 9)),
        "past_lengths": np.zeros(3, np.int32),
        "new_lengths": lengths,
        "visual_tokens": rng.standard_normal((2, config.hidden_size)).astype(np.float32),
        "visual_index": np.array([[1, 4], [0, 2]]),
        "logit_positions": np.stack([lengths - 1, lengths - 2], axis=1).astype(np.int64),
        **{name: np.zeros(shape, np.float32) for name in names},
    }
    standard = run(build_decoder(config, weights, plan, CONTEXT), tmp_path / "standard.onnx", inputs)
    lowered = run(lower(build_decoder(config, weights, plan, CONTEXT)), tmp_path / "lowered.onnx", inputs)
    assert standard.shape == (3, 2, config.vocab_size)
    assert relative_error(lowered, standard) < 5e-6


def test_the_decoder_has_the_fast_kernels(weights: ModelWeights) -> None:
    config = weights.reader.config.language
    plan = plan_for(weights, {"format": "int4", "group_size": 32, "activations": "int8"})
    graph = lower(build_decoder(config, weights, plan, CONTEXT)).graph
    kernels = Counter(node.op_type for node in graph)
    layers = config.num_layers
    assert kernels["GroupQueryAttention"] == layers
    # Packed q, k and v; output; gate, up and down; and the head.
    assert kernels["MatMulNBits"] == 5 * layers + 1
    assert kernels["SkipSimplifiedLayerNormalization"] == 2 * layers - 1
    assert kernels["GatherBlockQuantized"] == 1
    assert not {"MatMul", "DequantizeLinear", "Attention", "TensorScatter"} & set(kernels)
    levels = {n.attributes["accuracy_level"].as_int() for n in graph if n.op_type == "MatMulNBits"}
    assert levels == {4}


def test_projections_that_are_stored_differently_are_not_packed(
    tmp_path: Path, weights: ModelWeights
) -> None:
    from nvlm_deploy.config.recipe import Recipe
    from nvlm_deploy.quantization import resolve

    int4 = {"format": "int4", "group_size": 32}
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "description": "t",
            "runs_on": "t",
            "engines": ["onnxruntime"],
            "algorithm": "rtn",
            "weights": dict.fromkeys(("vision", "projector", "language", "lm_head", "embedding"), int4),
            "kv_cache": "fp32",
            "keep": [{"match": "language.layers.0.attention.v_proj.weight", "reason": "test"}],
        }
    )
    plan = resolve(recipe, {name: weights.shape(name) for name in weights.names()})
    config = weights.reader.config.language
    graph = lower(build_decoder(config, weights, plan, CONTEXT)).graph
    kernels = Counter(node.op_type for node in graph)
    assert kernels["MatMulNBits"] == 5 * config.num_layers + 2
    assert kernels["FusedMatMul"] == 1


def test_weights_stay_lazy_until_they_are_written(
    weights: ModelWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(weights.reader, "read_elements", refuse)
    plan = plan_for(weights, {"format": "int4", "group_size": 32})
    lower(build_vision(weights.reader.config, weights, plan))
    lower(build_decoder(weights.reader.config.language, weights, plan, CONTEXT))
