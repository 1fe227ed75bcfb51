from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nvlm_deploy.checkpoint import CheckpointReader
from nvlm_deploy.checkpoint.megatron_export import export_megatron
from nvlm_deploy.cli.main import run
from nvlm_deploy.pipeline.convert import convert_megatron


@pytest.fixture
def megatron(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint in the Megatron-core layout, in two pipeline stages."""
    directory = tmp_path / "megatron"
    export_megatron(tiny_checkpoint, directory, tensor_parallel=1, pipeline_parallel=2)
    return directory


def test_a_checkpoint_comes_back(
    megatron: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "checkpoint"
    arguments = ["import-megatron", str(megatron), "--config", str(tiny_checkpoint), "-o", str(output)]
    assert run([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    before, after = CheckpointReader(tiny_checkpoint), CheckpointReader(output)
    assert told == {
        "checkpoint": str(output),
        "tensors": len(before.names()),
        "bytes": sum(before.info(name).num_bytes for name in before.names()),
    }
    for name in before.names():
        assert torch.equal(before.read(name), after.read(name)), name
    assert [path.name for path in output.parent.iterdir()] == ["checkpoint"]


def test_progress_counts_every_tensor(megatron: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    summary = convert_megatron(
        megatron, tiny_checkpoint, tmp_path / "checkpoint", lambda *step: steps.append(step)
    )
    count = summary.total.tensors
    assert steps == [("tensors", number, count) for number in range(1, count + 1)]


def test_an_output_that_exists_is_a_usage_error(
    megatron: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["import-megatron", str(megatron), "--config", str(tiny_checkpoint), "-o", str(megatron)]
    assert run(arguments) == 2
    assert f"the output {megatron} exists already" in capsys.readouterr().err


def test_a_failed_import_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "megatron", tmp_path / "out" / "checkpoint"
    source.mkdir()
    arguments = ["import-megatron", str(source), "--config", str(tiny_checkpoint), "-o", str(output)]
    assert run(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["megatron"]
