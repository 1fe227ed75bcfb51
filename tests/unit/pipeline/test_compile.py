"""Compiling a kit: the plan, what is missing here, stages that are not done twice, and the manifest.

No compiler is here. Where a test needs engines, a process writes files in their places; what plans and
checks them is the real code.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nvlm_deploy.backends.protocol import SessionOptions
from nvlm_deploy.backends.tensorrt_llm.adapter import installed_version
from nvlm_deploy.config.manifest import EngineManifest
from nvlm_deploy.errors import NvlmError, UnsuitableError, UsageError, VerificationError
from nvlm_deploy.pipeline.compile import compile_stage, run_process, run_stages
from nvlm_deploy.pipeline.compile_plan import (
    CompilePlan,
    CompileRequest,
    Stage,
    missing_here,
    plan_compile,
    preflight,
)
from nvlm_deploy.pipeline.resumable import unfinished_directory
from nvlm_deploy.runtime.bundle import Bundle, open_sessions
from tests.unit.doctor.recorded import Recorded

VERSIONS = {"tensorrt": "10.14.1.48", "tensorrt_llm": "1.2.1", "onnxruntime": "1.23"}
no_compiler = pytest.mark.skipif(installed_version() is not None, reason="TensorRT-LLM is installed here")


class Compiler:
    """Processes that write the files of engines; `fail` names a stage whose process fails."""

    def __init__(self, fail: str = "") -> None:
        self.fail, self.ran = fail, list[str]()

    def __call__(self, plan: CompilePlan, stage: Stage, output: Path) -> dict[str, Any]:
        self.ran.append(stage.name)
        target = output / stage.part.output
        written = {target: "plan"}
        if stage.rank is not None:
            assert plan.arguments is not None
            written = {target / f"rank{stage.rank}.engine": f"engine {stage.rank}"}
            if stage.rank == 0:
                written[target / "config.json"] = json.dumps({"build_config": plan.arguments.build})
        for path, text in written.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            code = f"open({str(path)!r}, 'w').write({text!r})"
            if stage.name == self.fail:
                code += "; print('no kernel for this'); raise SystemExit(1)"
            run_process([sys.executable, "-c", code], stage.name, output)
        return {"version": "test"}


@pytest.fixture
def plan(kit_directory: Path, tmp_path: Path) -> CompilePlan:
    return plan_compile(CompileRequest(kit_directory, tmp_path / "bundle"))


def test_the_plan_has_the_very_arguments(plan: CompilePlan) -> None:
    assert [stage.name for stage in plan.stages] == ["vision", "llm, rank 0", "llm, rank 1"]
    described = json.loads(json.dumps(plan.to_dict()))
    assert plan.arguments is not None
    assert described["arguments"] == plan.arguments.to_dict()
    batch = plan.kit.bundle.target["limits"]["max_batch"]
    tiler = plan.kit.bundle.tiler
    rows = batch * (tiler.max_tiles + 1) * tiler.visual_tokens_per_tile
    assert described["arguments"]["BuildConfig"]["max_prompt_embedding_table_size"] == rows
    assert described["arguments"]["BuildConfig"]["max_seq_len"] == plan.kit.bundle.context
    assert described["arguments"]["PluginConfig"]["nccl_plugin"] == "bfloat16"
    assert described["settings"]["tp"] == 2


@no_compiler
def test_everything_that_is_missing_is_named_at_once(plan: CompilePlan) -> None:
    with pytest.raises(UnsuitableError) as caught:
        preflight(plan)
    assert caught.value.exit_code == 3
    for text in ("compute capability 9.0", "TensorRT-LLM", "TensorRT, which compiles the tower"):
        assert text in str(caught.value)
    assert "nvlm-build doctor --target h100-80gb" in str(caught.value.hint)


def test_a_machine_that_has_everything_lacks_nothing(plan: CompilePlan) -> None:
    ready = Recorded.load("h100")
    assert missing_here(plan, ready) == []
    older = replace(ready, installed={**ready.installed, "tensorrt-llm": "1.0.0"})
    (missing,) = missing_here(plan, older)
    assert "1.2.1" in missing


def test_a_build_that_the_device_cannot_hold_is_refused_with_the_prediction(plan: CompilePlan) -> None:
    reason = "building on h100-80gb would take 200.0 GiB (on the device)"
    results = {"plan": {"build": {"on_target": False, "reason": reason}}}
    large = replace(plan, kit=replace(plan.kit, bundle=replace(plan.kit.bundle, results=results)))
    ready = Recorded.load("h100")
    (missing,) = missing_here(large, ready)
    assert missing.startswith(reason)
    capped = replace(large, request=replace(large.request, max_build_memory=1 << 20))
    assert missing_here(capped, ready) == []


def test_a_bundle_of_all_stages(plan: CompilePlan) -> None:
    compiler = Compiler()
    result = run_stages(plan, compiler, VERSIONS)
    assert sorted(compiler.ran) == sorted(stage.name for stage in plan.stages)
    opened = Bundle.open(result.bundle)
    manifest = opened.manifest
    assert manifest == result.manifest
    assert manifest.tool_versions["tensorrt_llm"] == "1.2.1"
    assert "onnxruntime" not in set(manifest.tool_versions) - set(plan.kit.bundle.tool_versions)
    assert manifest.llm["engine"] == "llm"
    assert manifest.llm["max_prompt_embedding_table_size"] > 0
    assert manifest.vision["backend"] == "tensorrt"
    names = {entry.path for entry in manifest.files}
    assert {"vision/vision.plan", "llm/rank0.engine", "llm/rank1.engine", "llm/config.json"} <= names
    assert not any(
        name.startswith(("probes", "README", "kit")) or name.endswith(".safetensors") for name in names
    )
    stages = manifest.results["compile"]["stages"]
    assert [stage["stage"] for stage in stages] == [stage.name for stage in plan.stages]
    assert all(stage["seconds"] > 0 for stage in stages)
    assert manifest.results["plan"]["fits"] is True
    measured = manifest.results["prediction"]["llm_bytes"]
    assert measured["measured"] == sum(e.size for e in manifest.files if e.path.startswith("llm/"))
    assert measured["predicted"] > 0
    with pytest.raises(UsageError, match="no logits"):
        open_sessions(opened, SessionOptions())


def test_finished_stages_are_not_done_again(plan: CompilePlan) -> None:
    with pytest.raises(NvlmError, match=r"llm, rank 1 could not be compiled.*\nno kernel for this"):
        run_stages(plan, Compiler(fail="llm, rank 1"), VERSIONS)
    assert not plan.request.output.exists()
    second = Compiler()
    run_stages(plan, second, VERSIONS)
    assert second.ran == ["llm, rank 1"]


def test_a_finished_stage_whose_file_has_changed_is_done_again(plan: CompilePlan) -> None:
    with pytest.raises(NvlmError):
        run_stages(plan, Compiler(fail="llm, rank 1"), VERSIONS)
    engine = unfinished_directory(plan.request.output) / "result" / "llm" / "rank0.engine"
    engine.write_text("damaged!")
    second = Compiler()
    result = run_stages(plan, second, VERSIONS)
    assert second.ran == ["llm, rank 0", "llm, rank 1"]
    assert (result.bundle / "llm" / "rank0.engine").read_text() == "engine 0"


def test_other_versions_begin_anew(plan: CompilePlan) -> None:
    with pytest.raises(NvlmError):
        run_stages(plan, Compiler(fail="llm, rank 1"), VERSIONS)
    second = Compiler()
    run_stages(plan, second, {**VERSIONS, "tensorrt": "10.15"})
    assert len(second.ran) == 3


def test_what_a_killed_compiler_left_is_no_part_of_the_bundle(plan: CompilePlan) -> None:
    class Untidy(Compiler):
        def __call__(self, plan: CompilePlan, stage: Stage, output: Path) -> dict[str, Any]:
            note = super().__call__(plan, stage, output)
            (output / "vision").mkdir(exist_ok=True)
            (output / "vision" / "vision.plan.job.json").write_text("{}")
            return note

    result = run_stages(plan, Untidy(), VERSIONS)
    assert [path.name for path in (result.bundle / "vision").iterdir()] == ["vision.plan"]
    assert EngineManifest.read(result.bundle) == result.manifest


def test_ranks_side_by_side(plan: CompilePlan) -> None:
    parallel = replace(plan, request=replace(plan.request, workers=2))
    result = run_stages(parallel, Compiler(), VERSIONS)
    assert (result.bundle / "llm" / "rank1.engine").read_text() == "engine 1"


def test_a_compiler_that_takes_too_much_memory_is_ended(plan: CompilePlan) -> None:
    def greedy(plan: CompilePlan, stage: Stage, output: Path) -> dict[str, Any]:
        if stage.rank is None:
            return Compiler()(plan, stage, output)
        code = "import time; x = bytearray(300 << 20); time.sleep(30)"
        run_process([sys.executable, "-c", code], stage.name, output)
        return {}

    capped = replace(plan, memory_limit=100 << 20)
    with pytest.raises(NvlmError, match=r"more than the 0\.10 GB allowed"):
        run_stages(capped, greedy, VERSIONS)
    second = Compiler()
    run_stages(plan, second, VERSIONS)
    assert "vision" not in second.ran


def test_an_engine_for_less_than_was_asked_for_is_refused(plan: CompilePlan) -> None:
    def small(plan: CompilePlan, stage: Stage, output: Path) -> dict[str, Any]:
        note = Compiler()(plan, stage, output)
        if stage.rank == 0:
            config = output / stage.part.output / "config.json"
            config.write_text(json.dumps({"build_config": {"max_batch_size": 1}}))
        return note

    with pytest.raises(NvlmError, match="was asked for"):
        run_stages(plan, small, VERSIONS)


def test_a_changed_kit_is_not_compiled(kit_directory: Path, tmp_path: Path) -> None:
    kit = Path(shutil.copytree(kit_directory, tmp_path / "kit"))
    weights = kit / "llm" / "rank1.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    plan = plan_compile(CompileRequest(kit, tmp_path / "bundle"))
    with pytest.raises(VerificationError, match=r"rank1\.safetensors has changed"):
        run_stages(plan, Compiler(), VERSIONS)
    weights.unlink()
    with pytest.raises(VerificationError, match=r"rank1\.safetensors is missing"):
        plan_compile(CompileRequest(kit, tmp_path / "bundle"))


def test_an_output_that_exists_is_refused(kit_directory: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists"):
        plan_compile(CompileRequest(kit_directory, tmp_path))


def test_a_kit_for_another_release_is_refused(
    kit_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvlm_deploy.pipeline.compile_plan.installed_version", lambda: "0.12.0")
    with pytest.raises(UnsuitableError, match=r"for TensorRT-LLM 1\.x, and 0\.12\.0 is installed"):
        plan_compile(CompileRequest(kit_directory, tmp_path / "bundle"))
    monkeypatch.setattr("nvlm_deploy.pipeline.compile_plan.installed_version", lambda: "1.3.0")
    with pytest.raises(UnsuitableError, match="removed"):
        plan_compile(CompileRequest(kit_directory, tmp_path / "bundle"))


@no_compiler
@pytest.mark.parametrize(("index", "said"), [(0, "TensorRT cannot be used here"), (1, "TensorRT-LLM is not")])
def test_the_real_compilers_say_that_they_are_not_here(
    plan: CompilePlan, index: int, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsuitableError, match=said) as caught:
        compile_stage(plan, plan.stages[index], tmp_path)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", NvlmError, "signal 9"),
        ("raise SystemExit(3)", UnsuitableError, "exit code 3"),
        ("print('x' * 10); raise ValueError('bad')", NvlmError, "ValueError: bad"),
    ],
)
def test_how_processes_fail(code: str, error: type[NvlmError], said: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=said) as caught:
        run_process([sys.executable, "-c", code], "a stage", tmp_path)
    assert type(caught.value) is error


def test_a_device_needs_no_exporter() -> None:
    """The environment of a compiler pins its own packages: what a kit is written with is not asked for."""
    code = (
        "import sys; import nvlm_deploy.cli.compile, nvlm_deploy.pipeline.compile;"
        "import nvlm_deploy.pipeline.verify_kit;"
        "import nvlm_deploy.backends.tensorrt_llm.rank, nvlm_deploy.backends.tensorrt_llm.session;"
        "print(sorted({'onnx', 'onnx_ir', 'onnxruntime', 'transformers', 'modelopt'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
