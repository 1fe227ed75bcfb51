"""Build kits through the command line: written, planned, refused where there is no device, gone on with."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from importlib import util
from pathlib import Path

import pytest

from nvlm_deploy.backends.tensorrt.compile import CompileJob, compile_graph
from nvlm_deploy.backends.tensorrt_llm.adapter import installed_version
from nvlm_deploy.cli.main import run
from nvlm_deploy.config.kit import BuildKit
from nvlm_deploy.verify.probes import ProbeSet

no_compiler = pytest.mark.skipif(installed_version() is not None, reason="TensorRT-LLM is installed here")


@pytest.fixture(scope="module")
def example(repository: Path) -> Path:
    return repository / "examples" / "nvlm-d-tiny"


@pytest.fixture(scope="module")
def kit(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example for an H100, 16 bits, two ranks; not to be changed."""
    output = tmp_path_factory.mktemp("kits") / "kit"
    names = ["--recipe", "fp16", "--target", "h100-80gb", "--tp", "2"]
    assert run(["engine", str(example), *names, "--kit", "-o", str(output)]) == 0
    return output


@no_compiler
def test_a_kit_from_the_command_line(kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (kit / "llm" / "rank1.safetensors").is_file()
    capsys.readouterr()
    command = ["compile", str(kit), "-o", str(tmp_path / "bundle")]
    assert run([*command, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["release"] == "1.2.1"
    assert [stage["name"] for stage in plan["stages"]] == ["vision", "llm, rank 0", "llm, rank 1"]
    assert plan["arguments"]["BuildConfig"]["strongly_typed"] is True
    assert any("TensorRT-LLM" in text for text in plan["missing"])
    assert run([*command, "--dry-run", "--max-build-memory", "48GB"]) == 0
    captured = capsys.readouterr()
    assert "max_prompt_embedding_table_size" in captured.out
    assert "at most 48.0 GB" in captured.out
    assert "missing here" in captured.err
    assert run(command) == 3
    assert "cannot be compiled here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bad_command_lines(
    kit: Path, example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compile", str(kit), "-o", str(tmp_path / "bundle")]
    assert run([*command, "--max-build-memory", "much"]) == 2
    assert run(["compile", str(example), "-o", str(tmp_path / "bundle")]) == 1
    assert "no build kit" in capsys.readouterr().err
    names = ["--recipe", "fp16", "--target", "cpu-x86", "-o", str(tmp_path / "bundle")]
    assert run(["engine", str(example), *names, "--kit"]) == 2
    assert run(["engine", str(example), *names, "--tp", "2"]) == 2
    orin = ["--recipe", "fp16", "--target", "jetson-agx-orin-64gb", "-o", str(tmp_path / "bundle")]
    assert run(["engine", str(example), *orin, "--no-verify", "--tp", "2"]) == 3
    assert "one GPU" in capsys.readouterr().err


def test_the_trained_example_answers_its_probes_as_the_reference_expects(kit: Path) -> None:
    """The reference's best tokens are the right answers, so the probes can tell a sound engine."""
    probes = ProbeSet.read(kit / "probes").probes
    right = [
        token.top[0].id == probe.input_ids[token.position + 1]
        for probe in probes
        if probe.image is not None
        for token in probe.tokens[:-1]
    ]
    assert sum(right) / len(right) > 0.9


@pytest.mark.skipif(util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_the_graph_of_a_kit_compiles(kit: Path, tmp_path: Path) -> None:
    """TensorRT-RTX takes the job of the kit as it stands, for a GPU that it has."""
    part = BuildKit.read(kit).part("vision")
    plan = tmp_path / "vision.plan"
    changes = {"library": "tensorrt_rtx", "sm": 89, "graph": str(kit / part.source), "plan": str(plan)}
    job = CompileJob(**{**part.job, **changes})
    assert asdict(job)["profiles"] == part.job["profiles"]
    result = compile_graph(job)
    assert result.bytes == plan.stat().st_size > 1 << 20


def test_a_killed_run_goes_on(example: Path, kit: Path, tmp_path: Path) -> None:
    output = tmp_path / "kit"
    names = ["--recipe", "fp16", "--target", "h100-80gb", "--tp", "2", "--kit", "-o", str(output)]
    call = f"from nvlm_deploy.cli.main import run; run({['engine', str(example), *names]!r})"
    process = subprocess.Popen([sys.executable, "-c", call], stderr=subprocess.DEVNULL)
    note = tmp_path / ".kit.unfinished" / "pieces" / "00000.json"
    deadline = time.monotonic() + 60
    while not note.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    vision = tmp_path / ".kit.unfinished" / "result" / "vision" / "vision.onnx.data"
    written = vision.stat().st_mtime_ns
    assert run(["engine", str(example), *names]) == 0
    assert (output / "vision" / "vision.onnx.data").stat().st_mtime_ns == written
    assert BuildKit.read(output).digest == BuildKit.read(kit).digest
    shutil.rmtree(output)
