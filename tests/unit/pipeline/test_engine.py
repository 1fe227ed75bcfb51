from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nvlm_deploy.config.manifest import EngineManifest, verify_files
from nvlm_deploy.pipeline.engine import BuildResult, build_engine_bundle
from nvlm_deploy.pipeline.measured import PREDICTION_KEY
from nvlm_deploy.pipeline.plan import BuildRequest, EnginePlan, plan_engine


@pytest.fixture(scope="module")
def plan(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> EnginePlan:
    output = tmp_path_factory.mktemp("engine") / "bundle"
    return plan_engine(BuildRequest(tiny_checkpoint, "int4-rtn", "cpu-x86", output))


@pytest.fixture(scope="module")
def stages() -> dict[str, list[tuple[int, int]]]:
    """What the build tells about its progress."""
    return {}


@pytest.fixture(scope="module")
def result(plan: EnginePlan, stages: dict[str, list[tuple[int, int]]]) -> BuildResult:
    return build_engine_bundle(plan, lambda stage, *work: stages.setdefault(stage, []).append(work))


def test_the_bundle_holds_what_the_plan_promised(plan: EnginePlan, result: BuildResult) -> None:
    files = {path.relative_to(plan.output).as_posix() for path in plan.output.rglob("*") if path.is_file()}
    assert files == set(plan.files)
    assert list(plan.output.parent.iterdir()) == [plan.output]
    assert result.bundle == plan.output


def test_the_manifest_is_read_again_and_holds(plan: EnginePlan, result: BuildResult) -> None:
    manifest = EngineManifest.read(plan.output)
    assert manifest == result.manifest
    verify_files(plan.output, manifest)
    assert {entry.path for entry in manifest.files} == set(plan.files) - {"manifest.json"}
    assert manifest.checkpoint_fingerprint == plan.weights.reader.fingerprint()
    assert (manifest.context, manifest.tiler.tile_size, manifest.prompt.mode) == (512, 56, "hf")
    assert manifest.recipe["weights"]["language"]["format"] == "int4"
    assert manifest.tool_versions["onnxruntime"]


def test_the_manifest_does_not_name_this_machine(plan: EnginePlan, result: BuildResult) -> None:
    text = (plan.output / "manifest.json").read_text()
    for place in (plan.checkpoint, plan.output.parent, Path.home(), Path.cwd()):
        assert f'"{place}' not in text


def test_the_promised_sizes_are_those_on_disk(plan: EnginePlan, result: BuildResult) -> None:
    promised = sum(size.after for size in plan.sizes)
    size_of = {entry.path: entry.size for entry in result.manifest.files}
    graphs = sum(size for path, size in size_of.items() if ".onnx" in path)
    total = sum(size_of.values())
    assert promised <= graphs
    assert total <= plan.disk_needed


def test_progress_runs_to_the_end_of_every_stage(
    result: BuildResult, stages: dict[str, list[tuple[int, int]]]
) -> None:
    assert list(stages) == ["vision", "llm", "digests"]
    for work in stages.values():
        done = [each for each, _ in work]
        assert done == sorted(done)
        assert work[-1][0] == work[-1][1]


def test_two_builds_are_equal(plan: EnginePlan, result: BuildResult, tmp_path: Path) -> None:
    request = BuildRequest(plan.checkpoint, "int4-rtn", "cpu-x86", tmp_path / "again")
    again = build_engine_bundle(plan_engine(request))
    assert replace(again.manifest, results={}) == replace(result.manifest, results={})
    # All that may differ is what the build itself took.
    figures = [dict(each.manifest.results[PREDICTION_KEY]) for each in (again, result)]
    for each in figures:
        assert each.pop("build_s")["measured"] > 0
        assert each.pop("build_host_bytes")["measured"] > 0
    assert figures[0] == figures[1]


def test_the_result_is_told_as_json(result: BuildResult) -> None:
    told = json.loads(json.dumps(result.to_dict()))
    assert told["bundle"] == str(result.bundle)
    assert told["manifest"]["backend"] == "onnxruntime"
