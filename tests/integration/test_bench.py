"""The benchmark on a tiny shape: everyone computes the same numbers, and the table has every column."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nvlm_deploy.bench import shapes
from nvlm_deploy.cli.frame import run_program
from nvlm_deploy.cli.main import BENCH
from nvlm_deploy.synthetic.shapes import SHAPES
from tests.conftest import TINY_SHAPE


@pytest.fixture(autouse=True)
def tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", TINY_SHAPE)


def bench(*more: str) -> int:
    sizes = ["--prompt-tokens", "24", "--decode-tokens", "3", "--rounds", "2", "--threads", "1"]
    return run_program(BENCH, ["shapes", "--shape", "tiny", *sizes, *more])


def test_engine_equals_transformers_on_the_same_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--recipe", "fp32", "--recipe", "int8", "--json") == 0
    reference, fp32, int8 = json.loads(capsys.readouterr().out)["rows"]
    assert reference["subject"] == "transformers fp32"
    assert fp32["logits_error"] < 1e-5
    assert fp32["visual_tokens_error"] < 1e-5
    assert fp32["same_top_token"]
    assert 0 < int8["logits_error"] < 0.2
    assert int8["weights_mb"] < fp32["weights_mb"]
    assert all(row["tg3_tok_s"] > 0 and row["pp24_tok_s"] > 0 for row in (reference, fp32, int8))


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--recipe", "int4-rtn") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "vision ms/tile" in lines[2]
    assert [line.split("  ")[0] for line in lines[3:]] == ["transformers fp32", "int4-rtn"]


def test_unknown_shape_names_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(BENCH, ["shapes", "--shape", "nvlm-d-05b"]) == 2
    assert "did you mean 'nvlm-d-0.5b'" in capsys.readouterr().err


def test_unknown_recipe_costs_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "write_random_checkpoint", lambda *_: pytest.fail("work before the check"))
    assert bench("--recipe", "int5") == 2


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert bench("--recipe", "fp32") == 0
    assert not list(tmp_path.iterdir())
