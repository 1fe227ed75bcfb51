"""The stage from a released to a quantized checkpoint: what it tells while it works, and what it leaves."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nvlm_deploy.errors import UnsuitableError
from nvlm_deploy.pipeline.quantize import QuantizeResult, quantize_checkpoint
from nvlm_deploy.pipeline.quantize_plan import QuantizePlan, QuantizeRequest, plan_quantize
from nvlm_deploy.pipeline.resumable import unfinished_directory

Told = list[tuple[str, int, int]]
MakePlan = Callable[..., QuantizePlan]


@pytest.fixture(scope="module")
def make_plan(tiny_checkpoint: Path) -> MakePlan:
    """Plans FP8 on four generated documents, which needs no search."""

    def make(output: Path, recipe: str = "fp8-vit-fp8") -> QuantizePlan:
        request = QuantizeRequest(tiny_checkpoint, recipe, output, overrides=("calibration.count=4",))
        return plan_quantize(request)

    return make


@pytest.fixture(scope="module")
def told() -> Told:
    return []


@pytest.fixture(scope="module")
def result(make_plan: MakePlan, told: Told, tmp_path_factory: pytest.TempPathFactory) -> QuantizeResult:
    output = tmp_path_factory.mktemp("quantize") / "out"
    return quantize_checkpoint(make_plan(output), lambda *work: told.append(work))


def test_one_number_grows_from_nothing_to_the_whole(result: QuantizeResult, told: Told) -> None:
    assert {stage for stage, _, _ in told} == {"calibration set", "quantize"}
    shares = [done / total for stage, done, total in told if stage == "quantize"]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 1
    # Every sample of the layers and every part of them is a step of its own.
    assert len(set(shares)) > 20
    assert max(b - a for a, b in itertools.pairwise(shares)) < 0.15


def test_what_is_promised_is_what_is_written(result: QuantizeResult, make_plan: MakePlan) -> None:
    written = sum(path.stat().st_size for path in result.checkpoint.glob("*.safetensors"))
    promised = make_plan(result.checkpoint.with_name("other")).disk_needed()
    headers = 200 * 200
    assert 0.9 * promised < written < promised + headers


def test_the_manifest_tells_how_it_was_made(result: QuantizeResult, tiny_checkpoint: Path) -> None:
    manifest = json.loads((result.checkpoint / "quantization.json").read_text())
    assert manifest == result.manifest
    assert manifest["recipe"]["name"] == "fp8-vit-fp8"
    assert manifest["calibration"]["count"] == 4
    assert manifest["tool_versions"]["nvlm-deploy"]
    steps = manifest["steps"]
    assert [step["step"] for step in steps] == [
        "vision.embeddings",
        "vision.layers.0",
        "vision.layers.1",
        "projector",
        "language.embed_tokens",
        "language.layers.0",
        "language.layers.1",
        "language.lm_head",
    ]
    assert all(step["seconds"] > 0 for step in steps)
    inputs = steps[5]["inputs"]["language.layers.0.attention.q_proj"]
    assert set(inputs["by_class"]) == {"text", "tag", "visual", "thumbnail"}
    largest = max(stats["amax"] for stats in inputs["by_class"].values())
    assert inputs["input_scale"] == pytest.approx(largest / 448)
    assert str(tiny_checkpoint) not in json.dumps(manifest)


def test_the_same_request_makes_the_same_bytes(
    result: QuantizeResult, make_plan: MakePlan, tmp_path: Path
) -> None:
    again = quantize_checkpoint(make_plan(tmp_path / "again")).checkpoint
    names = sorted(path.name for path in result.checkpoint.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    for name in names:
        if name != "quantization.json":
            assert (result.checkpoint / name).read_bytes() == (again / name).read_bytes(), name


def test_a_resumed_run_begins_where_it_stopped(make_plan: MakePlan, tmp_path: Path) -> None:
    plan, told = make_plan(tmp_path / "out"), []

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "quantize" and done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(plan, interrupt)
    assert unfinished_directory(plan.output).is_dir()
    quantize_checkpoint(plan, lambda *work: told.append(work))
    shares = [done / total for stage, done, total in told if stage == "quantize"]
    assert 0 < shares[0] <= 0.5
    assert shares[-1] == 1
    assert list(tmp_path.iterdir()) == [plan.output]


def test_a_disk_that_is_too_small_is_found_before_any_work(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = make_plan(tmp_path / "out").disk_needed()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=needed - 1))
    with pytest.raises(UnsuitableError, match="the quantized checkpoint and the hidden states"):
        make_plan(tmp_path / "out")
    # The checkpoint fits, and what the calibration set adds does not.
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=needed))
    plan = make_plan(tmp_path / "out")
    with pytest.raises(UnsuitableError, match="GB free"):
        quantize_checkpoint(plan)
    assert list(tmp_path.iterdir()) == []
