from __future__ import annotations

import json

import pytest

from nvlm_deploy.cli.main import run
from nvlm_deploy.config.catalog import find, list_names


def test_targets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(list_names("target"))


def test_recipes_are_listed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "--json"]) == 0
    recipes = json.loads(capsys.readouterr().out)
    assert {"fp32", "fp16", "int8", "int4-rtn"} <= {recipe["name"] for recipe in recipes}


def test_one_file_is_shown_as_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets", "cpu-x86"]) == 0
    assert capsys.readouterr().out == find("target", "cpu-x86").path.read_text()


def test_one_file_is_shown_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets", "cpu-arm64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"] == "aarch64"


def test_an_unknown_name_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "int4-rnt"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "there is no recipe 'int4-rnt'" in captured.err
    assert "did you mean 'int4-rtn'" in captured.err
