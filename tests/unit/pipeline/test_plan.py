from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from nvlm_deploy.errors import NvlmError, UnsuitableError, UsageError
from nvlm_deploy.pipeline.plan import BuildRequest, plan_engine

Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture
def request_int4(tiny_checkpoint: Path, tmp_path: Path) -> BuildRequest:
    return BuildRequest(tiny_checkpoint, "int4-rtn", "cpu-x86", tmp_path / "bundle")


def with_overrides(request: BuildRequest, *overrides: str) -> BuildRequest:
    return BuildRequest(request.checkpoint, request.recipe, request.target, request.output, overrides)


def test_a_plan_writes_nothing(request_int4: BuildRequest) -> None:
    plan_engine(request_int4)
    assert list(request_int4.output.parent.iterdir()) == []


def test_a_plan_is_told_as_json(request_int4: BuildRequest) -> None:
    told = json.loads(json.dumps(plan_engine(request_int4).to_dict()))
    assert told["recipe"]["name"] == "int4-rtn"
    assert told["context"] == 512, "the model's own limit lowers the target's"
    assert [size["part"] for size in told["sizes"]] == [
        "vision",
        "projector",
        "language",
        "lm_head",
        "embedding",
    ]
    assert {"manifest.json", "tokenizer.json", "vision/vision.onnx", "llm/decoder.onnx.data"} <= set(
        told["files"]
    )
    assert told["disk_needed"] > sum(size["after"] for size in told["sizes"])


def test_overrides_reach_recipe_and_target(request_int4: BuildRequest) -> None:
    request = with_overrides(request_int4, "weights.language.group_size=16", "target.max_context=400")
    plan = plan_engine(request)
    assert plan.recipe.weights.language.group_size == 16
    assert (plan.target.max_context, plan.context) == (400, 400)
    assert plan.sizes[2].after > plan_engine(request_int4).sizes[2].after, "more scales take more bytes"


def test_the_output_is_looked_at_before_anything_else(request_int4: BuildRequest) -> None:
    request_int4.output.mkdir()
    request = BuildRequest(Path("nowhere"), "none", "none", request_int4.output)
    with pytest.raises(UsageError, match="exists already"):
        plan_engine(request)


def test_a_context_too_small_for_an_image_is_unsuitable(request_int4: BuildRequest) -> None:
    with pytest.raises(UnsuitableError, match="cannot hold an image of 7 tiles") as caught:
        plan_engine(with_overrides(request_int4, "target.max_context=100"))
    assert caught.value.hint is not None
    suggested = caught.value.hint.rpartition("=")[2]
    assert plan_engine(with_overrides(request_int4, f"target.max_context={suggested}")).context == 512


def test_too_little_disk_is_unsuitable(request_int4: BuildRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(UnsuitableError, match=r"has 0\.00 GB free"):
        plan_engine(request_int4)


def test_the_disk_of_an_output_whose_parents_are_not_there_yet(request_int4: BuildRequest) -> None:
    output = request_int4.output / "deep" / "bundle"
    plan = plan_engine(BuildRequest(request_int4.checkpoint, "fp16", "cpu-x86", output))
    assert plan.disk_free > 0


def test_another_architecture_is_a_note(request_int4: BuildRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    (note,) = plan_engine(request_int4).notes
    assert "this machine is aarch64 and the target is x86_64" in note
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    assert plan_engine(request_int4).notes == ()


def test_a_cache_that_the_backend_lacks_is_unsuitable(request_int4: BuildRequest) -> None:
    with pytest.raises(UnsuitableError, match="kv_cache is fp16"):
        plan_engine(with_overrides(request_int4, "kv_cache=fp16"))


def test_a_checkpoint_without_a_tokenizer_is_an_error(request_int4: BuildRequest, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(request_int4.checkpoint, tmp_path / "checkpoint"))
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(NvlmError, match="has no tokenizer"):
        plan_engine(BuildRequest(checkpoint, "fp32", "cpu-x86", tmp_path / "bundle"))
