"""Files of predictions: what is in them after a kill, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.eval.predictions import open_predictions, settings_path

IDS = ["a", "b", "c"]
SETTINGS: dict[str, Any] = {"model": {"fingerprint": "1"}, "max_new_tokens": 16}


def fill(output: Path, *names: str, settings: dict[str, Any] = SETTINGS) -> None:
    with open_predictions(output, settings, IDS) as predictions:
        for name in names:
            predictions.append({"id": name, "prediction": f"{name}\né"})


def test_lines_are_kept_and_added(tmp_path: Path) -> None:
    output = tmp_path / "new" / "p.jsonl"
    fill(output, "a", "b")
    fill(output, "c")
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["id"] for line in lines] == IDS
    assert lines[0]["prediction"] == "a\né"
    assert json.loads(settings_path(output).read_text()) == SETTINGS


@pytest.mark.parametrize("kept", range(1, 34))
def test_a_half_written_line_is_dropped(kept: int, tmp_path: Path) -> None:
    output = tmp_path / "p.jsonl"
    fill(output, "a", "b")
    whole = output.read_bytes()
    first = whole.index(b"\n") + 1
    output.write_bytes(whole[: first + kept])
    with open_predictions(output, SETTINGS, IDS) as predictions:
        assert [line.text("id") for line in predictions.lines] == ["a"]
        predictions.append({"id": "b", "prediction": "b\né"})
    assert output.read_bytes() == whole


def test_a_kill_before_the_first_line_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    output = tmp_path / "p.jsonl"
    settings_path(output).write_text("{}")
    fill(output, "a", settings={"other": 1})
    assert json.loads(settings_path(output).read_text()) == {"other": 1}


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    output = tmp_path / "p.jsonl"
    fill(output, "a")
    before = output.read_bytes()
    with pytest.raises(UsageError) as raised:
        fill(output, "b", settings={"model": {"fingerprint": "2"}, "max_new_tokens": 16})
    assert 'model.fingerprint is "1", and now it is "2"' in raised.value.message
    assert "max_new_tokens" not in raised.value.message
    assert raised.value.hint is not None
    assert str(settings_path(output)) in raised.value.hint
    assert output.read_bytes() == before


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "p.jsonl"
    output.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        fill(output, "a")
    assert output.read_text() == "mine"


def test_lines_that_do_not_belong_there_are_named(tmp_path: Path) -> None:
    output = tmp_path / "p.jsonl"
    fill(output, "b")
    with pytest.raises(NvlmError, match=r"p\.jsonl:1: the id is 'b', and the data set has 'a' there"):
        fill(output)
    output.write_text("no json\n")
    with pytest.raises(NvlmError, match=r"p\.jsonl:1 is not valid JSON"):
        fill(output)
    output.write_text("".join(json.dumps({"id": name}) + "\n" for name in [*IDS, "d"]))
    with pytest.raises(NvlmError, match=r"p\.jsonl:4: the id is 'd', and the data set has None there"):
        fill(output)


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    output = tmp_path / "p.jsonl"
    with open_predictions(output, SETTINGS, IDS), pytest.raises(UsageError, match="another run is writing"):
        fill(output, "a")
