"""NVLM-X and NVLM-H on the command line: what is made of them, and what is refused so far."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nvlm_deploy.cli.main import run
from nvlm_deploy.eval.answerers import open_answerer
from nvlm_deploy.synthetic.documents import samples


@pytest.fixture(scope="module", params=["X", "H"])
def checkpoint(
    request: pytest.FixtureRequest, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    parts, output = str(repository / "examples/nvlm-d-tiny"), tmp_path_factory.mktemp("variants") / "made"
    arguments = ["--variant", request.param, "--layers", "1,3", "-o", str(output)]
    assert run(["convert", "--from", parts, "--vision", parts, *arguments]) == 0
    return output


def test_a_converted_model_answers(checkpoint: Path) -> None:
    """Its gates are closed, so it guesses; but it runs from picture to text."""
    (sample,) = samples("heldout", 1)
    assert isinstance(open_answerer(checkpoint)(sample), str)


def test_what_is_not_written_yet_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["-o", str(tmp_path / "out")]
    for verb in (
        ["export", str(checkpoint), "--format", "trtllm", *output],
        ["export", str(checkpoint), "--format", "hf", *output],
    ):
        assert run(verb) == 3, verb
        assert "this release exports NVLM-D only" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["h100-80gb", "rtx-pro-6000-96gb", "jetson-agx-orin-64gb"])
def test_engines_that_have_no_cross_attention_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    for verb in (
        ["engine", str(checkpoint), "--recipe", "fp16", "--target", target, "-o", str(tmp_path / "out")],
        ["plan", str(checkpoint), "--recipe", "fp16", "--target", target],
    ):
        assert run(verb) == 3, verb
        error = capsys.readouterr().err
        assert "makes engines of NVLM-D only" in error
        assert "--set backend=onnxruntime" in error
    assert not (tmp_path / "out").exists()


def test_a_config_of_another_variant_is_no_secret(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["architectures"] = ["NVLM_D"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert run(["inspect", str(tmp_path / "config.json")]) == 1
    assert "cross_attention_config is 'given'; supported: none in an NVLM-D" in capsys.readouterr().err
