from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nvlm_deploy.cli.main import run


@pytest.fixture(scope="module", params=[0, 3, 5])
def sample(request: pytest.FixtureRequest, golden_dir: Path) -> dict[str, Any]:
    """One reference image with what the published code makes of it."""
    samples: list[dict[str, Any]] = json.loads((golden_dir / "expected.json").read_text())["samples"]
    return samples[int(request.param)]


def test_json_agrees_with_the_reference(
    sample: dict[str, Any], golden_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(golden_dir / "images" / sample["image"])
    arguments = ["preprocess", str(golden_dir), "--image", image, "--prompt", sample["question"], "--json"]
    assert run(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    (shown,) = printed["images"]
    assert printed["input_ids"] == sample["input_ids"]
    assert (shown["file"], shown["tiles"], shown["crc32"]) == (image, sample["tiles"], sample["tile_crc32"])
    assert shown["grid"][0] * shown["grid"][1] in (sample["tiles"] - 1, sample["tiles"])


def test_the_text_tells_the_same(golden_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(golden_dir / "images" / "img00_RGB.png")
    assert run(["preprocess", str(golden_dir), "--image", image, "--image", image, "--prompt", "Hi"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[2] == f"{image}: grid 3 x 2, 7 tiles"
    assert "224 of them visual" in lines[4]


def test_images_alone_need_no_tokenizer(
    golden_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(golden_dir / "config.json", tmp_path)
    image = str(golden_dir / "images" / "img03_L.png")
    assert run(["preprocess", str(tmp_path), "--image", image, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["images"]


def test_nothing_to_show_is_a_usage_error(golden_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["preprocess", str(golden_dir)]) == 2
    assert "hint: give --image FILE, --prompt TEXT, or both" in capsys.readouterr().err


def test_more_places_than_images_is_a_usage_error(
    golden_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["preprocess", str(golden_dir), "--prompt", "<image> and <image>"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "the prompt has 2 <image>" in captured.err
