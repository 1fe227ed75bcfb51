from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nvlm_deploy.cli.main import run
from nvlm_deploy.synthetic.shapes import SHAPES, released_style_config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Widths of the 72B with two layers: a plan for it takes as long as one for any other model of two."""
    shape = replace(SHAPES["nvlm-d-72b"], layers=2, vision_layers=2)
    path = tmp_path_factory.mktemp("plan") / "config.json"
    path.write_text(json.dumps(released_style_config(shape)))
    return str(path)


def test_a_plan_as_json(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", config, "--recipe", "int4-awq", "--target", "h100-80gb", "--json"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert captured.err == ""
    assert told["fits"] is True
    assert told["reasons"] == []
    assert set(told["weights_bytes"]) == {"vision", "projector", "language", "total"}
    assert told["kv_bytes_per_token"] == 327_680 / 40
    assert set(told["predicted"]["ttft_ms"]) == {"1", "3", "4", "5", "6", "7"}
    assert told["predicted"]["decode_tokens_per_s"] > 0
    assert told["predicted"]["efficiency"]["source"]


def test_what_does_not_fit_is_printed_and_refused(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--target", "h100-80gb", "--set", "target.memory.usable_gib=9"]
    assert run(["plan", config, "--recipe", "fp8", *small, "--json"]) == 3
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["fits"] is False
    assert captured.err.startswith(f"error: {told['reasons'][0]}")
    assert f"hint: {'; '.join(told['hints'])}" in captured.err
    assert told["reasons"][0].startswith("the engine needs")
    assert run(["plan", config, "--recipe", "fp8", *small, "--tp", "4", "--context", "2048"]) == 0


def test_fp8_on_orin(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", config, "--recipe", "fp8", "--target", "jetson-orin-nx-16gb", "--json"]) == 3
    captured = capsys.readouterr()
    assert json.loads(captured.out)["fits"] is False
    assert "needs a GPU of compute capability 8.9, and jetson-orin-nx-16gb has 8.7" in captured.err
    assert "hint: int8-sq and int4-awq run from 8.0 on" in captured.err


def test_the_table_says_what_is_assumed(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--recipe", "int4-awq", "--target", "jetson-orin-nx-16gb", "--context", "4096"]
    assert run(["plan", config, *arguments]) == 0
    captured = capsys.readouterr()
    assert "4,096 tokens of context" in captured.out
    assert "INT4 (groups of 128) by AWQ" in captured.out
    assert "decode 91%, prefill 50%, tower 50%" in captured.out
    assert "note: building on jetson-orin-nx-16gb itself would take" in captured.err


def test_auto_ranks_and_names_the_best(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", config, "--recipe", "auto", "--target", "jetson-agx-orin-64gb", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["recipe"]["name"] == told["ranking"][0]["recipe"] == "int4-awq-vit-int8"
    assert run(["plan", config, "--recipe", "auto", "--target", "jetson-agx-orin-64gb"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["recipe", "fits", "weights"]
    assert lines[1].split()[:2] == ["int4-awq-vit-int8", "yes"]


def test_auto_without_a_recipe_that_fits(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--target", "jetson-orin-nano-8gb", "--set", "target.memory.usable_gib=1"]
    assert run(["plan", config, "--recipe", "auto", *small, "--json"]) == 3
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["fits"] is False
    assert len(told["ranking"]) > 20
    assert "error: no recipe fits jetson-orin-nano-8gb" in captured.err
    assert "hint: --target" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "int4-awq", "--target", "h100"], "there is no target 'h100'"),
        (["--recipe", "none", "--target", "h100-80gb"], "there is no recipe 'none'"),
        (["--recipe", "fp8", "--target", "h100-80gb", "--max-tiles", "12"], "--max-tiles 12 is more than"),
        (["--recipe", "fp8", "--target", "h100-80gb", "--context", "99999"], "--context 99,999 is more than"),
        (
            ["--recipe", "auto", "--target", "h100-80gb", "--set", "kv_cache=fp8"],
            "--set kv_cache=fp8 is for one recipe",
        ),
        (["--recipe", "fp8", "--target", "h100-80gb", "--set", "backend=vllm"], "--set backend=vllm"),
    ],
)
def test_a_wrong_question_is_a_usage_error(
    config: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", config, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_a_missing_source_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--recipe", "fp8", "--target", "h100-80gb"]
    assert run(["plan", str(tmp_path / "nowhere"), *arguments]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_a_plan_needs_no_torch(config: str) -> None:
    code = (
        "import sys; from nvlm_deploy.cli.main import run; "
        f"run(['plan', {config!r}, '--recipe', 'fp8', '--target', 'h100-80gb', '--json']); "
        "sys.exit(5 if {'torch', 'onnx', 'onnxruntime'} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0
