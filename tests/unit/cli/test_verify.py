"""`nvlm-build verify` refuses what it cannot compare before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvlm_deploy.cli.main import run


def test_quick_and_samples_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "bundle", "--against", "checkpoint", "--quick", "--samples", "9"]) == 2
    assert "--quick and --samples exclude each other" in capsys.readouterr().err


def test_what_is_no_bundle_is_named(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(tmp_path), "--against", str(tiny_checkpoint)]) == 1
    assert "is neither an engine bundle nor a quantized checkpoint" in capsys.readouterr().err


def test_the_checkpoint_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "bundle"]) == 2
    assert "--against" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_refused_before_any_work(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    options = ["verify", str(tmp_path), "--against", str(tiny_checkpoint), "--device", "nonsense"]
    assert run(options) == 3
    assert "there is no device 'nonsense' on this machine" in capsys.readouterr().err
