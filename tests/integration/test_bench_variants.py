"""NVLM-D, X and H side by side on a tiny shape: every figure is there, and the lengths are the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nvlm_deploy.cli.frame import run_program
from nvlm_deploy.cli.main import BENCH
from nvlm_deploy.synthetic.shapes import SHAPES
from tests.conftest import TINY_SHAPE


@pytest.fixture(autouse=True)
def tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", TINY_SHAPE)


def bench(*more: str) -> int:
    sizes = ["--every", "1", "--tiles", "1,3", "--decode-tokens", "3", "--rounds", "2", "--threads", "1"]
    return run_program(BENCH, ["variants", "--shape", "tiny", "--training-shape", "tiny", *sizes, *more])


def test_three_variants_are_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, repository: Path
) -> None:
    pytest.importorskip("matplotlib")
    trained = ("--trained", str(repository / "examples" / "nvlm-d-tiny"), "--questions", "4")
    assert bench("--recipe", "fp32", "--json", "-o", str(tmp_path), *trained) == 0
    report = json.loads(capsys.readouterr().out)
    rows = {row["variant"]: row for row in report["rows"]}
    assert list(rows) == ["D", "X", "H"]
    # Four visual tokens a tile here; NVLM-X has its tags alone, NVLM-H one tile whatever the image.
    assert [rows[v]["prompt_tokens"]["3"] for v in "DXH"] == [62, 51, 44]
    assert rows["D"]["tile_states_mb"] == 0
    assert rows["X"]["tile_states_mb"] > 0
    for row in rows.values():
        assert row["ttft_ms"]["3"] == pytest.approx(sum(row["stages_ms"]["3"].values()))
        assert 0 < row["vision_share"]["3"] < 1
        assert row["decode_tokens_per_s"] > 0
    assert rows["D"]["prefill_x"] == 1
    training = {row["variant"]: row for row in report["training"]["rows"]}
    # 1,024 tokens of text; four for each of three tiles in the sequence of D, for one in that of H.
    assert [training[v]["decoder_tokens"] for v in "DXH"] == [1036, 1024, 1028]
    assert [round(training[v]["paper_x"], 2) for v in "DXH"] == [1.0, 1.76, 1.26]
    (asked,) = report["accuracy"]["checkpoints"]
    assert asked["parameters"] == 3_367_424
    assert set(asked["exact_match"]) == {"pytorch fp32", "int4-rtn"}
    assert all(share >= 0.75 for share in asked["exact_match"].values())
    assert json.loads((tmp_path / "variants.json").read_text()) == report
    page = (tmp_path / "variants.md").read_text()
    assert "| D |" in page
    for name in ("variants.png", "training.png"):
        assert name in page
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--recipe", "int4-rtn") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines if line.startswith(("D ", "X ", "H "))] == list("DXH") * 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--tiles", "2"), "no image has 2 tiles"),
        (("--tiles", "9"), "no image has 9 tiles"),
        (("--tiles", "many"), "no list of numbers"),
        (("--recipe", "int8-sq"), "needs calibration"),
        (("--shape", "nvlm-d-05b"), "did you mean 'nvlm-d-0.5b'"),
        (("--training-shape", "nvlm-d-0.2b"), "there is no shape 'nvlm-d-0.2b'"),
        (("--every", "5"), "have no cross-attention every 5"),
    ],
)
def test_what_cannot_be_measured(
    capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    assert bench(*more) == 2
    assert message in capsys.readouterr().err
