"""`nvlm-build sensitivity` and `nvlm-build auto`: what they print and write, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nvlm_deploy.cli.main import run
from nvlm_deploy.config.sensitivity import read_report


@pytest.fixture(scope="module")
def report(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reports") / "report.json"
    words = ["sensitivity", str(tiny_checkpoint), "--formats", "int4-rtn,int8", "--count", "2", "--json"]
    assert run([*words, "-o", str(path)]) == 0
    return path


def test_the_table_has_a_row_for_every_layer(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sensitivity", str(tiny_checkpoint), "--formats", "int4-rtn", "--count", "2", "--local"]
    assert run(words) == 0
    captured = capsys.readouterr()
    rows = [line.split() for line in captured.out.splitlines()]
    assert [row[0] for row in rows if len(row) == 2] == [
        *("vision.layers.0", "vision.layers.1", "projector"),
        *("language.layers.0", "language.layers.1", "language.lm_head"),
    ]
    assert captured.out.startswith("relative squared error, one layer quantized at a time; 2 prompts")
    assert "the largest layer is held in FP32" in captured.err


def test_auto_writes_a_recipe_and_says_what_it_costs(
    tiny_checkpoint: Path, report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mine.yaml"
    words = ["auto", str(tiny_checkpoint), "--budget", "7bits", "--sensitivity", str(report)]
    assert run([*words, "-o", str(output)]) == 0
    out = capsys.readouterr().out
    assert "predicted KL" in out
    assert "measured KL" in out
    assert "int4-rtn, all layers" in out
    text = output.read_text()
    assert text.startswith("# Written by nvlm-build auto: ")
    assert "# language.layers.1  int" in text
    assert run(["recipes", str(output)]) == 0
    assert capsys.readouterr().out == text
    assert run([*words, "-o", str(output)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_auto_measures_if_there_is_no_report(
    tiny_checkpoint: Path, report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["auto", str(tiny_checkpoint), "--budget", "7bits", "--no-check", "--json"]
    measuring = ["--formats", "int4-rtn,int8", "--count", "2", "-o", str(tmp_path / "a.yaml")]
    assert run([*common, *measuring]) == 0
    first = json.loads(capsys.readouterr().out)
    assert run([*common, "--sensitivity", str(report), "-o", str(tmp_path / "b.yaml")]) == 0
    second = json.loads(capsys.readouterr().out)
    assert first["measured"] is None
    assert [unit["stored"] for unit in first["units"]] == [unit["stored"] for unit in second["units"]]
    assert first["predicted"] == pytest.approx(second["predicted"], rel=1e-3)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--formats", "int4-rtn,fp8"], "int4-rtn and fp8 cannot be mixed"),
        (["--formats", "fp16"], "recipe fp16 quantizes nothing"),
        (["--formats", "int8,int8"], "two of the formats have the name int8"),
        (["--formats", "int8", "--set", "int4.kv_cache=fp8"], "'int4' is none of the formats"),
        (["--formats", "int8", "--set", "int8.kv_cache=fp9"], "kv_cache"),
        (["--formats", "int8", "--device", "cuda:9"], "no device 'cuda:9'"),
        (["--formats", "int4-awq"], "which groups of 128 do not divide"),
        (["--formats", "int8", "--plot", "loss.pdf"], "loss.pdf is no picture"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(
    words: list[str], problem: str, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["sensitivity", str(tiny_checkpoint), *words]) in (2, 3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert problem in captured.err


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["--budget", "4bits"], 2, "no formats to choose from"),
        (["--budget", "4bits", "--formats", "int4-rtn", "--count", "1"], 3, "smallest formats"),
        (["--budget", "many", "--formats", "int8"], 2, "the budget 'many' is no size"),
        (["--budget", "8bits", "--sensitivity", "REPORT", "--formats", "int8"], 2, "those of the report"),
        (["--budget", "8bits", "--sensitivity", "none.json"], 1, "none.json cannot be read"),
    ],
)
def test_what_cannot_be_chosen_is_refused(
    words: list[str],
    code: int,
    problem: str,
    tiny_checkpoint: Path,
    report: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "auto.yaml"
    given = [str(report) if word == "REPORT" else word for word in words]
    assert run(["auto", str(tiny_checkpoint), *given, "-o", str(output)]) == code
    assert problem in capsys.readouterr().err
    assert not output.exists()


def test_a_report_of_another_checkpoint_is_refused(
    tiny_checkpoint: Path, report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = report.read_text()
    fingerprint = read_report(report).checkpoint_fingerprint
    other = tmp_path / "other.json"
    other.write_text(text.replace(fingerprint, "0" * len(fingerprint)))
    words = ["auto", str(tiny_checkpoint), "--budget", "8bits", "--sensitivity", str(other)]
    assert run([*words, "-o", str(tmp_path / "a.yaml")]) == 1
    assert "about another checkpoint" in capsys.readouterr().err


def test_a_model_that_does_not_fit_is_refused_with_the_way_out(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nvlm_deploy.pipeline.sensitivity._physical_memory", lambda device: 10**5)
    assert run(["sensitivity", str(tiny_checkpoint), "--formats", "int8"]) == 3
    error = capsys.readouterr().err
    assert "holds the whole model in FP32" in error
    assert "hint: --local" in error
