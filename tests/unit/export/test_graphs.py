"""The standard graphs are standard ONNX and compute what the PyTorch model computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from nvlm_deploy.checkpoint import ModelWeights
from nvlm_deploy.export import build_decoder, build_vision, write_model
from nvlm_deploy.models import Nvlm, load_model
from nvlm_deploy.preprocess import normalize_tiles
from nvlm_deploy.quantization import QuantizationPlan

from .conftest import MakePlan

CONTEXT, CAPACITY = 64, 24
ERRORS_ONLY = 3
FORMS = [
    {"format": "fp32"},
    {"format": "fp16"},
    {"format": "int8", "group_size": 32},
    {"format": "int4", "group_size": 64, "symmetric": False},
]


# The oldest release that is known to run the standard decoder; lowered graphs run on older ones.
ORT_VERSION = tuple(int(part) for part in ort.__version__.split(".")[:2])
needs_opset_24 = pytest.mark.skipif(ORT_VERSION < (1, 32), reason="this ONNX Runtime has no opset 24")


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Nvlm:
    return load_model(tiny_checkpoint)


def open_session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = ERRORS_ONLY, 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def decoder_inputs(model: Nvlm, rng: np.random.Generator, lengths: list[int]) -> dict[str, np.ndarray]:
    language = model.config.language
    batch, width = len(lengths), max(lengths)
    shape = (batch, language.num_kv_heads, CAPACITY, language.head_dim)
    cache = {
        f"past_{kind}.{n}": np.zeros(shape, np.float32)
        for kind in ("key", "value")
        for n in range(language.num_layers)
    }
    return {
        "input_ids": rng.integers(0, language.vocab_size, (batch, width)),
        "past_lengths": np.zeros(batch, np.int32),
        "new_lengths": np.array(lengths, np.int32),
        "visual_tokens": np.zeros((0, language.hidden_size), np.float32),
        "visual_index": np.zeros((0, 2), np.int64),
        "logit_positions": np.array(lengths)[:, None] - 1,
        **cache,
    }


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form["format"])
def test_graphs_pass_the_checker(
    tmp_path: Path, weights: ModelWeights, make_plan: MakePlan, form: dict[str, object]
) -> None:
    plan: QuantizationPlan = make_plan(**form)
    config = weights.reader.config
    for name, graph in (
        ("vision", build_vision(config, weights, plan)),
        ("decoder", build_decoder(config.language, weights, plan, CONTEXT)),
    ):
        assert {node.domain for node in graph.graph} == {""}
        write_model(graph, tmp_path / f"{name}.onnx")
        onnx.checker.check_model(str(tmp_path / f"{name}.onnx"), full_check=True)


def test_the_vision_graph_is_the_model(
    tmp_path: Path, weights: ModelWeights, make_plan: MakePlan, model: Nvlm
) -> None:
    write_model(build_vision(model.config, weights, make_plan(format="fp32")), tmp_path / "vision.onnx")
    side = model.config.tile_size
    tiles = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    (tokens,) = open_session(tmp_path / "vision.onnx").run(None, {"tiles": tiles})
    with torch.inference_mode():
        expected = model.encode_tiles(torch.from_numpy(normalize_tiles(tiles))).numpy()
    assert relative_error(tokens, expected) < 1e-5


@needs_opset_24
def test_the_decoder_graph_is_the_model(
    tmp_path: Path, weights: ModelWeights, make_plan: MakePlan, model: Nvlm
) -> None:
    """Rows of unequal length, visual tokens in one of them, then one more token for each row."""
    rng, lengths = np.random.default_rng(1), [5, 9, 3]
    plan = make_plan(format="fp32")
    write_model(build_decoder(model.config.language, weights, plan, CONTEXT), tmp_path / "decoder.onnx")
    session = open_session(tmp_path / "decoder.onnx")
    inputs = decoder_inputs(model, rng, lengths)
    inputs["visual_tokens"] = rng.standard_normal((2, model.config.language.hidden_size)).astype(np.float32)
    inputs["visual_index"] = np.array([[1, 4], [1, 6]])
    first, *cache = session.run(None, inputs)
    step = {
        **inputs,
        "input_ids": rng.integers(0, model.config.language.vocab_size, (3, 1)),
        "past_lengths": np.array(lengths, np.int32),
        "new_lengths": np.ones(3, np.int32),
        "visual_tokens": inputs["visual_tokens"][:0],
        "visual_index": inputs["visual_index"][:0],
        "logit_positions": np.zeros((3, 1), np.int64),
    }
    names = [output.name.replace("present", "past") for output in session.get_outputs()[1:]]
    second = session.run(None, {**step, **dict(zip(names, cache, strict=True))})[0]
    for row, length in enumerate(lengths):
        ids = np.concatenate([inputs["input_ids"][row, :length], step["input_ids"][row]])[None]
        mask = np.zeros(ids.shape, bool)
        mask[0, [4, 6] if row == 1 else []] = True
        visual = torch.from_numpy(inputs["visual_tokens"])[None]
        with torch.inference_mode():
            embeds = model.embed(torch.from_numpy(ids), visual if row == 1 else None, torch.from_numpy(mask))
            expected = model.language.logits(model.language(embeds))[0].numpy()
        assert relative_error(first[row, 0], expected[length - 1]) < 1e-5
        assert relative_error(second[row, 0], expected[length]) < 1e-5
