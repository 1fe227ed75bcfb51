from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nvlm_deploy.cli.main import run
from nvlm_deploy.config.catalog import find, list_names


@pytest.fixture(scope="module")
def example(repository: Path) -> Path:
    return repository / "examples" / "nvlm-d-tiny"


def test_sets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["calibration"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(list_names("calibration set"))


def test_a_set_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["calibration", "documents"]) == 0
    assert capsys.readouterr().out == find("calibration set", "documents").path.read_text()
    assert run(["calibration", "documents-text", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"]["with_images"] is False


def test_a_set_is_read_as_json(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["calibrate", str(example), "--calibration", "documents", "--set", "count=16", "--json"]
    assert run(arguments) == 0
    first = capsys.readouterr()
    summary = json.loads(first.out)
    assert first.err == ""
    assert (summary["count"], summary["images"], summary["warnings"]) == (16, 16, [])
    assert set(summary["tokens"]) == {"text", "tag", "visual", "thumbnail"}
    assert run(arguments) == 0
    assert capsys.readouterr().out == first.out


def test_warnings_are_notes_and_no_data(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["calibrate", str(example), "--calibration", "documents-text", "--set", "count=4"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("note: ") == 2
    assert "note: the set has no image: the vision layers cannot be calibrated" in captured.err
    lines = captured.out.splitlines()
    assert lines[0].split() == ["set", "documents-text"]
    assert lines[2].startswith("licence  Apache-2.0")
    assert lines[-1].split()[0] == "total"


def test_a_set_of_one_s_own(example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    source = f"source: {{kind: jsonl, path: {example / 'samples' / 'samples.jsonl'}}}"
    keys = "name: mine\ndescription: Of a test\nlicence: CC0-1.0\ncount: 99\nseed: 0\nmax_tokens: 512"
    path.write_text(f"{keys}\n{source}\n")
    assert run(["calibrate", str(example), "--calibration", str(path), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["count"] == 24
    assert captured.err == "note: the set asks for 99 samples, and its source gives 24\n"


def test_statistics_are_printed(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["calibrate", str(example), "--calibration", "documents", "--set", "count=2", "--statistics"]
    assert run([*arguments, "--against", "documents-text"]) == 0
    out = capsys.readouterr().out
    assert "clipped by documents-text\n" in out
    assert "\nmost clipped by a scale from documents-text alone:\ninputs of" in out
    assert "\nwidest range, which a scale for all of it resolves worst:\n" in out
    rows = [line.split() for line in out.splitlines()]
    (tower,) = (row for row in rows if row[:2] == ["vision", "thumbnail"])
    assert tower[-1] == "-", "text calibrates no tower"


def test_statistics_are_json(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["calibrate", str(example), "--calibration", "documents-text", "--set", "count=2"]
    assert run([*arguments, "--statistics", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["name"], report["against"]) == ("documents-text", None)
    assert set(report["statistics"]["parts"]) == {"language", "lm_head"}
    layer = report["statistics"]["layers"][0]
    assert layer["step"] == "language.layers.0"
    assert layer["inputs"][0]["linears"][0] == "language.layers.0.attention.q_proj"
    text = layer["inputs"][0]["classes"]["text"]
    assert 0 < text["rms"] < text["amax"]
    assert (text["clipped_by_text"], text["clipped_unseen"]) == (0, None)


def test_options_of_statistics_need_it(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["calibrate", str(example), "--calibration", "documents", "--against", "documents-text"]
    assert run(arguments) == 2
    assert "--against, --device and --scratch are for --statistics" in capsys.readouterr().err


def test_bad_input_is_said_on_stderr(
    example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["calibrate", str(example), "--calibration", "documens"]) == 2
    assert "there is no calibration set 'documens'" in capsys.readouterr().err
    assert run(["calibrate", str(tmp_path), "--calibration", "documents"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{tmp_path}/config.json does not exist" in captured.err
    assert run(["calibrate", str(example), "--calibration", "documents", "--set", "max_tokens=5"]) == 1
    assert "'documents' is empty" in capsys.readouterr().err


def test_reading_a_set_needs_no_torch(example: Path) -> None:
    code = (
        "import sys; from nvlm_deploy.cli.main import run; "
        f"run(['calibrate', {str(example)!r}, '--calibration', 'documents', '--set', 'count=1']); "
        "sys.exit(int('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
