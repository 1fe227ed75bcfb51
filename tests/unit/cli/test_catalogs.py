from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nvlm_deploy.cli.main import run
from nvlm_deploy.config.catalog import find, list_names


def test_targets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets"]) == 0
    table, _, legend = capsys.readouterr().out.partition("\n\n")
    headings, *lines = table.splitlines()
    assert headings.split() == ["target", "SM", "memory", "usable", "GB/s", "TFLOPS", "backends"]
    assert [line.split()[0] for line in lines] == list(list_names("target"))
    rows = {line.split()[0]: line.split(maxsplit=6)[1:] for line in lines}
    assert rows["jetson-agx-orin-64gb"] == ["8.7", "64", "60", "204.8", "42.5", "tensorrt_llm, tensorrt"]
    assert rows["cpu-x86"] == ["-"] * 5 + ["onnxruntime"]
    assert "--set backend=NAME" in legend


def test_recipes_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes"]) == 0
    table, _, legend = capsys.readouterr().out.partition("\n\n")
    headings, *lines = table.splitlines()
    assert headings.split() == ["recipe", "B/weight", "decoder", "GB", "SM", "calibration", "engines"]
    assert [line.split()[0] for line in lines] == list(list_names("recipe"))
    (fp8,) = (line.split(maxsplit=6) for line in lines if line.startswith("fp8 "))
    assert fp8[1:6] == ["1.110", "1.000", "87.5", "8.9", "needed"]
    assert fp8[6] == "tensorrt_llm, tensorrt, tensorrt_rtx, vllm, onnxruntime"
    assert "B/weight: bytes of a weight" in legend


def test_recipes_are_listed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "--json"]) == 0
    recipes = {recipe["name"]: recipe for recipe in json.loads(capsys.readouterr().out)}
    assert list(recipes) == list(list_names("recipe"))
    assert recipes["int4-awq"]["decoder_bytes_per_weight"] == 0.5312
    assert recipes["int4-awq"]["needs_sm"] == 80
    assert recipes["int8"]["needs_calibration"] is False


def test_the_comparison_needs_no_torch() -> None:
    code = "import sys; import nvlm_deploy.quantization.comparison; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_recipe_is_shown_as_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "fp8"]) == 0
    assert capsys.readouterr().out == find("recipe", "fp8").path.read_text()


def test_one_file_is_shown_as_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets", "cpu-x86"]) == 0
    assert capsys.readouterr().out == find("target", "cpu-x86").path.read_text()


def test_one_file_is_shown_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets", "cpu-arm64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"] == "aarch64"


def test_an_unknown_name_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "int4-rnt"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "there is no recipe 'int4-rnt'" in captured.err
    assert "did you mean 'int4-rtn'" in captured.err
