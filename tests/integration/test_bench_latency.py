"""`nvlm-bench latency`, `compare` and `limits` on a tiny engine."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from nvlm_deploy.bench.floors import Floors
from nvlm_deploy.bench.limits import Limits
from nvlm_deploy.cli.frame import run_program
from nvlm_deploy.cli.main import BENCH
from nvlm_deploy.config.manifest import EngineManifest
from nvlm_deploy.config.model import NvlmConfig

SIZES = ["--tiles", "1,7", "--prompt-tokens", "16", "--depth", "16", "--answer-tokens", "3", "--threads", "1"]


def bench(bundle: Path, *more: str) -> int:
    return run_program(BENCH, ["latency", str(bundle), *SIZES, "--rounds", "2", *more])


@pytest.fixture(scope="module")
def report_file(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latency") / "report.json"
    assert bench(tiny_bundle, "--format", "json", "-o", str(path)) == 0
    return path


@pytest.fixture
def data(report_file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(report_file.read_text())
    return loaded


def test_every_stage_is_there_with_every_round(data: dict[str, Any]) -> None:
    stages = ["decode_file", "tile", "tokenize", "vision", "prefill", "ttft", "tpot", "e2el"]
    names = [f"{row['test']} {row['stage']}" for row in data["rows"]]
    of_images = [f"{test} {stage}" for test in ("t1", "t7") for stage in stages]
    assert names == [*of_images, "pp16 prefill", "tg3@16 tpot"]
    assert all(len(row["samples_ms"]) == 2 for row in data["rows"])
    assert data["engine"]["recipe"] == "int4-rtn"
    assert data["engine"]["verified"] is False
    by_name = dict(zip(names, data["rows"], strict=True))
    assert by_name["t7 ttft"]["median_ms"] > by_name["t1 vision"]["median_ms"] > 0
    assert by_name["pp16 prefill"]["share_of_limit"] > 0


def test_floors_are_bytes_and_operations(tiny_bundle: Path) -> None:
    manifest, config = EngineManifest.read(tiny_bundle), NvlmConfig.from_directory(tiny_bundle)
    floors = Floors.of(config, manifest, Limits(1, read_gb_s=1e-3, gops={"fp32": 1e9, "int8": 1e9}))
    # A byte takes a microsecond, computing nothing: weights, and keys and values in FP32.
    language = config.language
    states = 2 * 4 * language.num_layers * language.kv_size
    assert floors.step_ms(11) - floors.step_ms(10) == pytest.approx(states / 1e3)
    stored = {size.part: size.after for size in manifest.sizes}
    weights = stored["language"] + stored["lm_head"]
    assert floors.prefill_ms(8) == pytest.approx(weights / 1e3, rel=0.05)
    assert floors.vision_ms(7) == pytest.approx(7 * floors.vision_ms(1))


def test_formats(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--tiles", "1", "--depth", "", "--rounds", "1"]
    assert bench(tiny_bundle, *few, "--format", "csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["stage"] for row in rows][-1] == "prefill"
    assert bench(tiny_bundle, *few, "--format", "jsonl") == 0
    lines = capsys.readouterr().out.splitlines()
    assert {json.loads(line)["environment"]["threads"] for line in lines} == {1}
    assert len(lines) == len(rows)
    assert bench(tiny_bundle, *few, "--format", "md") == 0
    assert "| t1 | vision |" in capsys.readouterr().out
    assert bench(tiny_bundle, *few) == 0
    assert "of the limit" in capsys.readouterr().out


def test_compare_exits_4_where_a_row_is_slower(
    report_file: Path, data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for row in data["rows"]:
        row["samples_ms"] = [100.0, 100.1, 100.2]
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(json.dumps(data))
    data["rows"][3]["samples_ms"] = [105.0, 105.1, 105.2]
    second.write_text(json.dumps(data))
    assert run_program(BENCH, ["compare", str(first), str(first)]) == 0
    assert run_program(BENCH, ["compare", str(first), str(second)]) == 4
    output = capsys.readouterr()
    assert "slower than" in output.err
    assert "t1 vision" in output.err
    assert run_program(BENCH, ["compare", str(first), str(second), "--threshold", "0.1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][3]["ratio"] == pytest.approx(1.05, rel=1e-3)
    assert run_program(BENCH, ["compare", str(first), str(report_file)]) in (0, 4)


def test_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(BENCH, ["limits", "--threads", "1"]) == 0
    assert "GB/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        (["--tiles", "2"], "no image has 2 tiles"),
        (["--tiles", "one"], "is no list of numbers"),
        (["--prompt-tokens", "999999"], "the engine's context is"),
    ],
)
def test_tests_that_cannot_be(
    tiny_bundle: Path, option: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(tiny_bundle, *option) == 2
    assert problem in capsys.readouterr().err
