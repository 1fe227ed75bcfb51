"""Verification as the last stage of a build."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvlm_deploy.cli.main import run
from nvlm_deploy.config.manifest import EngineManifest


def engine(checkpoint: Path, output: Path, *options: str) -> int:
    return run(["engine", str(checkpoint), "--target", "cpu-x86", "-o", str(output), *options])


def result(bundle: Path) -> object:
    return EngineManifest.read(bundle).results.get("verify", {}).get("passed")


def test_an_engine_is_verified_when_it_is_built(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert engine(tiny_checkpoint, tmp_path / "bundle", "--recipe", "fp32") == 0
    assert result(tmp_path / "bundle") is True
    assert f"checks against {tiny_checkpoint} passed" in capsys.readouterr().err
    ask = ["run", str(tmp_path / "bundle"), "--prompt", "Hello", "--max-new-tokens", "1"]
    assert run([*ask, "--require-verified"]) == 0


def test_an_engine_that_differs_stays_and_is_marked(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--recipe", "int8", "--set", "verify.decoder_cosine=1.0")
    assert engine(tiny_checkpoint, tmp_path / "bundle", *options) == 4
    assert "decoder, cosine of the stream" in capsys.readouterr().err
    assert result(tmp_path / "bundle") is False
    ask = ["run", str(tmp_path / "bundle"), "--prompt", "Hello", "--max-new-tokens", "1"]
    assert run(ask) == 0
    assert run([*ask, "--require-verified"]) == 4


def test_an_engine_of_a_quantized_checkpoint_needs_the_released_one(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantized = tmp_path / "quantized"
    options = ["--recipe", "fp8", "--set", "calibration.count=2", "-o", str(quantized)]
    assert run(["quantize", str(tiny_checkpoint), *options]) == 0
    assert engine(quantized, tmp_path / "unverified") == 0
    assert "not verified: give --against" in capsys.readouterr().err
    assert result(tmp_path / "unverified") is None
    assert engine(quantized, tmp_path / "verified", "--against", str(tiny_checkpoint)) == 0
    assert result(tmp_path / "verified") is True
