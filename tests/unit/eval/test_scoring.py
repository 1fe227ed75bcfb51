"""Files of predictions and their scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nvlm_deploy.cli.frame import run_program
from nvlm_deploy.cli.main import EVAL
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.eval.metrics import METRICS, find_metric
from nvlm_deploy.eval.scoring import score_file


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def line(prediction: str, *references: str, **extra: Any) -> dict[str, Any]:
    return {"prediction": prediction, "references": list(references), **extra}


def test_the_command_prints_the_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # ANLS of the three lines: 1, 1 - 1/5 and 0; empty lines do not count.
    file = write(
        tmp_path / "p.jsonl", line("hello", "hello"), "", line("hallo", "hello"), line("world", "hello")
    )
    assert run_program(EVAL, ["score", "anls", str(file)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == {"metric": "anls", "score": pytest.approx(0.6), "samples": 3, "failures": 0}


def test_a_line_without_an_answer_scores_nothing(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", line("a", "a"), {"references": ["a"], "error": "no image"})
    report = score_file(find_metric("exact-strict"), file)
    assert (report.all.score, report.all.samples, report.all.failures) == (0.5, 2, 1)


def test_scores_by_a_field(tmp_path: Path) -> None:
    file = write(
        tmp_path / "p.jsonl", line("a", "a", type="x"), line("a", "b", type="x"), line("a", "a", type=3)
    )
    report = score_file(find_metric("exact-strict"), file, by="type").to_dict()
    assert {name: group["score"] for name, group in report["by_type"].items()} == {"x": 0.5, "3": 1.0}
    with pytest.raises(NvlmError, match=r"p\.jsonl:1 has no field 'kind'"):
        score_file(find_metric("exact-strict"), file, by="kind")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"p\.jsonl:2 is not valid JSON"),
        ("[1]", r"p\.jsonl:2 is a list, not a JSON object"),
        ('{"references": ["a"]}', r"p\.jsonl:2 has no field 'prediction'"),
        ('{"prediction": "a"}', r"p\.jsonl:2 has no field 'references'"),
        ('{"prediction": 5, "references": ["a"]}', r"p\.jsonl:2: prediction must be a text, not 5"),
        ('{"prediction": "a", "references": "a"}', r"p\.jsonl:2: references must be a list of texts"),
        ('{"prediction": "a", "references": []}', r"p\.jsonl:2: references must be a list of texts"),
        ('{"prediction": "a", "references": ["a", 1]}', r"p\.jsonl:2: references must be a list of texts"),
        ('{"prediction": "a", "references": ["a"], "options": 4}', r"p\.jsonl:2: options must be a list"),
        ('{"prediction": "a", "references": ["Z"], "options": ["x", "y"]}', r"p\.jsonl:2: references\.0 is"),
    ],
)
def test_bad_lines_are_named(text: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", line("A", "A", options=["x", "y"]), text)
    with pytest.raises(NvlmError, match=message):
        score_file(find_metric("mmmu"), file)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(b'{"prediction": "\xff", "references": ["a"]}\n')
    with pytest.raises(NvlmError, match=r"p\.jsonl:1 is not valid JSON"):
        score_file(find_metric("exact"), file)


def test_an_empty_file_has_no_score(tmp_path: Path) -> None:
    with pytest.raises(NvlmError, match="has no lines"):
        score_file(find_metric("vqa"), write(tmp_path / "p.jsonl", "", " "))


def test_unknown_metrics_and_missing_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(EVAL, ["score", "relaxd", "x.jsonl"]) == 2
    assert capsys.readouterr().err == (
        "error: there is no metric 'relaxd'\n\nhint: did you mean 'relaxed'?\n"
    )
    assert run_program(EVAL, ["score", "vqa", str(tmp_path / "none.jsonl")]) == 1
    assert "none.jsonl cannot be read: No such file" in capsys.readouterr().err


def test_the_list_of_metrics_is_that_of_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(EVAL, ["metrics", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert list(listed) == list(METRICS)
    assert set(listed["mathvista"]["fields"]) == {"choices", "answer_type", "precision"}
    assert run_program(EVAL, ["metrics"]) == 0
    assert capsys.readouterr().out.count("\n") == len(METRICS) + 1
