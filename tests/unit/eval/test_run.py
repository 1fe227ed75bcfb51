"""Benchmark runs on a checkpoint with random weights, whose answers are always the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nvlm_deploy.cli.frame import run_program
from nvlm_deploy.cli.main import EVAL
from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.eval.answerers import open_generator
from nvlm_deploy.eval.datasets import DatasetFiles, find_format
from nvlm_deploy.eval.metrics import find_metric
from nvlm_deploy.eval.predictions import settings_path
from nvlm_deploy.eval.run import RunRequest, run_benchmark
from nvlm_deploy.preprocess import ContentPart

QUESTIONS = 4
NewRequest = Callable[..., RunRequest]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four questions about four images."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(QUESTIONS):
        pixels = rng.integers(0, 256, (56, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        record = {"id": f"q{i}", "image": f"{i}.png", "question": f"What is {i}?", "references": ["x"]}
        lines.append(json.dumps({**record, "type": "even" if i % 2 == 0 else "odd"}) + "\n")
    (tmp_path / "data.jsonl").write_text("".join(lines))
    return tmp_path


@pytest.fixture
def new_request(folder: Path, tiny_checkpoint: Path) -> NewRequest:
    """Makes a request about the four questions."""

    def make(**changes: Any) -> RunRequest:
        request = RunRequest(
            model=tiny_checkpoint,
            format=find_format("jsonl"),
            files=DatasetFiles(folder / "data.jsonl", folder),
            metric=find_metric("anls"),
            output=folder / "p.jsonl",
            max_new_tokens=3,
        )
        return replace(request, **changes)

    return make


def test_a_run_in_two_parts_is_a_run_in_one(new_request: NewRequest, folder: Path) -> None:
    whole = run_benchmark(new_request(output=folder / "whole.jsonl"))
    part = run_benchmark(new_request(limit=1))
    assert (part.samples, whole.samples, whole.failed) == (1, QUESTIONS, ())
    seen: list[int] = []
    rest = run_benchmark(new_request(), lambda stage, done, total: seen.append(done))
    assert seen == [2, 3, 4]
    assert (folder / "p.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert rest.score == whole.score


def test_lines_say_what_was_asked_and_answered(new_request: NewRequest, folder: Path) -> None:
    run_benchmark(new_request(limit=1))
    generate = open_generator(new_request().model)
    line = json.loads((folder / "p.jsonl").read_text())
    assert line == {
        "id": "q0",
        "question": "What is 0?",
        "prediction": generate("What is 0?", [folder / "0.png"], 3),
        "references": ["x"],
        "type": "even",
    }


def test_a_finished_run_does_not_open_the_model(new_request: NewRequest, folder: Path) -> None:
    first = run_benchmark(new_request())
    calls: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nvlm_deploy.eval.run.open_generator", lambda *given: calls.append(given))
        again = run_benchmark(new_request(metric=find_metric("exact"), by="type"))
    assert calls == []
    assert again.samples == first.samples
    assert again.score is not None
    assert {name: tally.samples for name, tally in again.score.groups.items()} == {"even": 2, "odd": 2}


def test_bad_samples_are_counted_named_and_score_nothing(new_request: NewRequest, folder: Path) -> None:
    (folder / "1.png").write_bytes(b"no image")
    (folder / "2.png").unlink()
    report = run_benchmark(new_request())
    assert [name for name, _ in report.failed] == ["q1", "q2"]
    assert "1.png is not an image" in report.failed[0][1]
    assert report.score is not None
    assert (report.score.all.samples, report.score.all.failures) == (QUESTIONS, 2)
    assert run_benchmark(new_request()).failed == report.failed


def test_too_many_bad_samples_end_the_run(new_request: NewRequest, folder: Path) -> None:
    for i in (0, 2):
        (folder / f"{i}.png").write_bytes(b"")
    with pytest.raises(
        NvlmError, match=r"2 samples have no answer, and the limit is 1: q0: .*; q2: "
    ) as raised:
        run_benchmark(new_request(max_failures=1))
    assert "--max-failures" in (raised.value.hint or "")
    assert len((folder / "p.jsonl").read_text().splitlines()) == 3
    assert run_benchmark(new_request(max_failures=2)).samples == QUESTIONS


def test_other_answers_other_file(new_request: NewRequest, folder: Path, tmp_path: Path) -> None:
    run_benchmark(new_request(limit=1))
    with pytest.raises(UsageError, match="max_new_tokens is 3, and now it is 4"):
        run_benchmark(new_request(max_new_tokens=4))
    Image.new("RGB", (80, 80)).save(folder / "3.png")
    with pytest.raises(UsageError, match=r"dataset\.digest is"):
        run_benchmark(new_request())


def test_another_model_is_refused(new_request: NewRequest, folder: Path, tmp_path: Path) -> None:
    run_benchmark(new_request(limit=1))
    other = Path(shutil.copytree(new_request().model, tmp_path / "other"))
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    with pytest.raises(UsageError, match=r"model\.fingerprint"):
        run_benchmark(new_request(model=other))


def test_data_sets_whose_answers_are_secret(new_request: NewRequest, folder: Path) -> None:
    data = folder / "data.jsonl"
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    for line in lines:
        del line["references"]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = run_benchmark(new_request(limit=1))
    assert report.score is None
    assert report.to_dict()["score"] is None
    lines[0]["references"] = ["x"]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(NvlmError, match="sample 'q1': references are missing, unlike those of 'q0'"):
        run_benchmark(new_request())


def test_references_are_checked_before_the_model_is_opened(new_request: NewRequest) -> None:
    with pytest.raises(NvlmError, match=r"sample 'q0': references\.0 is 'x', and ends with no number"):
        run_benchmark(new_request(metric=find_metric("gsm8k"), model=Path("there is none")))


def test_the_command(new_request: NewRequest, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = new_request()
    command = ["run", str(request.files.data), "--model", str(request.model), "-o", str(request.output)]
    options = ["--metric", "anls", "--max-new-tokens", "3", "--limit", "2", "--by", "type"]
    assert run_program(EVAL, [*command, *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["metric"], report["samples"], report["failures"]) == ("anls", 2, 0)
    assert set(report["by_type"]) == {"even", "odd"}
    assert run_program(EVAL, [*command, *options]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["jsonl", "score", "samples", "failures"]
    assert [row.split()[0] for row in table[1:]] == ["even", "odd", "anls"]
    assert run_program(EVAL, ["score", "anls", str(request.output)]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == report["score"]
    assert settings_path(request.output).exists()


def test_a_device_is_for_engines(new_request: NewRequest) -> None:
    with pytest.raises(UsageError, match="a checkpoint answers on the CPU, not on cuda"):
        run_benchmark(new_request(device="cuda"))


def test_formats_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(EVAL, ["formats", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["docvqa"]["metric"] == "anls"
    assert run_program(EVAL, ["formats"]) == 0
    assert "OCRBench.json" in capsys.readouterr().out


def test_texts_several_images_and_stop_strings(tiny_checkpoint: Path, folder: Path) -> None:
    generate = open_generator(tiny_checkpoint)
    images = [folder / "0.png", folder / "1.png"]
    parts: list[ContentPart] = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which?"}]
    both = generate([{"role": "user", "content": parts}], images, 4)
    assert both == generate("<image>\n<image>\nWhich?", images, 4)
    text = generate("Which?", (), 8)
    assert text
    assert generate("Which?", (), 8, [text[1]]) == text[: text.index(text[1])]
    with pytest.raises(UsageError, match=r"the prompt has .* tokens and the model's context is 512"):
        generate("word " * 600, (), 4)
