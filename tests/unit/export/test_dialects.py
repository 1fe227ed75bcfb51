"""Every dialect of a graph is standard ONNX, and computes what the PyTorch model computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from nvlm_deploy.checkpoint import ModelWeights
from nvlm_deploy.export import Dialect, build_decoder, build_vision, write_model
from nvlm_deploy.export.dialect import FloatType
from nvlm_deploy.models import NvlmD, load_model
from nvlm_deploy.models.quantized import load_quantized_model
from nvlm_deploy.pipeline.quantize import quantize_checkpoint
from nvlm_deploy.pipeline.quantize_plan import QuantizeRequest, plan_quantize
from nvlm_deploy.preprocess import normalize_tiles
from nvlm_deploy.quantization import QuantizationPlan, resolve
from nvlm_deploy.quantization.checkpoint import QuantizedReader, QuantizedWeights
from nvlm_deploy.quantization.record import QuantizationRecord

from .conftest import MakePlan

CONTEXT = 24
ERRORS_ONLY = 3
# ONNX Runtime sums in another order; FP16 has 11 bits, and every result is rounded to them.
TOLERANCE = {"fp32": 1e-5, "fp16": 4e-3}
# The oldest release that is known to run opset 24.
ORT_VERSION = tuple(int(part) for part in ort.__version__.split(".")[:2])
OLD = ORT_VERSION < (1, 32)

DIALECTS = {
    "17": Dialect(17, cache="concat", visual="select"),
    "17-fp16": Dialect(17, "fp16", cache="concat", visual="select"),
    "21": Dialect(21, cache="concat", visual="scatter"),
    "21-fp16": Dialect(21, "fp16", cache="concat", visual="select"),
    "23": Dialect(23, cache="concat", visual="select"),
    "23-fp16": Dialect(23, "fp16", cache="concat", visual="select", half_attention=True),
    "24": Dialect(24, cache="scatter", static_cache=True, visual="select"),
    "24-fp16": Dialect(24, "fp16", static_cache=True, visual="select", half_attention=True),
    "24-written-out": Dialect(
        24, decomposed=frozenset({"Attention", "RotaryEmbedding", "RMSNormalization", "Swish", "Gelu"})
    ),
}
MIXED: dict[str, FloatType] = {
    "vision.stream": "fp32",
    "vision.layers.0.attention": "fp32",
    "vision.layers.1.mlp": "bf16",
    "projector": "bf16",
}
# Static scales in an old and in a new set; INT4 in the oldest that has it, and with caches written in place.
STATIC = {
    "int8-17": ("int8-sq-vit-int8", Dialect(17, "fp16", cache="concat", visual="select")),
    "int8-21": ("int8-sq-vit-int8", Dialect(21, "fp16", cache="concat", visual="select")),
    "int8-24": ("int8-sq-vit-int8", DIALECTS["24-fp16"]),
    "fp8-21": ("fp8-vit-fp8", Dialect(21, "fp16", cache="concat", visual="select")),
    "fp8-24": ("fp8-vit-fp8", DIALECTS["24-fp16"]),
    "int4-21": ("int4-awq", Dialect(21, "fp16", cache="concat", visual="select")),
    "int4-24": ("int4-awq", DIALECTS["24-fp16"]),
}
CHANGES = ("algorithm=max", "calibration.count=2")
NEEDED = {"int4-awq": ("weights.language.group_size=32",)}

Feeds = dict[str, np.ndarray]


def skip_old(dialect: Dialect) -> None:
    if OLD and dialect.opset == 24:
        pytest.skip("this ONNX Runtime has no opset 24")


def open_session(model: ir.Model, path: Path) -> ort.InferenceSession:
    write_model(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = ERRORS_ONLY, 1
    # The graph itself: products of signed codes, which ONNX Runtime would make of it, saturate on some CPUs.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


class Conversation:
    """Two rows of unequal length with visual tokens in one of them: a prompt, then single tokens."""

    lengths = (9, 5)

    def __init__(self, model: NvlmD) -> None:
        rng, language = np.random.default_rng(1), model.config.language
        self.model, self.language = model, language
        self.ids = rng.integers(0, language.vocab_size, (2, max(self.lengths) + 2))
        self.visual = rng.standard_normal((2, language.hidden_size)).astype(np.float32)
        self.places = ((0, 3), (0, 6))

    def expected(self) -> list[np.ndarray]:
        """Logits behind the prompt, and behind each of two more tokens, [2, vocabulary]."""
        rows = []
        for row, length in enumerate(self.lengths):
            ids = torch.from_numpy(self.ids[row : row + 1, : length + 2])
            mask = torch.zeros(ids.shape, dtype=torch.bool)
            for of_row, place in self.places:
                mask[0, place] |= of_row == row
            with torch.inference_mode():
                visual = torch.from_numpy(self.visual)[None] if mask.any() else None
                embeds = self.model.embed(ids, visual, mask)
                logits = self.model.language.logits(self.model.language(embeds))[0].numpy()
            rows.append(logits[length - 1 : length + 2])
        return [np.stack([row[step] for row in rows]) for step in range(3)]

    def run(self, session: ort.InferenceSession, dialect: Dialect) -> list[np.ndarray]:
        shape = (2, self.language.num_kv_heads, CONTEXT, self.language.head_dim)
        half = next(i.type for i in session.get_inputs() if i.name == "past_key.0") == "tensor(float16)"
        cache = {
            i.name: np.zeros(shape, np.float16 if half else np.float32)
            for i in session.get_inputs()
            if i.name.startswith(("past_key", "past_value"))
        }
        names = [output.name for output in session.get_outputs()]
        past, results = np.zeros(2, np.int32), []
        for step in range(3):
            new = np.array(self.lengths, np.int32) if step == 0 else np.ones(2, np.int32)
            rows = [self.ids[b, past[b] : past[b] + new[b]] for b in range(2)]
            ids = np.stack([np.pad(row, (0, new.max() - len(row))) for row in rows])
            feeds = {
                "input_ids": ids,
                "past_lengths": past,
                "new_lengths": new,
                "logit_positions": new[:, None].astype(np.int64) - 1,
                **self._visual(dialect, ids.shape, first=step == 0),
            }
            outputs = dict(zip(names, session.run(None, {**feeds, **cache}), strict=True))
            results.append(outputs["logits"][:, 0])
            cache = self._kept(cache, outputs, past, new)
            past = past + new
        return results

    def _visual(self, dialect: Dialect, shape: tuple[int, int], *, first: bool) -> Feeds:
        if dialect.visual == "scatter":
            count = 2 if first else 0
            return {"visual_tokens": self.visual[:count], "visual_index": np.array(self.places)[:count]}
        rows = np.full(shape, -1, np.int64)
        for number, place in enumerate(self.places if first else ()):
            rows[place] = number
        return {"visual_tokens": self.visual, "visual_rows": rows}

    def _kept(self, cache: Feeds, outputs: Mapping[str, Any], past: np.ndarray, new: np.ndarray) -> Feeds:
        """The cache of the next step: what the graph wrote, or its new tokens behind the others."""
        for name, array in cache.items():
            kind = name.removeprefix("past_")
            if f"present_{kind}" in outputs:
                cache[name] = outputs[f"present_{kind}"]
                continue
            for row in range(2):
                added = outputs[f"new_{kind}"][row, :, : new[row]]
                array[row, :, past[row] : past[row] + new[row]] = added
        return cache


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> NvlmD:
    return load_model(tiny_checkpoint)


@pytest.fixture(scope="module")
def tiles(model: NvlmD) -> np.ndarray:
    side = model.config.tile_size
    return np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)


def visual_tokens(model: NvlmD, tiles: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model.encode_tiles(torch.from_numpy(normalize_tiles(tiles))).numpy()


@pytest.mark.parametrize("name", DIALECTS)
def test_the_tower_is_the_model(
    tmp_path: Path, weights: ModelWeights, make_plan: MakePlan, model: NvlmD, tiles: np.ndarray, name: str
) -> None:
    dialect, plan = DIALECTS[name], make_plan(format="fp16" if "fp16" in name else "fp32")
    skip_old(dialect)
    session = open_session(build_vision(model.config, weights, plan, dialect), tmp_path / "v.onnx")
    (tokens,) = session.run(None, {"tiles": tiles})
    assert relative_error(tokens, visual_tokens(model, tiles)) < TOLERANCE[dialect.floats]


@pytest.mark.parametrize("name", DIALECTS)
def test_the_decoder_is_the_model(
    tmp_path: Path, weights: ModelWeights, make_plan: MakePlan, model: NvlmD, name: str
) -> None:
    dialect, plan = DIALECTS[name], make_plan(format="fp16" if "fp16" in name else "fp32")
    skip_old(dialect)
    graph = build_decoder(model.config.language, weights, plan, CONTEXT, dialect)
    conversation = Conversation(model)
    found = conversation.run(open_session(graph, tmp_path / "d.onnx"), dialect)
    for logits, expected in zip(found, conversation.expected(), strict=True):
        assert relative_error(logits, expected) < TOLERANCE[dialect.floats]


@pytest.mark.parametrize("opset", [17, 21, 23, 24])
def test_bf16_and_mixed_graphs_are_strongly_typed(
    tmp_path: Path, weights: ModelWeights, make_plan: MakePlan, tiles: np.ndarray, model: NvlmD, opset: int
) -> None:
    """ONNX Runtime has no BF16 arithmetic, so its FP32 twin is run."""
    plan, config = make_plan(format="fp16"), model.config
    dialect = Dialect(opset, "bf16", cache="concat", visual="select", half_attention=True)
    graphs = {
        "v": build_vision(config, weights, plan, dialect),
        "m": build_vision(config, weights, plan, replace(dialect, floats="fp16", exceptions=MIXED)),
        "d": build_decoder(config.language, weights, plan, CONTEXT, dialect),
    }
    for name, graph in graphs.items():
        write_model(graph, tmp_path / f"{name}.onnx")
        onnx.checker.check_model(str(tmp_path / f"{name}.onnx"), full_check=True)
    kinds = {value.dtype for value in graphs["d"].graph.initializers.values() if "weight" in str(value.name)}
    assert kinds == {ir.DataType.BFLOAT16}
    skip_old(dialect)
    twin = open_session(build_vision(config, weights, plan, dialect.twin()), tmp_path / "t.onnx")
    assert relative_error(twin.run(None, {"tiles": tiles})[0], visual_tokens(model, tiles)) < 1e-3


def test_exceptions_compute_in_their_own_type(
    tmp_path: Path, weights: ModelWeights, make_plan: MakePlan, tiles: np.ndarray, model: NvlmD
) -> None:
    wide: dict[str, FloatType] = dict.fromkeys(MIXED, "fp32")
    dialect = Dialect(17, "fp16", cache="concat", exceptions=wide)
    session = open_session(
        build_vision(model.config, weights, make_plan(format="fp16"), dialect), tmp_path / "v.onnx"
    )
    (tokens,) = session.run(None, {"tiles": tiles})
    half = Dialect(17, "fp16", cache="concat")
    other = open_session(
        build_vision(model.config, weights, make_plan(format="fp16"), half), tmp_path / "h.onnx"
    )
    expected = visual_tokens(model, tiles)
    error = relative_error(tokens, expected)
    assert error < 0.7 * relative_error(other.run(None, {"tiles": tiles})[0], expected)


@pytest.fixture(scope="module")
def quantized(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, QuantizedWeights, QuantizationPlan]]:
    """Quantized checkpoints by the maxima of what they were shown, which needs no ModelOpt."""
    made = {}
    for recipe in sorted({recipe for recipe, _ in STATIC.values()}):
        output = tmp_path_factory.mktemp("quantized") / recipe
        overrides = (*CHANGES, *NEEDED.get(recipe, ()))
        quantize_checkpoint(
            plan_quantize(QuantizeRequest(tiny_checkpoint, recipe, output, overrides=overrides))
        )
        weights = QuantizedWeights(QuantizedReader(output))
        shapes = {name: weights.shape(name) for name in weights.names()}
        made[recipe] = output, weights, resolve(QuantizationRecord.read(output).recipe(), shapes)
    return made


@pytest.mark.parametrize("name", STATIC)
def test_quantized_graphs_are_the_quantized_model(
    tmp_path: Path,
    quantized: dict[str, tuple[Path, QuantizedWeights, QuantizationPlan]],
    tiles: np.ndarray,
    name: str,
) -> None:
    recipe, dialect = STATIC[name]
    skip_old(dialect)
    checkpoint, weights, plan = quantized[recipe]
    model = load_quantized_model(checkpoint)
    vision = open_session(build_vision(model.config, weights, plan, dialect), tmp_path / "v.onnx")
    graph = build_decoder(model.config.language, weights, plan, CONTEXT, dialect)
    decoder = open_session(graph, tmp_path / "d.onnx")
    (tokens,) = vision.run(None, {"tiles": tiles})
    # FP16 may put an activation on the other side of the middle of two codes.
    limit = 0.03 if dialect.floats == "fp16" and "int4" not in name else 5e-3
    assert relative_error(tokens, visual_tokens(model, tiles)) < limit
    conversation = Conversation(model)
    for logits, expected in zip(conversation.run(decoder, dialect), conversation.expected(), strict=True):
        assert relative_error(logits, expected) < limit


@pytest.mark.parametrize("opset", [16, 25])
def test_other_opsets_are_refused(opset: int) -> None:
    with pytest.raises(ValueError, match="opsets 17 to 24"):
        Dialect(opset)
