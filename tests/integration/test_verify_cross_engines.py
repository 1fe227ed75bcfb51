"""Engines of NVLM-X and NVLM-H pass the gate, rounded or calibrated; planted faults do not."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from nvlm_deploy.cli.main import run
from nvlm_deploy.config.manifest import EngineManifest, collect_files
from nvlm_deploy.pipeline.verify import VerifyOptions, verify_bundle
from nvlm_deploy.verify.checks import Check

FEW = VerifyOptions(samples=5)
_GATE = 0.3


@pytest.fixture(scope="module", params=["X", "H"])
def released(
    request: pytest.FixtureRequest, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The trained NVLM-D with new cross-attention in two layers, whose gates are open."""
    parts, output = str(repository / "examples/nvlm-d-tiny"), tmp_path_factory.mktemp("released") / "model"
    arguments = ["--variant", request.param, "--layers", "1,3", "-o", str(output)]
    assert run(["convert", "--from", parts, "--vision", parts, *arguments]) == 0
    for path in output.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if name.endswith("cross_attn_gate"):
                tensor.fill_(_GATE)
            elif "cross_attn." in name:
                tensor.normal_(0, 0.1, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        save_file(tensors, path, {"format": "pt"})
    return output


@pytest.fixture(scope="module")
def bundle(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its INT8 engine; not to be changed."""
    return built(released, tmp_path_factory.mktemp("bundles") / "int8", "int8")


def built(checkpoint: Path, output: Path, recipe: str, *more: str) -> Path:
    names = ["--recipe", recipe, "--target", "cpu-x86", "-o", str(output), "--no-verify", *more]
    assert run(["engine", str(checkpoint), *names]) == 0
    return output


def failures(bundle: Path, released: Path) -> dict[str, Check]:
    return {check.name: check for check in verify_bundle(bundle, released, FEW).failed}


def test_healthy_engines_pass(bundle: Path, released: Path, tmp_path: Path) -> None:
    """Rounded while it is written; in NVLM-X also with static INT8 activations in its branches."""
    assert failures(bundle, released) == {}
    if EngineManifest.read(bundle).variant == "H":
        return
    static = built(released, tmp_path / "static", "int8-sq", "--set", "calibration.count=4")
    assert failures(static, released) == {}


def swap_keys_and_values(bundle: Path) -> None:
    """Let the first layer's keys be its values."""
    path = bundle / "llm/tiles.onnx"
    model = onnx.load(str(path), load_external_data=False)
    keys, values = (
        next(node for node in model.graph.node if node.name.startswith(f"language.layers.1.cross.{name}"))
        for name in ("attention.k.split", "attention.v.split")
    )
    keys.input[0], values.input[0] = values.input[0], keys.input[0]
    path.write_bytes(model.SerializeToString())


def close_a_gate(bundle: Path) -> None:
    """Let the last layer with cross-attention add nothing."""
    path = bundle / "llm/decoder.onnx"
    model = onnx.load(str(path), load_external_data=False)
    gate = next(t for t in model.graph.initializer if t.name == "language.layers.3.cross.gate")
    gate.CopyFrom(onnx.numpy_helper.from_array(np.zeros(1, np.float32), gate.name))
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("fault", "place"),
    [(swap_keys_and_values, "language.layers.1.cross"), (close_a_gate, "language.layers.3.cross")],
)
def test_faults_of_cross_attention_are_found_where_they_are(
    bundle: Path, released: Path, tmp_path: Path, fault: Callable[[Path], None], place: str
) -> None:
    broken = Path(shutil.copytree(bundle, tmp_path / "broken"))
    manifest = EngineManifest.read(broken)
    fault(broken)
    replace(manifest, files=collect_files(broken)).write(broken)
    assert failures(broken, released)["decoder, cosine of a branch"].place == place
