"""A quantized checkpoint under verification: computed in PyTorch, its FP8 KV cache with and without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from nvlm_deploy.cli.main import run
from nvlm_deploy.errors import UsageError
from nvlm_deploy.pipeline.verify import VerifyOptions, verify_checkpoint
from nvlm_deploy.verify.checks import Check

EXAMPLE = Path(__file__).parents[2] / "examples" / "nvlm-d-tiny"


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example in FP8 with an FP8 KV cache; not to be changed."""
    output = tmp_path_factory.mktemp("fp8-kv8") / "quantized"
    options = ["--recipe", "fp8-kv8", "--set", "calibration.count=4", "-o", str(output)]
    assert run(["quantize", str(EXAMPLE), *options]) == 0
    return output


def checks(checkpoint: Path) -> dict[str, Check]:
    report = verify_checkpoint(checkpoint, EXAMPLE, VerifyOptions(samples=5))
    return {check.name: check for check in report.checks}


def change(checkpoint: Path, ending: str, factor: float) -> None:
    """Multiply the tensors of one layer whose names end so."""
    found = 0
    for path in checkpoint.glob("*.safetensors"):
        tensors = load_file(path)
        for name in tensors:
            if "layers.2." in name and name.endswith(ending):
                tensors[name] *= factor
                found += 1
        save_file(tensors, path, {"format": "pt"})
    assert found == 1


def test_a_healthy_checkpoint_passes_and_its_cache_is_compared(
    quantized: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in quantized.iterdir()}
    arguments = ["verify", str(quantized), "--against", str(EXAMPLE), "--samples", "5", "--json"]
    assert run(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["recipe"], report["passed"]) == ("checkpoint", "fp8-kv8", True)
    added = next(check for check in report["checks"] if check["name"] == "FP8 KV cache, KL")
    assert 0 < added["figure"] < added["limit"]
    assert {path.name: path.read_bytes() for path in quantized.iterdir()} == before


def test_a_cache_that_clips_is_caught_by_the_comparison_alone(quantized: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(quantized, tmp_path / "broken"))
    change(broken, "v_proj.v_scale", 1 / 64)
    found = checks(broken)
    assert not found["FP8 KV cache, KL"].passed
    assert found["decoder, error of a matrix"].passed


def test_a_broken_input_scale_is_caught_in_its_layer(quantized: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(quantized, tmp_path / "broken"))
    change(broken, "down_proj.input_scale", 1 / 64)
    found = checks(broken)
    assert found["decoder, cosine of a branch"].place == "language.layers.2.mlp"
    assert not found["decoder, cosine of a branch"].passed
    assert found["FP8 KV cache, KL"].passed


def test_the_reference_must_be_the_released_checkpoint(quantized: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="is quantized itself"):
        verify_checkpoint(quantized, quantized)
    with pytest.raises(UsageError, match="was not made from"):
        verify_checkpoint(quantized, tiny_checkpoint)
