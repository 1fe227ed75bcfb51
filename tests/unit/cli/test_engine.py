from __future__ import annotations

import json
from pathlib import Path

import pytest

from nvlm_deploy.cli.main import run
from nvlm_deploy.preprocess import Tokenizer


@pytest.fixture(scope="module")
def arguments(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    output = tmp_path_factory.mktemp("cli") / "bundle"
    names = ["--recipe", "int8", "--target", "cpu-x86"]
    return ["engine", str(tiny_checkpoint), *names, "--no-verify", "-o", str(output)]


@pytest.fixture(scope="module")
def bundle(arguments: list[str]) -> Path:
    assert run(arguments) == 0
    return Path(arguments[-1])


def test_a_dry_run_prints_the_plan_and_builds_nothing(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = [*arguments[:-1], str(tmp_path / "bundle")]
    assert run([*changed, "--dry-run", "--json", "--set", "weights.vision.group_size=64"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["recipe"]["weights"]["vision"]["group_size"] == 64
    assert run([*changed, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "512 tokens" in out
    assert "disk" in out
    assert out.splitlines()[-1].startswith("total")
    assert list(tmp_path.iterdir()) == []


def test_a_build_as_json(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*arguments[:-1], str(tmp_path / "bundle"), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["bundle"] == str(tmp_path / "bundle")
    assert captured.err == ""


def test_the_answer_as_json(bundle: Path, golden_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    image = str(golden_dir / "images" / "img00_RGB.png")
    more = ["--prompt", "What?", "--image", image, "--max-new-tokens", "3", "--top-logits", "2", "--json"]
    assert run(["run", str(bundle), *more]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) >= {"text", "input_ids", "output_ids", "images", "timings_ms", "first_token_top"}
    assert answer["images"][0]["grid"] == [3, 2]
    assert len(answer["images"][0]["crc32"]) == answer["images"][0]["tiles"] == 7
    assert [set(token) for token in answer["first_token_top"]] == [{"id", "logit"}] * 2
    assert answer["first_token_top"][0]["logit"] >= answer["first_token_top"][1]["logit"]
    assert 1 <= len(answer["output_ids"]) <= 3


def test_a_streamed_answer_is_the_whole_answer(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    arguments = ["run", str(bundle), "--prompt", "What?", "--max-new-tokens", "6"]
    assert run([*arguments, "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert run([*arguments, "--stream"]) == 0
    streamed = capsys.readouterr()
    assert run(arguments) == 0
    assert streamed.out == capsys.readouterr().out == text + "\n"
    assert "prefill" in streamed.err


def test_stream_and_json_exclude_each_other(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["run", str(bundle), "--prompt", "What?", "--stream", "--json"]) == 2
    assert capsys.readouterr().out == ""


def test_a_bundle_is_inspected(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["inspect", str(bundle), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["recipe"]["name"], told["context"]) == ("bundle", "int8", 512)
    assert run(["inspect", str(bundle)]) == 0
    out = capsys.readouterr().out
    assert "every digest holds" in out
    assert "llm/decoder.onnx.data" in out


def test_a_bundle_preprocesses_as_its_checkpoint(
    bundle: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(["preprocess", str(bundle), "--prompt", "Same?", "--json"]) == 0
    ids = json.loads(capsys.readouterr().out)["input_ids"]
    assert run(["preprocess", str(tiny_checkpoint), "--prompt", "Same?", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["input_ids"] == ids
    assert "Same?" in Tokenizer.from_directory(bundle).decode(ids)
