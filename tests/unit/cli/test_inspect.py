from __future__ import annotations

import json
from pathlib import Path

import pytest

from nvlm_deploy.cli.main import run


def test_the_released_config_gives_every_released_tensor(
    shared_data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(shared_data_dir / "nvlm-d-72b.config.json"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    index = json.loads((shared_data_dir / "nvlm-d-72b.index.json").read_text())
    assert {tensor["name"] for tensor in printed["tensors"]} == set(index["weight_map"])
    assert printed["total"]["tensors"] == 1556
    assert printed["total"]["parameters"] == 79_379_593_344
    assert printed["total"]["bytes"] == index["metadata"]["total_size"]
    assert printed["kind"] == "config"


def test_the_text_lists_tensors_and_sums(shared_data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(shared_data_dir / "nvlm-d-72b.config.json")]) == 0
    out = capsys.readouterr().out
    tensors, _, sums = out.partition("\n\n")
    assert len(tensors.splitlines()) == 1556
    assert tensors.splitlines()[0].startswith("vision_model.embeddings.class_embedding")
    assert "79,379,593,344" in sums
    assert "80 layers x 8192, 64 heads, 8 for keys and values" in sums


def test_a_checkpoint_is_described_with_its_shards(
    golden_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(golden_dir), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    weight_map = json.loads((golden_dir / "model.safetensors.index.json").read_text())["weight_map"]
    assert {tensor["name"]: tensor["shard"] for tensor in printed["tensors"]} == weight_map
    assert printed["kind"] == "checkpoint"


def test_a_missing_source_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(tmp_path / "nowhere")]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_a_directory_of_something_else_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(tmp_path)]) == 1
    assert f"{tmp_path / 'config.json'} does not exist" in capsys.readouterr().err
