"""Blocks for which FP16 is too little are found, and only those."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file, save_file

from nvlm_deploy.backends.tensorrt.guard import FP16_MAX, guard_tower
from nvlm_deploy.checkpoint import CheckpointReader, ModelWeights
from nvlm_deploy.errors import VerificationError
from nvlm_deploy.eval.agreement import cosine
from nvlm_deploy.export import Dialect, build_vision, write_model
from nvlm_deploy.export.dialect import FloatType
from nvlm_deploy.models import load_model
from nvlm_deploy.preprocess import normalize_tiles

from ..conftest import plan_for

LEAST = 0.999
Planted = Callable[[Mapping[str, float]], Path]
LAYER = "vision_model.encoder.layers.1"


@pytest.fixture
def planted(tiny_checkpoint: Path, tmp_path: Path) -> Planted:
    """Copies of the tiny checkpoint with some tensors multiplied."""

    def make(factors: Mapping[str, float]) -> Path:
        directory = Path(shutil.copytree(tiny_checkpoint, tmp_path / "planted"))
        found = set()
        for shard in directory.glob("*.safetensors"):
            tensors = load_file(shard)
            for name in factors.keys() & tensors.keys():
                tensors[name] *= factors[name]
                found.add(name)
            save_file(tensors, shard)
        assert found == set(factors)
        return directory

    return make


@pytest.fixture(scope="module")
def tiles(weights: ModelWeights) -> np.ndarray:
    side = weights.reader.config.tile_size
    return np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)


def expected(checkpoint: Path, tiles: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return load_model(checkpoint).encode_tiles(torch.from_numpy(normalize_tiles(tiles))).numpy()


def exported(
    checkpoint: Path, tiles: np.ndarray, exceptions: Mapping[str, FloatType], path: Path
) -> np.ndarray:
    """Visual tokens of the FP16 graph in ONNX Runtime."""
    weights = ModelWeights(CheckpointReader(checkpoint))
    dialect = Dialect(17, "fp16", cache="concat", exceptions=exceptions)
    plan = plan_for(weights, {"format": "fp16"})
    write_model(build_vision(weights.reader.config, weights, plan, dialect), path)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    tokens: np.ndarray = session.run(None, {"tiles": tiles})[0]
    return tokens


def test_an_ordinary_tower_computes_in_fp16(tiny_checkpoint: Path, tiles: np.ndarray) -> None:
    report = guard_tower(ModelWeights(CheckpointReader(tiny_checkpoint)), tiles, LEAST)
    assert report.exceptions == {}
    assert report.cosine > 0.99999
    assert [block.name for block in report.blocks][:2] == ["vision.stream", "vision.layers.0.attention"]
    assert len(report.blocks) == 2 + 2 * 2
    assert all(0 < block.peak < FP16_MAX for block in report.blocks)


def test_a_planted_outlier_is_caught_and_the_engine_is_right(
    planted: Planted, tiles: np.ndarray, tmp_path: Path
) -> None:
    """Values beyond FP16 between the linears of one MLP, which the next matrix makes small again."""
    checkpoint = planted({f"{LAYER}.mlp.fc1.weight": 4e5, f"{LAYER}.mlp.fc2.weight": 2.0**-19})
    report = guard_tower(ModelWeights(CheckpointReader(checkpoint)), tiles, LEAST)
    assert list(report.exceptions) == ["vision.layers.1.mlp"]
    assert report.exceptions["vision.layers.1.mlp"] in ("bf16", "fp32")
    (caught,) = (block for block in report.blocks if block.name in report.exceptions)
    assert caught.peak > FP16_MAX
    assert "FP16 ends at 65504" in caught.reason
    assert report.to_dict()["exceptions"]["vision.layers.1.mlp"]["reason"] == caught.reason
    right = expected(checkpoint, tiles)
    with torch.inference_mode():
        pixels = torch.from_numpy(normalize_tiles(tiles)).half()
        naive = load_model(checkpoint).half().encode_tiles(pixels)
    assert not naive.isfinite().all()
    # ONNX Runtime has no BF16, which is the smaller exception here.
    guarded = exported(checkpoint, tiles, dict.fromkeys(report.exceptions, "fp32"), tmp_path / "guarded.onnx")
    assert cosine(guarded, right) > 0.9999


def test_values_that_vanish_in_fp16_are_caught(planted: Planted, tiles: np.ndarray) -> None:
    """Nothing overflows, but the results of one linear are below the smallest FP16 number."""
    checkpoint = planted(
        {f"{LAYER}.attn.qkv.weight": 1e-7, f"{LAYER}.attn.proj.weight": 5e5, f"{LAYER}.attn.proj.bias": 0}
    )
    report = guard_tower(ModelWeights(CheckpointReader(checkpoint)), tiles, LEAST)
    assert list(report.exceptions) == ["vision.layers.1.attention"]
    (caught,) = (block for block in report.blocks if block.name in report.exceptions)
    assert caught.peak < FP16_MAX
    assert caught.errors["fp16"] > 0.01
    assert "FP16 loses" in caught.reason


def test_a_stream_beyond_fp16_is_kept_in_fp32(planted: Planted, tiles: np.ndarray) -> None:
    checkpoint = planted({"vision_model.encoder.layers.0.ls2": 1e7})
    report = guard_tower(ModelWeights(CheckpointReader(checkpoint)), tiles, LEAST)
    assert report.exceptions == {"vision.stream": "fp32"}
    assert report.cosine > 0.999


def test_visual_tokens_that_point_elsewhere_stop_the_build(tiny_checkpoint: Path, tiles: np.ndarray) -> None:
    with pytest.raises(VerificationError, match=r"cosine of .* to PyTorch's, and 1\.5 is asked for"):
        guard_tower(ModelWeights(CheckpointReader(tiny_checkpoint)), tiles, 1.5)
